"""The frame cache: one HDF5 file per split, and its reader.

Every array is contiguous and allocated when the file is created, so its bytes have a fixed place: rows are written and read
through memory maps, HDF5's own structures are never touched again, and no crash can leave them half-written.

    /frames      (N, F, H, W, 3) uint8   zero where a video has fewer frames
    /status      (N,) uint8              0 todo, 1 done, 2 failed, 3 missing
    /num_frames  (N,) int16              real frames of the row
    /timestamps  (N, F) float32          seconds
    /bytes       (N,) int64              size of the source file, to see that it was exchanged
    /checksum    (N,) uint64             of the row's frames, their number and timestamps
    /error       (N,) S256               why a row failed
    /source      (N,) S512               the decoded file, relative to the data set's root
    /id, /captions  (N,) str             the video, and its captions as JSON
"""

from __future__ import annotations

import enum
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from xmafast.errors import CacheError

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 2
ERROR_BYTES, SOURCE_BYTES = 256, 512
_TEXT = h5py.string_dtype("utf-8")


class Status(enum.IntEnum):
    TODO = 0
    DONE = 1
    FAILED = 2
    MISSING = 3


def checksum(frames: np.ndarray, timestamps: np.ndarray) -> int:
    """64 bits of blake2b over a row's real frames (n, H, W, 3) and their timestamps (n,)."""
    digest = hashlib.blake2b(np.ascontiguousarray(frames).data, digest_size=8)
    digest.update(np.ascontiguousarray(timestamps, dtype=np.float32).data)
    return int.from_bytes(digest.digest(), "little")


def create(path: Path, ids: list[str], captions: list[tuple[str, ...]], attributes: dict[str, Any]) -> None:
    """Lay out an empty cache for these rows. ``attributes`` must name ``frames`` and ``size``."""
    n, f, size = len(ids), attributes["frames"], attributes["size"]
    small: list[tuple[int, int]] = []
    with h5py.File(path, "w") as file:
        for name, shape, dtype in (
            ("frames", (n, f, size, size, 3), np.uint8),
            ("status", (n,), np.uint8),
            ("num_frames", (n,), np.int16),
            ("timestamps", (n, f), np.float32),
            ("bytes", (n,), np.int64),
            ("checksum", (n,), np.uint64),
            ("error", (n,), f"S{ERROR_BYTES}"),
            ("source", (n,), f"S{SOURCE_BYTES}"),
        ):
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_layout(h5py.h5d.CONTIGUOUS)
            plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # the blocks stay holes on disk, and read as zero
            space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(np.dtype(dtype), logical=True)
            h5py.h5d.create(file.id, name.encode(), kind, space, plist)
            if n and name != "frames":
                small.append((file[name].id.get_offset(), file[name].id.get_storage_size()))
        file.create_dataset("id", data=ids, dtype=_TEXT)
        file.create_dataset("captions", data=[json.dumps(list(c), ensure_ascii=False) for c in captions], dtype=_TEXT)
        file.attrs["schema"] = SCHEMA
        for key, value in attributes.items():
            file.attrs[key] = value
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as raw:  # a hole that a full disk cannot fill would kill the process that marks its rows
            for offset, length in small:
                os.posix_fallocate(raw.fileno(), offset, length)


