"""Several files that hold one split: shard I of N has every N-th row from the I-th on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xmafast.cache.file import CacheFile
from xmafast.cache.frames import FrameCache, FrameReader
from xmafast.errors import CacheError, UsageError

_NAME = re.compile(r"^(?P<split>.+)\.shard-(?P<index>\d+)-of-(?P<count>\d+)$")


@dataclass(frozen=True, order=True)
class Shard:
    """One of ``count`` parts of a split, counted from 1."""

    index: int
    count: int

    @staticmethod
    def parse(text: str) -> Shard:
        """``3/16``. Raises UsageError for anything else."""
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"--shard {text!r} is not I/N with I from 1 to N, as 3/16.")
        return Shard(int(found[1]), int(found[2]))

    def rows(self, total: int) -> np.ndarray:
        return np.arange(self.index - 1, total, self.count)

    def path(self, whole: Path) -> Path:
        """``train.h5`` -> ``train.shard-03-of-16.h5``."""
        digits = max(2, len(str(self.count)))
        return whole.with_name(f"{whole.stem}.shard-{self.index:0{digits}}-of-{self.count:0{digits}}.h5")


def shard_of(path: Path) -> tuple[str, Shard] | None:
    """(split, shard) of a shard's file name; None for another file."""
    found = _NAME.match(path.stem)
    return (found["split"], Shard(int(found["index"]), int(found["count"]))) if found and path.suffix == ".h5" else None


def split_of(path: Path) -> str:
    """The split whose rows a file holds, by its name."""
    found = shard_of(path)
    return found[0] if found else path.stem


def shards_of(whole: Path, *, all_of_them: bool = True) -> list[Path]:
    """The finished shards beside ``train.h5`` (there or not), in order; all of one count.

    Raises CacheError where some are missing, unless not all of them are asked for, and where shards of several counts lie there.
    """
    found = {
        shard: file for file in whole.parent.glob("*.h5") if (named := shard_of(file)) and named[0] == whole.stem for shard in (named[1],)
    }
    counts = sorted({shard.count for shard in found})
    if not counts:
        return []
    if len(counts) > 1:
        raise CacheError(f"{whole.parent} holds shards of {counts[0]} and of {counts[1]} of {whole.stem}; delete those that are not meant.")
    missing = [f"{i}/{counts[0]}" for i in range(1, counts[0] + 1) if Shard(i, counts[0]) not in found]
    if missing and all_of_them:
        others = missing[0] if len(missing) == 1 else f"{missing[0]} and {len(missing) - 1} more"
        raise CacheError(
            f"{whole.parent} holds {len(found)} of {counts[0]} shards of {whole.stem}; repeat the `xmafast cache` command that made "
            f"them with --shard {others}."
        )
    return [found[shard] for shard in sorted(found)]


def check_alike(parts: Sequence[CacheFile]) -> None:
    """Raise CacheError unless the shards were made with the same settings from the same list."""
    first = parts[0]
    for part in parts[1:]:
        for key in ("level", *first.settings(), "root", "list_sha256", "backbone_sha256", "block"):
            if part.attributes.get(key) != first.attributes.get(key):
                raise CacheError(
                    f"{part.path} and {first.path} differ in {key} ({part.attributes.get(key)} and {first.attributes.get(key)}); "
                    "make one of them again."
                )


def without_shard(parts: Sequence[CacheFile]) -> dict[str, Any]:
    """The attributes of a whole set of shards."""
    kept = {key: value for key, value in parts[0].attributes.items() if key not in ("shard", "list_videos", "list_sha256", "packed")}
    if "source_sha256" in kept:
        every = "".join(str(part.attributes["source_sha256"]) for part in parts)
        kept["source_sha256"] = hashlib.sha256(every.encode()).hexdigest()
    return kept


