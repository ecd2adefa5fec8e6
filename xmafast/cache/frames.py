"""The frame cache: decoded videos, raw or as JPEG, and its reader.

raw:    /frames   (N, F, H, W, 3) uint8   zero where a video has fewer frames

jpeg:   /jpeg     (B,) uint8              the rows' images, one after the other
        /start    (N,) int64              where a row begins in it
        /lengths  (N, F) int32            bytes of each image

While a jpeg cache is built every row has a place of the largest size it can have, most of which stays a hole on disk; when it is
done it is written again without the holes.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from xmafast.cache.file import Arrays, CacheFile, Rows, lay_out, opened
from xmafast.errors import CacheError

if TYPE_CHECKING:
    from torch import Tensor

CODECS = ("raw", "jpeg")
QUALITY = 95
COPIERS, COPIED = 4, 2**23  # threads that read a batch at most, and bytes that are worth another one
HEAD = 1024  # bytes of a JPEG's tables, more than they take: for small images they are most of it


def row_capacity(frames: int, size: int, codec: str) -> int:
    """Bytes that a row's place holds while the cache is built."""
    return frames * (size * size * 3 + (HEAD if codec == "jpeg" else 0))


def create(
    path: Path, ids: Sequence[str], captions: Sequence[tuple[str, ...]], attributes: dict[str, Any], stored: int | None = None
) -> None:
    """Lay out an empty frame cache. ``attributes`` must name ``frames`` and ``size``, and ``codec`` unless it is raw.

    stored: of a jpeg cache, the bytes of all rows together; None leaves each row its largest place.
    """
    n, f, size = len(ids), int(attributes["frames"]), int(attributes["size"])
    attributes = {**attributes, "level": "frames"}
    if attributes.get("codec", "raw") == "raw":
        lay_out(path, ids, captions, attributes, "frames", {"frames": ((n, f, size, size, 3), np.uint8)})
        return
    capacity = row_capacity(f, size, "jpeg")
    arrays: Arrays = {
        "jpeg": ((n * capacity if stored is None else stored,), np.uint8),
        "start": ((n,), np.int64),
        "lengths": ((n, f), np.int32),
    }
    lay_out(path, ids, captions, {**attributes, "packed": stored is not None}, "jpeg", arrays)
    if stored is None and n:
        cache = FrameCache(path, writable=True)
        cache.start[:] = np.arange(n) * capacity
        cache.flush()


@functools.cache
def _crew(process: int) -> ThreadPoolExecutor:
    """The threads that read, of a process: a fork has none of its parent's."""
    return ThreadPoolExecutor(os.cpu_count() or 1)


