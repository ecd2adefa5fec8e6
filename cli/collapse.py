"""``xmafast collapse``: of an adapter for several data sets, a plain one for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xmafast.cli.importing import save
from xmafast.cli.options import JSON, WORKSPACE
from xmafast.cli.output import note, out, print_json
from xmafast.cli.workspace import run_folder


def collapse(
    run: Annotated[Path | None, typer.Argument(help="A run of --method routed (default: the newest run).")] = None,
    dataset: Annotated[str | None, typer.Option(help="The data set whose adapter is wanted (default: every one).")] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="The folder for it, or for a folder of each (default: RUN/collapsed).")
    ] = None,
    json: JSON = False,
    workspace: WORKSPACE = Path(),
) -> None:
    """Write the low-rank update of a data set as a run of its own, which can be merged and needs no inventory.

    Examples: xmafast collapse runs/all --dataset msrvtt --out runs/all-msrvtt | xmafast collapse runs/all
    """
    from xmafast.errors import UsageError
    from xmafast.retriever import load

    run = run_folder(run, workspace)
    retriever = load(run)
    names = retriever.datasets if dataset is None else [dataset]
    if not retriever.datasets:
        raise UsageError(f"{run} has nothing of its own for a data set; only runs of --method routed are collapsed.")
    base = folder or run / "collapsed"
    places = {name: base if dataset is not None and folder else base / name for name in names}
    for place in places.values():
        if place.exists():
            raise UsageError(f"{place} exists already; name another --out, so that no run is overwritten.")
    written = []
    for name, place in places.items():
        retriever.dataset = name
        plain = retriever.collapsed()
        place.parent.mkdir(parents=True, exist_ok=True)
        save(plain, place)
        written.append({"dataset": name, "run": str(place), "trainable": plain.trainable})
    if json:
        print_json(written)
        return
    for row in written:
        out.print(f"{row['dataset']}: {row['trainable']:,} parameters in {row['run']}")
    note(f"Next: xmafast eval {written[0]['run']} CACHE")