class ShardedFrames(FrameReader):
    """The frames of a whole set of shards, read as one cache in the order of the split's list."""

    def __init__(self, whole: Path, files: Sequence[Path]) -> None:
        self.path = whole
        self.parts = [FrameCache(file) for file in files]
        check_alike(self.parts)
        self.attributes = without_shard(self.parts)
        n = len(self.parts)
        total = sum(len(part) for part in self.parts)
        self.ids = [self.parts[row % n].ids[row // n] for row in range(total)]
        self.captions = [self.parts[row % n].captions[row // n] for row in range(total)]
        for name in ("status", *FrameCache.copied):
            whole_column = np.empty((total, *getattr(self.parts[0], name).shape[1:]), getattr(self.parts[0], name).dtype)
            for i, part in enumerate(self.parts):
                whole_column[i::n] = getattr(part, name)
            setattr(self, name, whole_column)

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardedFrames, (self.path, [part.path for part in self.parts])

    def frames_of(self, row: int) -> np.ndarray:
        return self.parts[row % len(self.parts)].frames_of(row // len(self.parts))

    def fill(self, rows: np.ndarray, out: np.ndarray) -> None:
        n = len(self.parts)
        for i, row in enumerate(rows):
            self.parts[int(row) % n].fill(np.array([int(row) // n]), out[i : i + 1])


class Part(FrameReader):
    """One shard's rows of frames that lie in one file."""

    def __init__(self, whole: FrameReader, shard: Shard) -> None:
        self.path, self.whole = shard.path(whole.path), whole
        self.attributes = {**whole.attributes, "shard": f"{shard.index}/{shard.count}", "list_videos": len(whole)}
        self.kept = shard.rows(len(whole))
        self.ids, self.captions = ([values[row] for row in self.kept] for values in (whole.ids, whole.captions))
        for name in ("status", *FrameCache.copied):
            setattr(self, name, getattr(whole, name)[self.kept])

    def frames_of(self, row: int) -> np.ndarray:
        return self.whole.frames_of(int(self.kept[row]))

    def fill(self, rows: np.ndarray, out: np.ndarray) -> None:
        self.whole.fill(self.kept[rows], out)


def files_of(folder: Path) -> list[Path]:
    """The finished cache files of a folder, or the one that was named. Raises CacheError where there is none."""
    if folder.is_file() or folder.suffix == ".h5":
        return [folder]
    files = sorted(folder.glob("*.h5")) if folder.is_dir() else []
    if not files:
        unfinished = " (a caching was interrupted there; repeat it)" if folder.is_dir() and any(folder.glob("*.partial")) else ""
        raise CacheError(f"{folder} holds no cache{unfinished}; make one with: xmafast cache DATASET")
    return files


def open_splits(folder: Path) -> dict[str, FrameReader]:
    """The frame caches of a data set's folder by split, or the one of a ``.h5`` file; a set of shards is read as one.

    Raises CacheError where there is none, and where a set of shards is not complete.
    """
    files = files_of(folder)
    if files == [folder]:
        parts = [] if folder.is_file() else shards_of(folder)
        cache = ShardedFrames(folder, parts) if parts else FrameCache(folder)
        return {str(cache.attributes.get("split", folder.stem)): cache}
    found: dict[str, FrameReader] = {}
    for split in sorted({split_of(file) for file in files}):
        whole = folder / f"{split}.h5"
        reader = FrameCache(whole) if whole in files else ShardedFrames(whole, shards_of(whole))
        found[str(reader.attributes.get("split", split))] = reader
    return found


def open_part(folder: Path, shard: Shard) -> dict[str, FrameReader]:
    """One shard's rows of the frames in a folder by split, from a file of their own or out of the whole one."""
    found: dict[str, FrameReader] = {}
    for name in sorted({split_of(file) for file in files_of(folder)}):
        whole = folder / f"{name}.h5"
        if shard.path(whole).is_file():
            found[name] = FrameCache(shard.path(whole))
        elif whole.is_file():
            found[name] = Part(FrameCache(whole), shard)
    return found
