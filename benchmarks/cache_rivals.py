"""Other ways to keep decoded frames, each read into one batch that is allocated before.

A rival writes the frames of all videos, uint8 (N, F, H, W, 3), into a folder of its own, and opens that folder as a function that
reads an epoch: the rows of each batch -> for each batch its rows and their frames (B, F, H, W, 3).
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

Epoch = Callable[[list[np.ndarray]], Iterator[tuple[np.ndarray, np.ndarray]]]
QUALITY = 95  # PIL's JPEG, colours at half the resolution
SHARD, SHUFFLED = 50, 64  # videos of a tar file, and of WebDataset's shuffle buffer


@dataclass(frozen=True)
class Rival:
    name: str
    lossless: bool
    write: Callable[[np.ndarray, Path], None]
    open: Callable[[Path, np.ndarray], Epoch]  # the folder, and a batch's array, which is filled again and again
    needs: str | None = None

    @property
    def missing(self) -> bool:
        return self.needs is not None and importlib.util.find_spec(self.needs) is None


def _jpeg(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _each_row(out: np.ndarray, fill: Callable[[np.ndarray, int], None]) -> Epoch:
    """An epoch of a store that finds any row: ``fill`` puts one into its place in the batch."""

    def epoch(batches: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows in batches:
            for place, row in zip(out, rows.tolist(), strict=False):
                fill(place, row)
            yield rows, out[: len(rows)]

    return epoch


def _write_folder(frames: np.ndarray, folder: Path) -> None:
    for row, video in enumerate(frames):
        (folder / f"{row:06d}").mkdir()
        for i, frame in enumerate(video):
            (folder / f"{row:06d}" / f"{i:02d}.jpg").write_bytes(_jpeg(frame))


def _open_folder(folder: Path, out: np.ndarray) -> Epoch:
    def fill(place: np.ndarray, row: int) -> None:
        for i, frame in enumerate(place):
            with Image.open(folder / f"{row:06d}" / f"{i:02d}.jpg") as image:
                frame[:] = image

    return _each_row(out, fill)


def _write_lmdb(values: Iterator[tuple[bytes, bytes]], total: int, folder: Path) -> None:
    import lmdb

    with lmdb.open(str(folder), map_size=2 * total + 2**26) as store, store.begin(write=True) as transaction:
        for key, value in values:
            transaction.put(key, value)


def _open_lmdb(folder: Path, out: np.ndarray, fill: Callable[[Callable[[bytes], memoryview], np.ndarray, int], None]) -> Epoch:
    import lmdb

    store = lmdb.open(str(folder), readonly=True, lock=False, readahead=False)
    transaction = store.begin(buffers=True)  # values are views of the memory map, no copies
    return _each_row(out, lambda place, row: fill(transaction.get, place, row))


def _write_raw_lmdb(frames: np.ndarray, folder: Path) -> None:
    _write_lmdb(((b"%06d" % row, video.tobytes()) for row, video in enumerate(frames)), frames.nbytes, folder)


def _open_raw_lmdb(folder: Path, out: np.ndarray) -> Epoch:
    def fill(get: Callable[[bytes], memoryview], place: np.ndarray, row: int) -> None:
        np.copyto(place, np.frombuffer(get(b"%06d" % row), np.uint8).reshape(place.shape))

    return _open_lmdb(folder, out, fill)


def _write_jpeg_lmdb(frames: np.ndarray, folder: Path) -> None:
    values = ((b"%06d/%02d" % (row, i), _jpeg(frame)) for row, video in enumerate(frames) for i, frame in enumerate(video))
    _write_lmdb(values, frames.nbytes, folder)


def _open_jpeg_lmdb(folder: Path, out: np.ndarray) -> Epoch:
    def fill(get: Callable[[bytes], memoryview], place: np.ndarray, row: int) -> None:
        for i, frame in enumerate(place):
            frame[:] = Image.open(io.BytesIO(get(b"%06d/%02d" % (row, i))))

    return _open_lmdb(folder, out, fill)


def _write_tars(frames: np.ndarray, folder: Path) -> None:
    import webdataset

    with webdataset.ShardWriter(str(folder / "%04d.tar"), maxcount=SHARD, verbose=0) as shards:
        for row, video in enumerate(frames):
            shards.write({"__key__": f"{row:06d}", "bin": video.tobytes()})


def _open_tars(folder: Path, out: np.ndarray) -> Epoch:
    """Shards and a buffer are shuffled, as WebDataset does it: it reads in order and cannot look for a row."""
    import webdataset

    shards = sorted(map(str, folder.glob("*.tar")))

    def epoch(batches: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        samples = iter(webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(SHUFFLED))
        for size in map(len, batches):
            rows = []
            for place, sample in zip(out[:size], samples, strict=False):  # the array first: it ends before a sample is taken
                np.copyto(place, np.frombuffer(sample["bin"], np.uint8).reshape(place.shape))
                rows.append(int(sample["__key__"]))
            yield np.array(rows), out[:size]

    return epoch


RIVALS = (
    Rival("LMDB, raw", True, _write_raw_lmdb, _open_raw_lmdb, "lmdb"),
    Rival("WebDataset, raw", True, _write_tars, _open_tars, "webdataset"),
    Rival("LMDB, JPEG q95", False, _write_jpeg_lmdb, _open_jpeg_lmdb, "lmdb"),
    Rival("folder, JPEG q95", False, _write_folder, _open_folder),
)
