"""Which file a build works on: the finished cache, an interrupted one, or a new one that takes over what fits."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from xmafast.cache.file import CacheFile, Status, opened
from xmafast.errors import CacheError

Kind = TypeVar("Kind", bound=CacheFile)


@dataclass
class Summary:
    """What one build did: rows made now, rows present before, rows without a file, rows that failed, with reasons."""

    path: Path
    done: int = 0
    present: int = 0
    missing: int = 0
    failed: int = 0
    problems: list[tuple[str, str, str]] = field(default_factory=list)  # (id, "missing" or "failed", reason)


def renewed(
    kind: type[Kind],
    path: Path,
    ids: Sequence[str],
    captions: Sequence[tuple[str, ...]],
    attributes: Mapping[str, Any],
    settings: Mapping[str, Any],
    create: Callable[[Path, Sequence[str], Sequence[tuple[str, ...]]], None],
    *,
    limited: bool = False,
    fixed: Callable[[Kind], bool] = lambda cache: False,
) -> tuple[Kind, bool]:
    """The writable cache to work on, and whether it is the finished file itself (else its partial).

    settings: attributes that must be equal. limited: the ids are only the first ones of a list, and a cache may hold more.
    fixed: whether a finished cache cannot be written in its place. Raises CacheError where ``path`` holds rows of other settings or
    of another folder.
    """
    partial = path.with_name(path.name + ".partial")
    old: Kind | None = None
    for existing in (partial, path):
        if not existing.is_file():
            continue
        try:
            cache = kind(existing, writable=True)
        except CacheError:
            if existing is path:
                raise
            existing.unlink()  # killed while its layout was being written: nothing is lost
            continue
        other = [f"{key} {cache.attributes.get(key)}" for key, value in settings.items() if cache.attributes.get(key) != value]
        if other:
            asked = ", ".join(f"{key} {value}" for key, value in settings.items())
            raise CacheError(f"{existing} was cached with {', '.join(other)}, and now {asked} is asked; name another --out, or delete it.")
        if cache.ids != ids and cache.attributes.get("root") != attributes["root"]:
            raise CacheError(
                f"{existing} was cached from {cache.attributes.get('root')}, and now {attributes['root']} is asked; "
                "name another --out, or delete it."
            )
        n = len(ids) if limited else len(cache.ids)
        same = cache.ids[:n] == ids and cache.captions[:n] == list(captions)
        if same and not (existing is path and fixed(cache)):
            return cache, existing is path
        old = old or cache
        if same and limited:  # a longer list than was asked for, in a file that cannot be written: all of it goes over
            ids, captions = cache.ids, cache.captions
    scratch = partial.with_name(partial.name + ".new")
    create(scratch, ids, captions)
    cache = kind(scratch, writable=True)
    donors = [*([old] if old else []), *_siblings(kind, path, settings, attributes["root"])]
    stored = [int(donor.stored(row).nbytes) for donor in donors for row in donor.rows]
    check_room(sum(stored), len(stored), path.parent, "or cache elsewhere with --out")
    with opened(scratch, f"There is no room left for {path}; what was cached before is kept") as file:
        for donor in donors:  # the list of videos, or their splits, have changed: rows of the same id move over, the rest is todo
            row_of = {i: row for row, i in enumerate(donor.ids)}
            for row, i in enumerate(ids):
                if (was := row_of.get(i)) is not None and donor.status[was] == Status.DONE != cache.status[row]:
                    cache.take(row, donor, was, file)
    scratch.replace(partial)
    return kind(partial, writable=True), False


def _siblings(kind: type[Kind], path: Path, settings: Mapping[str, Any], root: object) -> list[Kind]:
    """The caches beside ``path`` of the same videos' folder and settings: other splits, between which a video may have moved."""
    found = []
    for file in sorted(path.parent.glob("*.h5")):
        with contextlib.suppress(CacheError):
            cache = kind(file)
            if file != path and cache.attributes.get("root") == root and all(cache.attributes.get(k) == v for k, v in settings.items()):
                found.append(cache)
    return found


def check_room(need: int, rows: int, folder: Path, otherwise: str) -> None:
    """Raise CacheError before the first row where the disk cannot hold what is to come: the file is full of holes until then."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise CacheError(f"{rows} videos need {need / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free; make room, {otherwise}.")
