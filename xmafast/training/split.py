"""Which rows of a cache are trained on, and which ones choose the epoch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xmafast.cache import FrameReader, open_splits
from xmafast.cache.joined import JoinedFrames
from xmafast.errors import CacheError

VALIDATION_SHARE, VALIDATION_MOST = 0.1, 1000


class Split(NamedTuple):
    """The training cache and its rows, the validation cache (the same one where it is cut from train) and its rows."""

    cache: FrameReader
    rows: np.ndarray
    val_cache: FrameReader
    val_rows: np.ndarray

    @property
    def fingerprint(self) -> str:
        """sha256 of what is trained and validated on: ids, captions, and the checksums of the rows' frames."""
        digest = hashlib.sha256()
        for cache, rows in ((self.cache, self.rows), (self.val_cache, self.val_rows)):
            for row in rows:
                digest.update(repr((cache.ids[row], cache.captions[row])).encode("utf-8"))
            for column in (cache.num_frames, cache.checksum):
                digest.update(np.ascontiguousarray(column[rows]).tobytes())
            for part in cache.parts if isinstance(cache, JoinedFrames) else [cache]:
                digest.update(repr([part.attributes.get(key) for key in ("frames", "sampling", "size", "captions_per_epoch")]).encode())
        return digest.hexdigest()


def datasets_of(cache: FrameReader) -> list[str]:
    """The data sets that a cache holds: one, unless several are read as one."""
    return cache.names if isinstance(cache, JoinedFrames) else [str(cache.attributes.get("dataset", cache.path.parent.name))]


def training_split(folders: Sequence[Path]) -> Split:
    """What to train and validate on, of folders of caches or files. Raises CacheError where there is nothing to train on."""
    splits = [_split(folder) for folder in folders]
    if len(splits) == 1:
        return splits[0]
    caches = JoinedFrames([split.cache for split in splits])
    rows = np.concatenate([split.rows + start for split, start in zip(splits, caches.starts, strict=False)])
    apart = any(split.val_cache is not split.cache for split in splits)
    val_caches = JoinedFrames([split.val_cache for split in splits]) if apart else caches
    val_rows = np.concatenate([split.val_rows + start for split, start in zip(splits, val_caches.starts, strict=False)])
    return Split(caches, rows, val_caches, val_rows)


def _split(folder: Path) -> Split:
    splits = open_splits(folder)
    if "train" not in splits:
        raise CacheError(f"{folder} has no train split (it has: {', '.join(splits)}); cache one with --split train.")
    cache = splits["train"]
    rows = np.array([row for row in cache.rows if cache.captions[row]], dtype=np.int64)
    if "val" in splits:
        val = splits["val"]
        val_rows = np.array([row for row in val.rows if val.captions[row]], dtype=np.int64)
    else:
        val = cache
        order = sorted(rows, key=lambda row: hashlib.sha256(cache.ids[row].encode("utf-8")).digest())
        n = min(VALIDATION_MOST, math.ceil(len(rows) * VALIDATION_SHARE))
        val_rows = np.array(sorted(order[:n]), dtype=np.int64)
        rows = np.setdiff1d(rows, val_rows)
    if len(rows) < 2 or not len(val_rows):
        raise CacheError(
            f"{cache.path} has {len(rows)} decoded videos with captions to train on and {len(val_rows)} to validate with; "
            "at least 2 and 1 are needed. Put the missing videos in place and cache again."
        )
    return Split(cache, rows, val, val_rows)
