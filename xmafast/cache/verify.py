"""Checking a finished cache against its checksums, and decoding again what does not match."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xmafast.cache.build import Summary, build_cache
from xmafast.cache.frames import FrameCache, Status
from xmafast.cache.lock import locked
from xmafast.errors import CacheError


@dataclass(frozen=True)
class Verified:
    """What a check found: rows that are done and intact, ids of those that are not, and rows that are not done."""

    path: Path
    intact: int
    damaged: list[str]
    open: int


def verify(path: str | Path, progress: Callable[[int, int], None] | None = None) -> Verified:
    """Read every row that is done and compare it with its checksum. Raises CacheError for a file that is no cache."""
    cache = FrameCache(path)
    rows = cache.rows
    damaged = []
    for i, row in enumerate(rows, 1):
        if not cache.intact(row):
            damaged.append(cache.ids[row])
        if progress:
            progress(i, len(rows))
    return Verified(cache.path, len(rows) - len(damaged), damaged, len(cache) - len(rows))


def repair(
    path: str | Path,
    found: Verified,
    *,
    workers: int | None = None,
    time_limit: float = 60.0,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Decode the damaged rows again, and what is open, from the data set that the cache was made of.

    Raises CacheError where the data set's folder or annotations are no longer there, and the damaged rows stay marked as open.
    """
    from xmafast.datasets import DATASETS, load_split

    path = Path(path)
    with locked(path):
        cache = FrameCache(path, writable=True)
        wrong = set(found.damaged)
        for row, name in enumerate(cache.ids):
            if name in wrong:
                cache.status[row] = Status.TODO
    a = cache.attributes
    if a.get("dataset") not in DATASETS:
        raise CacheError(f"{path} was not made from a data set that this version knows; cache its videos again.")
    split = load_split(str(a["dataset"]), Path(a["root"]), str(a["split"]))
    return build_cache(
        split,
        path,
        frames=int(a["frames"]),
        sampling=str(a["sampling"]),
        size=int(a["size"]),
        decoder=str(a["decoder"]),
        workers=workers,
        time_limit=time_limit,
        limit=len(cache),
        progress=progress,
    )
