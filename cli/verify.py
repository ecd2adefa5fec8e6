"""``xmafast verify``: is every cached row still what was decoded?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xmafast.cli.options import JSON, WORKSPACE
from xmafast.cli.output import bar, note, out, print_json
from xmafast.cli.workspace import cache_folder


def verify(
    cache: Annotated[
        Path | None, typer.Argument(help="A cache's file or folder, or a data set's name (default: the newest cache).")
    ] = None,
    mend: Annotated[bool, typer.Option("--repair", help="Decode damaged and open rows again.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Decode processes for --repair (default: one per core).")] = None,
    json: JSON = False,
    workspace: WORKSPACE = Path(),
) -> None:
    """Check every row of a cache against its checksum and list what is damaged.

    Ends with code 1 where a row is damaged and stays so. Examples: xmafast verify | xmafast verify caches/msrvtt --repair
    """
    from xmafast.cache import open_splits, repair
    from xmafast.cache import verify as check

    results = []
    for split in open_splits(cache_folder(cache, workspace)).values():
        note(f"Reading {split.path}")
        with bar("rows", "rows") as update:
            found = check(split.path, update)
        repaired = None
        if mend and (found.damaged or found.open):
            with bar("repair", "videos") as update:
                repaired = repair(split.path, found, workers=workers, progress=update)
            found = check(split.path)
        results.append((found, repaired))
    if json:
        print_json(
            [
                {"cache": str(v.path), "intact": v.intact, "damaged": v.damaged, "open": v.open, "repaired": r.done if r else 0}
                for v, r in results
            ]
        )
    else:
        for v, r in results:
            out.print(
                f"{v.path}: {v.intact} rows intact, {len(v.damaged)} damaged, {v.open} not decoded"
                + (f", {r.done} decoded now" if r else "")
            )
            for name in v.damaged:
                out.print(f"  damaged: {name}")
        if any(v.damaged for v, _ in results):
            out.print("Next: xmafast verify --repair")
    if any(v.damaged for v, _ in results):
        raise typer.Exit(1)
