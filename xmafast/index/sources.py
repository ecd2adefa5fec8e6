"""Where a library's items come from: a folder of files, or a cache that has been decoded already."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from xmafast.cache import FrameCache, FrameReader, build_cache, open_splits
from xmafast.cache.shards import files_of
from xmafast.datasets.base import Split, Video, brief, find_files, own_file
from xmafast.errors import CacheError, DataError
from xmafast.files import IMAGES

RAW_BATCH = 2**29  # bytes of frames that are decoded before they are encoded
Progress = Callable[[int, int], None]


class Frames(NamedTuple):
    """The decoded frames of an item, (n, H, W, 3) uint8, and their seconds (n,)."""

    images: np.ndarray
    times: np.ndarray


@dataclass(frozen=True)
class Entry:
    """What a source has now. hash: of the content, where it costs nothing to know; split, captions: of a cache."""

    id: str
    source: str
    size: int
    mtime: int
    hash: str = ""
    split: str = ""
    captions: tuple[str, ...] = ()


class Source(Protocol):
    """Attributes: ``root``, ``kind`` (``folder`` or ``cache``), ``settings`` that decide what frames are taken."""

    root: Path
    kind: str
    settings: dict[str, Any]

    def scan(self) -> tuple[list[Entry], dict[str, str]]:
        """What is there, in the order of ids, and what cannot be an item (id -> reason)."""

    def digest(self, entry: Entry) -> str:
        """A hash of an entry's content."""

    def frames(self, entries: Sequence[Entry], work: Path) -> Iterator[tuple[Entry, Frames | str]]:
        """The frames of each, or why it has none, in no fixed order. work: a folder that may be filled, and is taken away later."""


def media(root: Path) -> list[Path]:
    """The videos and images below a folder. Raises DataError where there is no such folder, or nothing in it."""
    if not root.is_dir():
        state = "is a file, not a folder" if root.is_file() else "does not exist"
        raise DataError(f"{root} {state}; name a folder of videos and images, or a cache. Nothing was changed.")
    if not (found := find_files(root)):
        raise DataError(f"{root} holds no videos and no images; name a folder that does. Nothing was changed.")
    return found


@dataclass
class FolderSource:
    """Every video and image below a folder, decoded by the frame cache's own workers."""

    root: Path
    settings: dict[str, Any]  # frames, sampling, size
    decoder: str = "auto"
    workers: int | None = None
    time_limit: float = 60.0
    kind: str = "folder"

    def scan(self) -> tuple[list[Entry], dict[str, str]]:
        entries, odd = [], {}
        for path in media(self.root):
            name = path.relative_to(self.root).as_posix()
            try:
                own_file(path, self.root, self.root)
                about = path.stat()
            except DataError:
                link = path.is_symlink() and not any(c < " " or "\ud800" <= c <= "\udfff" for c in name)
                odd[brief(name)] = "it is a link that leaves the folder" if link else "its name is no text that an index can hold"
                continue
            except OSError as error:
                odd[brief(name)] = f"it cannot be read ({error.strerror})"
                continue
            entries.append(Entry(name, name, about.st_size, about.st_mtime_ns))
        return sorted(entries, key=lambda entry: entry.id), odd

    def digest(self, entry: Entry) -> str:
        """sha256 of the bytes, apart for videos and images: it is the name that says which of them a file is taken for."""
        digest = hashlib.sha256(b"image" if Path(entry.id).suffix.lower() in IMAGES else b"video")
        with (self.root / entry.source).open("rb") as file:
            while piece := file.read(2**20):
                digest.update(piece)
        return digest.hexdigest()[:32]

    def frames(self, entries: Sequence[Entry], work: Path) -> Iterator[tuple[Entry, Frames | str]]:
        each = int(self.settings["frames"]) * int(self.settings["size"]) ** 2 * 3
        step = max(1, min(512, RAW_BATCH // each))
        for start in range(0, len(entries), step):
            yield from self._decoded(entries[start : start + step], work)

    def _decoded(self, entries: Sequence[Entry], work: Path) -> Iterator[tuple[Entry, Frames | str]]:
        # a folder of its own: a decode worker that outlives a killed update for a moment may still write to the name that it was given
        work.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=work))
        videos = [Video(entry.id, self.root / entry.source) for entry in entries]
        path = folder / "frames.h5"
        options: dict[str, Any] = {"decoder": self.decoder, "workers": self.workers, "time_limit": self.time_limit}
        summary = build_cache(Split("library", "frames", self.root, videos), path, **self.settings, **options)
        reasons = {name: reason for name, _, reason in summary.problems}
        cache = FrameCache(path)
        for row, entry in enumerate(entries):
            yield entry, reasons[entry.id] if entry.id in reasons else frames_of(cache, row)
        shutil.rmtree(folder, ignore_errors=True)