class FrameCache:
    """A frame cache file, read through a memory map.

    Attributes: ``ids``, ``captions`` (a tuple per video), ``status`` (N,), ``num_frames`` (N,), ``timestamps`` (N, F), ``error``
    and ``source`` (bytes), ``attributes`` (data set, split, sampling, size, decoder, ...), and ``frames``, a (N, F, H, W, 3) uint8
    memory map.

    Raises CacheError for a file that is missing, no HDF5, or not a frame cache.
    """

    def __init__(self, path: str | Path, *, writable: bool = False) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise CacheError(f"There is no cache {self.path}; make one with: xmafast cache DATASET")
        try:
            with h5py.File(self.path, "r") as file:
                schema = int(file.attrs["schema"])
                if schema != SCHEMA:
                    raise CacheError(f"{self.path} has cache format {schema}, and this version reads {SCHEMA}; cache again.")
                self.attributes: dict[str, Any] = {
                    key: value.item() if isinstance(value, np.generic) else value for key, value in file.attrs.items()
                }
                self.ids = [s.decode() for s in file["id"][:]]
                self.captions = [tuple(json.loads(s)) for s in file["captions"][:]]
                maps = {
                    name: (file[name].id.get_offset(), file[name].shape, file[name].dtype)
                    for name in ("frames", "status", "num_frames", "timestamps", "bytes", "checksum", "error", "source")
                }
        except CacheError:
            raise
        except OSError as error:
            raise CacheError(f"{self.path} is not an HDF5 file, or a damaged one; delete it and cache again.") from error
        except (KeyError, ValueError) as error:
            raise CacheError(
                f"{self.path} is an HDF5 file but not a frame cache of xmafast; name one that `xmafast cache` wrote."
            ) from error
        size = self.path.stat().st_size
        for name, (offset, shape, dtype) in maps.items():
            if len(self.ids) and offset + int(np.prod(shape)) * dtype.itemsize > size:
                raise CacheError(f"{self.path} is cut off: /{name} ends past the file; delete it and cache again.")
        self.offset, self.shape = maps["frames"][0], maps["frames"][1]
        mode = "r+" if writable else "r"

        def view(name: str) -> np.ndarray:
            offset, shape, dtype = maps[name]
            if not len(self.ids):
                return np.zeros(shape, dtype)
            return np.memmap(self.path, dtype=dtype, mode=mode, offset=offset, shape=shape)  # type: ignore[call-overload]

        self.frames, self.status, self.num_frames = view("frames"), view("status"), view("num_frames")
        self.timestamps, self.bytes, self.checksum = view("timestamps"), view("bytes"), view("checksum")
        self.error, self.source = view("error"), view("source")

    def __len__(self) -> int:
        return len(self.ids)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.frames.flags.writeable)  # another process maps the file itself, and gets no copy of it

    @property
    def rows(self) -> np.ndarray:
        """The rows that are done, as indices."""
        return np.flatnonzero(self.status == Status.DONE)

    def source_of(self, row: int) -> Path:
        """The video file that a row was decoded from, where it was then."""
        return Path(self.attributes["root"]) / self.source[row].decode("utf-8")

    def intact(self, row: int) -> bool:
        """Whether a row's frames and timestamps are still those that were decoded."""
        n = int(self.num_frames[row])
        return bool(checksum(self.frames[row, :n], self.timestamps[row, :n]) == int(self.checksum[row]))

    def count(self, status: Status) -> int:
        return int((self.status == status).sum())

    def read(self, rows: np.ndarray, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows -> frames uint8 (B, F, H, W, 3) and mask bool (B, F), true where a frame is real.

        out: a uint8 tensor of B rows or more, as pinned memory that a GPU copies from, into which the frames are read.
        """
        from torch import from_numpy  # here, so that decode workers start without torch

        mask = from_numpy(np.arange(self.shape[1]) < self.num_frames[rows][:, None])
        if out is None:
            return from_numpy(self.frames[rows]), mask
        frames = out[: len(rows)]
        np.take(self.frames, rows, axis=0, out=frames.numpy(), mode="clip")  # any other mode reads into a buffer first
        return frames, mask

    @property
    def label(self) -> str:
        """How messages name it, as ``demo/test``."""
        return f"{self.attributes.get('dataset', '?')}/{self.attributes.get('split', self.path.stem)}"


def _reopen(path: Path, writable: bool) -> FrameCache:
    return FrameCache(path, writable=writable)


def open_splits(folder: Path) -> dict[str, FrameCache]:
    """The caches of a data set's folder by split, or the one of a ``.h5`` file. Raises CacheError where there is none."""
    if folder.is_file() or folder.suffix == ".h5":
        cache = FrameCache(folder)
        return {str(cache.attributes.get("split", folder.stem)): cache}
    files = sorted(folder.glob("*.h5")) if folder.is_dir() else []
    if not files:
        unfinished = " (a caching was interrupted there; repeat it)" if folder.is_dir() and any(folder.glob("*.partial")) else ""
        raise CacheError(f"{folder} holds no cache{unfinished}; make one with: xmafast cache DATASET")
    return {cache.attributes.get("split", cache.path.stem): cache for cache in map(FrameCache, files)}
