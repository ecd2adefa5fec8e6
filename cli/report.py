"""``xmafast report``: one page about one or several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xmafast.cli.options import JSON, TOPK, WORKSPACE
from xmafast.cli.output import note, out, print_json


def report(
    runs: Annotated[list[Path] | None, typer.Argument(help="Runs' folders (default: the newest run).")] = None,
    cache: Annotated[Path | None, typer.Option(help="A cache's folder or file (default: the runs' own).")] = None,
    page: Annotated[Path | None, typer.Option("--out", help="The page's file (default: report.html in the workspace).")] = None,
    topk: TOPK = [1, 5, 10],  # noqa: B006 - typer copies it
    bootstrap: Annotated[int, typer.Option(min=0, help="Resample the videos N times for 95 % intervals.")] = 10_000,
    worst: Annotated[int, typer.Option(min=0, help="How many of the worst queries are shown, each direction.")] = 12,
    json: JSON = False,
    workspace: WORKSPACE = Path(),
) -> None:
    """Write one self-contained HTML page: numbers with intervals, curves, training, and the worst queries with their frames.

    Nothing is encoded where the runs were evaluated (xmafast eval) and nothing has changed since.

    Examples: xmafast report | xmafast report runs/a runs/b --out comparison.html
    """
    from xmafast.cli.compare import records_of
    from xmafast.cli.workspace import run_folder
    from xmafast.files import write_atomically
    from xmafast.report import report_page

    records, frames = records_of(runs or [run_folder(None, workspace)], cache, workspace)
    text = report_page(records, frames, topk=sorted(set(topk)), samples=bootstrap, worst=worst)
    page = page or workspace / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, lambda partial: partial.write_text(text, encoding="utf-8"))
    if json:
        print_json({"page": str(page), "runs": [str(record.run) for record in records], "bytes": len(text.encode("utf-8"))})
        return
    note(f"{len(records)} run{'s' if len(records) > 1 else ''} on {frames.path}")
    out.print(f"{page}  ({len(text.encode('utf-8')) / 1e6:.1f} MB)")
