"""A cache file: an HDF5 file whose rows have fixed places, so that no crash can leave it half-written.

Every array is contiguous and allocated when the file is created. After that rows are written and read through the file and
memory maps of it; HDF5's own structures are never touched again.

    /status      (N,) uint8              0 todo, 1 done, 2 failed, 3 missing
    /num_frames  (N,) int16              real frames of the row
    /timestamps  (N, F) float32          seconds
    /bytes       (N,) int64              size of the source file, to see that it was exchanged
    /checksum    (N,) uint64             of the row's data and timestamps
    /error       (N,) S256               why a row failed
    /source      (N,) S512               the decoded file, relative to the data set's root
    /id, /captions  (N,) str             the video, and its captions as JSON

and one array of data, which ``FrameCache`` and ``FeatureCache`` know.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np

from xmafast.errors import CacheError

SCHEMA = 3
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SYNC_EVERY = 0.5  # seconds
ERROR_BYTES, SOURCE_BYTES = 256, 512
_TEXT = h5py.string_dtype("utf-8")
Buffer = Any  # bytes, or a numpy array of them
Arrays = dict[str, "tuple[tuple[int, ...], Any]"]  # name -> (shape, dtype)


class Status(enum.IntEnum):
    """What became of a row: not tried yet, decoded, not decodable, or no such file."""

    TODO = 0
    DONE = 1
    FAILED = 2
    MISSING = 3


def checksum(data: Sequence[np.ndarray], timestamps: np.ndarray) -> int:
    """Two crc32 in one number: of what is stored of a row, piece after piece, and, in the upper half, of its real frames' timestamps (n,).

    It guards against accidents, not against malice, and costs a building process a third of what a cryptographic hash does.
    """
    times = np.ascontiguousarray(timestamps, dtype=np.float32)
    stored = 0
    for piece in data:
        stored = zlib.crc32(np.ascontiguousarray(piece).data, stored)
    return stored | zlib.crc32(times.data) << 32


def cut(text: str, length: int) -> bytes:
    """UTF-8 in at most ``length`` bytes, never half a character."""
    return text.encode("utf-8")[:length].decode("utf-8", "ignore").encode("utf-8")


def lay_out(
    path: Path, ids: Sequence[str], captions: Sequence[tuple[str, ...]], attributes: dict[str, Any], data: str, arrays: Arrays
) -> None:
    """Create an empty cache of these rows. ``arrays`` are those beside the columns that every cache has; ``data`` names the large one."""
    n = len(ids)
    columns: Arrays = {
        "status": ((n,), np.uint8),
        "num_frames": ((n,), np.int16),
        "timestamps": ((n, int(attributes["frames"])), np.float32),
        "bytes": ((n,), np.int64),
        "checksum": ((n,), np.uint64),
        "error": ((n,), f"S{ERROR_BYTES}"),
        "source": ((n,), f"S{SOURCE_BYTES}"),
    }
    small: list[tuple[int, int]] = []
    with h5py.File(path, "w") as file:
        for name, (shape, dtype) in (arrays | columns).items():
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_layout(h5py.h5d.CONTIGUOUS)
            plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # the blocks stay holes on disk, and read as zero
            space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(np.dtype(dtype), logical=True)
            h5py.h5d.create(file.id, name.encode(), kind, space, plist)
            if name != data and np.prod(shape):
                small.append((file[name].id.get_offset(), file[name].id.get_storage_size()))
        file.create_dataset("id", data=list(ids), dtype=_TEXT)
        file.create_dataset("captions", data=[json.dumps(list(c), ensure_ascii=False) for c in captions], dtype=_TEXT)
        file.attrs["schema"] = SCHEMA
        for key, value in attributes.items():
            file.attrs[key] = value
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as raw:  # a hole that a full disk cannot fill would kill the process that marks its rows
            for offset, length in small:
                os.posix_fallocate(raw.fileno(), offset, length)


class Rows:
    """What a cache's rows are, whether one file holds them or a set of shards; the data itself is a subclass's matter."""

    path: Path
    attributes: dict[str, Any]
    ids: list[str]
    captions: list[tuple[str, ...]]
    status: np.ndarray
    num_frames: np.ndarray
    timestamps: np.ndarray
    bytes: np.ndarray
    checksum: np.ndarray
    error: np.ndarray
    source: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def rows(self) -> np.ndarray:
        """The rows that are done, as indices."""
        return np.flatnonzero(self.status == Status.DONE)

    def count(self, status: Status) -> int:
        return int((self.status == status).sum())

    def source_of(self, row: int) -> Path:
        """The video file that a row was decoded from, where it was then."""
        return Path(str(self.attributes["root"]), self.source[row].decode("utf-8"))

    @property
    def label(self) -> str:
        """How messages name it, as ``demo/test``."""
        return f"{self.attributes.get('dataset', '?')}/{self.attributes.get('split', self.path.stem)}"


class CacheFile(Rows):
    """One file. Raises CacheError for a file that is missing, no HDF5, cut off, or no cache of this level."""

    levels: ClassVar[tuple[str, ...]]
    small: ClassVar[tuple[str, ...]] = ()  # arrays of the level beside its data and the columns
    fixed: ClassVar[tuple[str, ...]] = ()  # of these, what is a file's own
    copied: ClassVar[tuple[str, ...]] = ("num_frames", "timestamps", "bytes", "checksum", "error", "source")

    def __init__(self, path: str | Path, *, writable: bool = False) -> None:
        self.path, self.writable = Path(path), writable
        if not self.path.is_file():
            raise CacheError(f"There is no cache {self.path}; make one with: xmafast cache DATASET")
        try:
            with h5py.File(self.path, "r") as file:
                schema = int(file.attrs["schema"])
                if schema != SCHEMA:
                    raise CacheError(f"{self.path} has cache format {schema}, and this version reads {SCHEMA}; cache again.")
                self.attributes = {key: value.item() if isinstance(value, np.generic) else value for key, value in file.attrs.items()}
                self.attributes.setdefault("level", "frames")
                self.attributes.setdefault("codec", "raw")
                level = self.attributes["level"]
                if level not in self.levels:
                    wanted = " or ".join(self.levels)
                    raise CacheError(f"{self.path} holds {level}, and {wanted} are needed here; name a cache of {wanted}.")
                self.ids = [s.decode() for s in file["id"][:]]
                self.captions = [tuple(json.loads(s)) for s in file["captions"][:]]
                self.data_name = self._data_name()
                names = (self.data_name, "status", *self.copied, *self._small())
                maps = {name: (file[name].id.get_offset() or 0, file[name].shape, file[name].dtype) for name in names}
        except CacheError:
            raise
        except OSError as error:
            raise CacheError(f"{self.path} is not an HDF5 file, or a damaged one; delete it and cache again.") from error
        except (KeyError, ValueError) as error:
            raise CacheError(f"{self.path} is an HDF5 file but not a cache of xmafast; name one that `xmafast cache` wrote.") from error
        size = self.path.stat().st_size
        for name, (offset, shape, dtype) in maps.items():
            if offset + int(np.prod(shape)) * dtype.itemsize > size:
                raise CacheError(f"{self.path} is cut off: /{name} ends past the file; delete it and cache again.")
        self.offset = maps[self.data_name][0]
        mode = "r+" if writable else "r"
        self._views: dict[str, np.ndarray] = {}
        for name, (offset, shape, dtype) in maps.items():
            empty = not np.prod(shape)
            self._views[name] = (
                np.zeros(shape, dtype) if empty else np.memmap(self.path, dtype=dtype, mode=mode, offset=offset, shape=shape)  # type: ignore[call-overload]
            )
        self.data = self._views[self.data_name]
        for name in ("status", *self.copied, *self._small()):
            setattr(self, name, self._views[name])

    def _data_name(self) -> str:
        """The large array. Called when ``attributes`` are known."""
        return self.level

    @property
    def level(self) -> str:
        return str(self.attributes["level"])

    def _small(self) -> tuple[str, ...]:
        return self.small

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self.path, self.writable)  # another process maps the file itself, and gets no copy of it

    def place(self, row: int) -> int:
        """Where in the file a row's data begins."""
        return self.offset + row * self.capacity

    @property
    def capacity(self) -> int:
        """Bytes that the data of a row may take."""
        return int(np.prod(self.data.shape[1:])) * self.data.dtype.itemsize

    def stored(self, row: int) -> np.ndarray:
        """What is stored of a row: the data of its real frames."""
        return self.data[row, : int(self.num_frames[row])]

    def intact(self, row: int) -> bool:
        """Whether a row's data and timestamps are still those that were written."""
        n = int(self.num_frames[row])
        return bool(checksum([self.stored(row)], self.timestamps[row, :n]) == int(self.checksum[row]))

    def clear(self, row: int) -> None:
        """Take a row's data away."""
        if self.data[row].any():  # a hole stays a hole: a full disk could not fill it
            self.data[row] = 0
        self.num_frames[row] = 0

    def settings(self) -> dict[str, Any]:
        """What two files must have in common for a row of one to be a row of the other."""
        return {key: self.attributes.get(key) for key in ("frames", "sampling", "size", "codec")}

    def take(self, row: int, donor: CacheFile, its: int, file: int) -> None:
        """Copy a row that is done from another cache of the same settings; ``file`` is this one's, open for writing.

        Written through the file and not through the memory map, where a full disk would be a crash instead of an error.
        """
        self.status[row] = Status.TODO  # first: it may have been done with other data
        write(file, donor.stored(its).tobytes(), self.place(row))
        for name in (*self.copied, *self._small()):
            if name not in self.fixed:
                self._views[name][row] = donor._views[name][its]
        self.status[row] = Status.DONE  # last: a row marked done is whole

    def flush(self) -> None:
        for view in self._views.values():
            if isinstance(view, np.memmap):
                view.flush()


def _reopen(kind: Callable[..., CacheFile], path: Path, writable: bool) -> CacheFile:
    return kind(path, writable=writable)


@contextlib.contextmanager
def written_back(path: Path) -> Iterator[None]:
    """Have the disk take what is written to a file while the work goes on, so that little of it is left to wait for at the end."""
    stop, file = threading.Event(), os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))

    def sync() -> None:
        while not stop.wait(SYNC_EVERY):
            with contextlib.suppress(OSError):  # a full disk shows itself to the writers
                os.fsync(file)

    thread = threading.Thread(target=sync, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        os.close(file)


@contextlib.contextmanager
def opened(path: Path, full: str) -> Iterator[int]:
    """A file open for writing rows. Raises CacheError, which begins with ``full``, where the disk is full."""
    file = os.open(path, os.O_WRONLY | getattr(os, "O_BINARY", 0))
    try:
        yield file
    except OSError as error:
        if error.errno in FULL:
            raise CacheError(f"{full}. Make room, and repeat the command.") from error
        raise
    finally:
        os.close(file)


def write(file: int, data: Buffer, offset: int) -> None:
    """All of ``data`` at a place of an open file. Raises OSError where the disk is full."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
