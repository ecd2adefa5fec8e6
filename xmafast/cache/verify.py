"""Checking a finished cache against its checksums, and making again what does not match."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xmafast.cache.build import build_cache
from xmafast.cache.features import FeatureCache, build_features, kind_of
from xmafast.cache.file import Status
from xmafast.cache.frames import FrameCache
from xmafast.cache.lock import locked
from xmafast.cache.renew import Summary
from xmafast.cache.shards import Shard, open_part, open_splits, split_of
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
    path = Path(path)
    cache = kind_of(path)(path)
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
    """Make the damaged rows again, and what is open: frames from the data set's videos, features from the frames beside them.

    Raises CacheError where the data set's folder or annotations are no longer there, and the damaged rows stay marked as open.
    """
    path = Path(path)
    with locked(path):
        cache = kind_of(path)(path, writable=True)
        wrong = set(found.damaged)
        for row, name in enumerate(cache.ids):
            if name in wrong:
                cache.status[row] = Status.TODO
    if isinstance(cache, FeatureCache):
        return _again(cache, progress)
    return _decode_again(cache, workers, time_limit, progress)


def _decode_again(cache: FrameCache, workers: int | None, time_limit: float, progress: Callable[[int, int], None] | None) -> Summary:
    from xmafast.datasets import DATASETS, load_split

    a, path = cache.attributes, cache.path
    if a.get("dataset") not in DATASETS:
        raise CacheError(f"{path} was not made from a data set that this version knows; cache its videos again.")
    split = load_split(str(a["dataset"]), Path(a["root"]), str(a["split"]))
    shard = Shard.parse(str(a["shard"])) if "shard" in a else None
    return build_cache(
        split,
        path if shard is None else path.with_name(f"{split_of(path)}.h5"),
        frames=int(a["frames"]),
        sampling=str(a["sampling"]),
        size=int(a["size"]),
        codec=cache.codec,
        decoder=str(a["decoder"]),
        shard=shard,
        workers=workers,
        time_limit=time_limit,
        limit=int(a.get("list_videos", len(cache))),
        progress=progress,
    )


def _again(cache: FeatureCache, progress: Callable[[int, int], None] | None) -> Summary:
    from xmafast.pretrained import load_backbone
    from xmafast.retriever import best_device

    a = cache.attributes
    home = cache.path.parent.parent
    splits = open_part(home, Shard.parse(str(a["shard"]))) if "shard" in a else open_splits(home)
    if a["split"] not in splits:
        raise CacheError(f"{home} has no frames of {a['split']} any more; cache them again.")
    frames = splits[str(a["split"])]
    backbone = load_backbone(str(a["backbone"]), str(a["pretrained"])).to(best_device())
    cache.of(backbone)
    return build_features(frames, cache.path, backbone, level=cache.level, block=a.get("block"), progress=progress)