def encode(frames: Iterable[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Frames (H, W, 3) uint8 -> their JPEG images, as uint8, and the bytes of each (n,)."""
    images = []
    for frame in frames:
        image = io.BytesIO()
        Image.fromarray(frame).save(image, "JPEG", quality=QUALITY, subsampling=0)
        images.append(np.frombuffer(image.getvalue(), np.uint8))
    return images, np.array([len(image) for image in images], dtype=np.int32)


class FrameReader(Rows):
    """Reading frames, from one file or from a set of shards.

    Attributes: ``ids``, ``captions`` (a tuple per video), ``status`` (N,), ``num_frames`` (N,), ``timestamps`` (N, F), ``error``
    and ``source`` (bytes), ``attributes`` (data set, split, sampling, size, codec, decoder, ...), and ``shape``, (N, F, H, W, 3).
    """

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Of all frames, uint8: (N, F, H, W, 3)."""
        size = int(self.attributes["size"])
        return len(self), int(self.attributes["frames"]), size, size, 3

    def frames_of(self, row: int) -> np.ndarray:
        """The real frames of a row: (n, H, W, 3) uint8."""
        raise NotImplementedError

    def fill(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Read rows into ``out`` (B, F, H, W, 3), zero where a video has fewer frames."""
        raise NotImplementedError

    def read(self, rows: np.ndarray, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows -> frames uint8 (B, F, H, W, 3) and mask bool (B, F), true where a frame is real.

        out: a uint8 tensor of B rows or more, as pinned memory that a GPU copies from, into which the frames are read.
        """
        import torch  # here, so that decode workers start without it

        rows = np.asarray(rows, dtype=np.int64)
        mask = torch.from_numpy(np.arange(self.shape[1]) < self.num_frames[rows][:, None])
        # numpy's fresh memory comes in large pages, torch's in small ones, which take several times as long to be had
        frames = torch.from_numpy(np.empty((len(rows), *self.shape[1:]), np.uint8)) if out is None else out[: len(rows)]
        self.fill(rows, frames.numpy())
        return frames, mask


class FrameCache(CacheFile, FrameReader):
    """A frame cache file, read through a memory map; of a raw one that map is ``frames``, (N, F, H, W, 3) uint8.

    Raises CacheError for a file that is missing, no HDF5, or not a frame cache.
    """

    levels = ("frames",)
    fixed = ("start",)
    start: np.ndarray
    lengths: np.ndarray

    @property
    def frames(self) -> np.ndarray:
        """(N, F, H, W, 3) uint8 as they lie in the file. Raises CacheError for a cache of jpeg images."""
        if self.codec != "raw":
            raise CacheError(f"{self.path} holds {self.codec} images, of which there is no array; use FrameCache.read or frames_of.")
        return self.data

    @property
    def codec(self) -> str:
        """``raw`` or ``jpeg``: how each frame is stored."""
        return str(self.attributes["codec"])

    @property
    def packed(self) -> bool:
        """Whether the rows lie without gaps, so that none can be written in its place."""
        return bool(self.attributes.get("packed", False))

    def _data_name(self) -> str:
        return "frames" if self.codec == "raw" else "jpeg"

    def _small(self) -> tuple[str, ...]:
        return () if self.codec == "raw" else ("lengths", "start")

    @property
    def capacity(self) -> int:
        """Bytes that the data of a row may take, under its codec."""
        return row_capacity(self.shape[1], self.shape[2], self.codec)

    def place(self, row: int) -> int:
        return super().place(row) if self.codec == "raw" else self.offset + int(self.start[row])

    def stored(self, row: int) -> np.ndarray:
        if self.codec == "raw":
            return super().stored(row)
        start = int(self.start[row])
        return self.data[start : start + int(self.lengths[row].sum())]

    def clear(self, row: int) -> None:
        if self.codec == "raw":
            super().clear(row)
        else:
            self.lengths[row] = self.num_frames[row] = 0

    def frames_of(self, row: int) -> np.ndarray:
        if self.codec == "raw":
            return np.asarray(self.stored(row))
        frames = np.zeros(self.shape[1:], np.uint8)
        self._decode(row, frames)
        return frames[: int(self.num_frames[row])]

    def fill(self, rows: np.ndarray, out: np.ndarray) -> None:
        crew = _crew(os.getpid())
        if self.codec == "jpeg":
            list(crew.map(self._decode, (int(row) for row in rows), out))  # PIL decodes without the interpreter's lock
            return
        parts = min(os.cpu_count() or 1, COPIERS, 1 + out.nbytes // COPIED)
        # so does numpy copy, and one thread does not use up the memory's rate
        list(crew.map(self._copy, np.array_split(rows, parts), np.array_split(out, parts)))

    def _copy(self, rows: np.ndarray, out: np.ndarray) -> None:
        np.take(self.data, rows, axis=0, out=out, mode="clip")  # any other mode reads into a buffer first

    def _decode(self, row: int, out: np.ndarray) -> None:
        n, end = int(self.num_frames[row]), np.cumsum(self.lengths[row])
        images = self.stored(row)
        for i in range(n):
            try:
                with Image.open(io.BytesIO(images[end[i] - self.lengths[row, i] : end[i]].tobytes())) as image:
                    out[i] = np.asarray(image)
            except (OSError, ValueError) as error:
                raise CacheError(f"Row {self.ids[row]} of {self.path} is damaged; mend it with: xmafast verify --repair") from error
        out[n:] = 0


def pack(source: FrameCache, path: Path) -> None:
    """Write a jpeg cache again without the holes between its rows."""
    done = {int(row) for row in source.rows}
    sizes = [int(source.lengths[row].sum()) if row in done else 0 for row in range(len(source))]
    create(path, source.ids, source.captions, {k: v for k, v in source.attributes.items() if k != "packed"}, stored=sum(sizes))
    target = FrameCache(path, writable=True)
    target.start[:] = np.cumsum([0, *sizes[:-1]]) if sizes else 0
    target.status[:] = source.status
    target.error[:], target.bytes[:] = source.error, source.bytes
    with opened(path, f"There is no room left for {path}; what was decoded is kept") as file:
        for row in sorted(done):
            target.take(row, source, row, file)
    target.flush()
