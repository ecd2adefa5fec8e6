"""The frames of several data sets, read as one cache: the rows of the first, then those of the second, and so on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmafast.cache.frames import FrameCache, FrameReader
from xmafast.errors import CacheError


class JoinedFrames(FrameReader):
    """Caches of one frame size. Videos of a cache with fewer frames than the longest have padding behind them.

    Attributes: ``parts``, the caches; ``names``, their data sets; ``starts`` (P + 1,), the row at which each begins.
    Raises CacheError for caches of several sizes, and for one data set twice.
    """

    def __init__(self, parts: Sequence[FrameReader]) -> None:
        first = parts[0]
        self.parts = list(parts)
        self.names = [str(part.attributes.get("dataset", part.path.parent.name)) for part in parts]
        for name, part in zip(self.names, parts, strict=True):
            if self.names.count(name) > 1:
                raise CacheError(f"{part.path} is of the data set {name!r}, and so is another --data; name each data set once.")
            if part.attributes["size"] != first.attributes["size"]:
                sizes = f"{part.attributes['size']} and {first.attributes['size']} px"
                raise CacheError(f"{part.path} and {first.path} hold frames of {sizes}; cache one of them again with --size.")
        self.path = first.path
        frames = max(part.shape[1] for part in parts)
        self.attributes = {**first.attributes, "dataset": "+".join(self.names), "frames": frames}
        self.starts = np.cumsum([0, *map(len, parts)])
        self.ids = [name for part in parts for name in part.ids]
        self.captions = [texts for part in parts for texts in part.captions]
        for name in ("status", *FrameCache.copied):
            columns = [getattr(part, name) for part in parts]
            if name == "timestamps":
                columns = [np.pad(column, ((0, 0), (0, frames - column.shape[1]))) for column in columns]
            setattr(self, name, np.concatenate(columns))

    def __reduce__(self) -> tuple[Any, ...]:
        return JoinedFrames, (self.parts,)

    def part_of(self, rows: np.ndarray | int) -> np.ndarray:
        """Which of the caches rows are of."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def source_of(self, row: int) -> Path:
        part = int(self.part_of(row))
        return self.parts[part].source_of(row - int(self.starts[part]))

    def frames_of(self, row: int) -> np.ndarray:
        part = int(self.part_of(row))
        return self.parts[part].frames_of(row - int(self.starts[part]))

    def fill(self, rows: np.ndarray, out: np.ndarray) -> None:
        rows = np.asarray(rows, dtype=np.int64)
        of = self.part_of(rows)
        for i in np.unique(of):
            part, places = self.parts[i], np.flatnonzero(of == i)
            own, frames = rows[places] - self.starts[i], part.shape[1]
            if len(places) == len(rows) and frames == out.shape[1]:
                part.fill(own, out)
                continue
            read = np.empty((len(places), *part.shape[1:]), np.uint8)
            part.fill(own, read)
            out[places, :frames], out[places, frames:] = read, 0
