"""A frame cache as a ``torch`` data set, for training loops of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from xmafast.cache import FrameCache, FrameReader
from xmafast.errors import CacheError


class FrameDataset(Dataset[dict[str, Any]]):
    """The decoded videos of a frame cache, one item for each pair of video and caption.

    cache: a ``FrameCache``, the path of one, or what ``xmafast.open_splits`` gives (a set of shards). rows: the rows to take; None
    takes all that are done. each_caption: False gives one item a video, with its first caption.

    An item is ``{"frames": uint8 (F, H, W, 3), "mask": bool (F,), "caption": str, "id": str, "row": int}``; mask is true where a frame is
    real, and the caption of a video without one is empty. ``torch.utils.data.DataLoader`` collates items as they are, to
    frames (B, F, H, W, 3) and mask (B, F), in any number of workers, forked or spawned: each reads through a memory map of its own.

    Raises CacheError for a file that is no cache, and for rows that are not done.
    """

    def __init__(
        self, cache: FrameReader | str | Path, rows: Sequence[int] | np.ndarray | None = None, *, each_caption: bool = True
    ) -> None:
        self.cache = cache if isinstance(cache, FrameReader) else FrameCache(cache)
        done = self.cache.rows
        wanted = done if rows is None else np.asarray(rows, dtype=np.int64)
        if len(open_rows := np.setdiff1d(wanted, done)):
            raise CacheError(f"{self.cache.path}: row {open_rows[0]} is not decoded; take rows of FrameCache.rows.")
        captions = self.cache.captions
        self.pairs = [(int(row), text) for row in wanted for text in (captions[row] if each_caption else captions[row][:1]) or ("",)]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, caption = self.pairs[index]
        frames, mask = self.cache.read(np.array([row]))
        return {
            "frames": frames[0],
            "mask": mask[0],
            "caption": caption,
            "id": self.cache.ids[row],
            "row": row,
        }
