"""``xmafast merge``: the shards of a cache joined into one file for each split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xmafast.cli.options import JSON, WORKSPACE
from xmafast.cli.output import bar, note, out, print_json
from xmafast.cli.workspace import cache_folder


def merge(
    cache: Annotated[Path | None, typer.Argument(help="A folder of shards, or a data set's name (default: the newest cache).")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the shards where they are.")] = False,
    json: JSON = False,
    workspace: WORKSPACE = Path(),
) -> None:
    """Join the shards that `xmafast cache --shard I/N` wrote, of frames and of features, and delete them.

    Every row is compared with its checksum on the way. Shards may also stay as they are: train, eval and search read a whole set
    of them as one. Examples: xmafast merge | xmafast merge caches/lsmdc --keep
    """
    from xmafast.cache import merge as join
    from xmafast.cache.shards import files_of, shard_of

    folder = cache_folder(cache, workspace)
    places = [folder, *(sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else [])]
    wholes = sorted({file.with_name(f"{named[0]}.h5") for place in places for file in place.glob("*.h5") if (named := shard_of(file))})
    if wholes:
        note("Joining the shards of " + ", ".join(str(whole) for whole in wholes))
    else:  # a merge that is repeated, as after a kill in its last moment
        wholes = [*files_of(folder), *(file for place in places[1:] for file in sorted(place.glob("*.h5")))]
        note(f"{folder} holds no shards; its splits are whole.")
    results = []
    for whole in wholes:
        with bar(whole.stem, "videos") as update:
            results.append(join(whole, keep=keep, progress=update))
    if json:
        print_json([{"cache": str(r.path), "rows": r.rows, "done": r.done, "shards": r.shards} for r in results])
        return
    for r in results:
        out.print(f"{r.path}: {r.done} of {r.rows} videos, from {r.shards} shards" + (", which are kept" if keep else ""))
