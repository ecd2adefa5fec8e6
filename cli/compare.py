"""``xmafast compare``: two runs on the same queries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xmafast.cli.options import JSON, TOPK, WORKSPACE
from xmafast.cli.output import bar, metrics_table, note, out, print_json
from xmafast.cli.workspace import cache_folder, run_cache, run_folder


def compare(
    first: Annotated[Path, typer.Argument(help="A run's folder.")],
    second: Annotated[Path, typer.Argument(help="Another's; differences are this one's numbers less the first's.")],
    cache: Annotated[Path | None, typer.Option(help="A cache's folder or file (default: the runs' own).")] = None,
    topk: TOPK = [1, 5, 10],  # noqa: B006 - typer copies it
    bootstrap: Annotated[int, typer.Option(min=0, help="Resample the videos N times for 95 % intervals.")] = 10_000,
    json: JSON = False,
    workspace: WORKSPACE = Path(),
) -> None:
    """Compare two runs query by query: the difference, its 95 % interval, and the exact p-value of a paired test of R@1.

    Nothing is encoded where both runs were evaluated (xmafast eval) and nothing has changed since.

    Examples: xmafast compare runs/a runs/b | xmafast compare runs/a runs/b --cache caches/msrvtt --json
    """
    from xmafast.comparison import compare as difference_of
    from xmafast.evaluation import summary

    topk = sorted(set(topk))
    records, _ = records_of([first, second], cache, workspace)
    one, two = (record.ranks() for record in records)
    found = difference_of(one, two, topk, bootstrap)
    rows = [
        {"run": str(record.run), **summary(ranks, topk, bootstrap), "protocol": record.data["protocol"]}
        for record, ranks in zip(records, (one, two), strict=True)
    ]
    result = {"runs": rows, **found, "queries": len(one.t2v), "candidates": len(one.v2t)}
    if json:
        print_json(result)
        return
    names = [str(record.run) if records[0].name == records[1].name else record.name for record in records]
    title = f"{names[1]} less {names[0]}, {len(one.t2v)} queries, {len(one.v2t)} videos"
    change = {**found["difference"], "interval": found.get("interval", {}), "signed": True}
    out.print(metrics_table(title, [*zip(names, rows, strict=True), ("difference", change)], topk))
    for side, label in (("t2v", "text to video"), ("v2t", "video to text")):
        test = found["test"][side]
        out.print(
            f"R@1, {label}: p = {test['p']:.3g} ({test['name']}; {test['better']} queries only {names[1]} gets right, "
            f"{test['worse']} only {names[0]})"
        )


def records_of(runs: list[Path], cache: Path | None, workspace: Path) -> tuple[list[Any], Any]:
    """(the records of runs, evaluated where they were not; the cache of the first). Raises RunError where the queries are not the same."""
    from xmafast.cli.evaluate import evaluation_cache
    from xmafast.errors import RunError
    from xmafast.records import recorded
    from xmafast.retriever import adapter_folder

    records: list[Any] = []
    where: Any = None
    for named in runs:
        run = run_folder(named, workspace)
        adapter_folder(run)
        split = evaluation_cache(cache_folder(cache, workspace) if cache else run_cache(run))
        record = recorded(run, split, bars=lambda label, name=run.name: bar(f"{name}, {label}", "videos"))  # type: ignore[misc]
        note(f"{run} on {split.path}")
        if records and record.queries != records[0].queries:
            raise RunError(f"{run} and {records[0].run} were evaluated on other videos or captions; name one cache for both with --cache.")
        records.append(record)
        where = where or split
    return records, where
