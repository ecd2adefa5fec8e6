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
    """Check every row of a cache, and of the features beside it, against its checksum and list what is damaged.

    Ends with code 1 where a row is damaged and stays so. Examples: xmafast verify | xmafast verify caches/msrvtt --repair
    """
    from xmafast.cache import repair
    from xmafast.cache import verify as check
    from xmafast.cache.shards import files_of

    results = []
    folder = cache_folder(cache, workspace)
    files = files_of(folder)
    for path in [*files, *(sorted(folder.glob("*/*.h5")) if folder.is_dir() else [])]:  # features lie in folders of their own
        note(f"Reading {path}")
        with bar("rows", "rows") as update:
            found = check(path, update)
        repaired = None
        if mend and (found.damaged or found.open):
            with bar("repair", "videos") as update:
                repaired = repair(path, found, workers=workers, progress=update)
            found = check(path)
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