class CacheSource:
    """The decoded rows of a frame cache, all of its splits; an item's id is ``SPLIT/ID``."""

    kind = "cache"

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            self.caches: dict[str, FrameReader] = open_splits(root)
        except CacheError as error:
            raise CacheError(f"{error} Nothing was changed.") from error
        first = next(iter(self.caches.values())).attributes
        self.settings = {key: first.get(key) for key in ("frames", "sampling", "size")}
        self._rows: dict[str, tuple[FrameReader, int]] = {}

    def scan(self) -> tuple[list[Entry], dict[str, str]]:
        entries = []
        for split, cache in self.caches.items():
            for row in cache.rows.tolist():
                name = f"{split}/{cache.ids[row]}"
                self._rows[name] = (cache, row)
                file = cache.source_of(row)
                try:
                    about = file.stat()
                    size, mtime = about.st_size, about.st_mtime_ns
                except OSError:  # the video may be gone: the cache is what is kept
                    size, mtime = int(cache.bytes[row]), 0
                stamp = f"{int(cache.checksum[row]):016x}-{cache.attributes.get('size')}-{int(cache.num_frames[row])}"
                entries.append(Entry(name, str(file), size, mtime, stamp, split, cache.captions[row]))
        if not entries:
            raise CacheError(f"{self.root} holds no decoded video; repeat the `xmafast cache` command. Nothing was changed.")
        return sorted(entries, key=lambda entry: entry.id), {}

    def digest(self, entry: Entry) -> str:
        return entry.hash

    def frames(self, entries: Sequence[Entry], work: Path) -> Iterator[tuple[Entry, Frames | str]]:
        for entry in entries:
            try:
                yield entry, frames_of(*self._rows[entry.id])
            except CacheError as error:
                yield entry, str(error)


def frames_of(cache: FrameReader, row: int) -> Frames:
    return Frames(np.array(cache.frames_of(row)), np.array(cache.timestamps[row, : int(cache.num_frames[row])]))


def holds_cache(path: Path) -> bool:
    """Whether a path is a cache, and not a folder of videos."""
    return path.suffix == ".h5" or (path.is_dir() and any(path.glob("*.h5")) and bool(files_of(path)))


def read_frames(
    path: str | Path, *, frames: int = 12, sampling: str = "fps", size: int = 224, decoder: str = "auto", time_limit: float = 60.0
) -> np.ndarray:
    """The frames (n, size, size, 3) uint8 of one video or image, decoded in a process of its own under a time limit.

    Raises DataError, with the reason, for a file that is missing or cannot be decoded.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no file {path}; name an image or a clip that is there.")
    with tempfile.TemporaryDirectory(prefix="xmafast-") as folder:
        split = Split("query", "query", path.parent, [Video("query", path)])
        cache = Path(folder) / "query.h5"
        options: dict[str, Any] = {"frames": frames, "sampling": sampling, "size": size, "decoder": decoder}
        summary = build_cache(split, cache, workers=1, time_limit=time_limit, **options)
        if summary.problems:
            raise DataError(f"{path} cannot be searched by: {summary.problems[0][2]}.")
        return np.array(FrameCache(cache).frames_of(0))


def thumbnails(images: np.ndarray, size: int, quality: int = 78) -> list[bytes]:
    """A small JPEG of each frame."""
    import io

    from PIL import Image

    found = []
    for image in images:
        small = Image.fromarray(image)
        if small.width > size:
            small = small.resize((size, size), Image.Resampling.BICUBIC)
        data = io.BytesIO()
        small.save(data, "JPEG", quality=quality)
        found.append(data.getvalue())
    return found


def same_place(a: str, b: Path) -> bool:
    return os.path.realpath(a) == os.path.realpath(b)
