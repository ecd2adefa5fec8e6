"""Building a frame cache: what is there already stays, what is missing is tried again, a killed run goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from xmafast import __version__
from xmafast.cache.decode import resolve_decoder
from xmafast.cache.frames import ERROR_BYTES, SOURCE_BYTES, FrameCache, Status, create
from xmafast.cache.lock import locked
from xmafast.cache.pool import Job, Target, decode_all
from xmafast.datasets import Split, Video
from xmafast.errors import CacheError


@dataclass
class Summary:
    """What one build did: rows decoded now, rows present before, rows without a file, rows that failed, with reasons."""

    path: Path
    done: int = 0
    present: int = 0
    missing: int = 0
    failed: int = 0
    problems: list[tuple[str, str, str]] = field(default_factory=list)  # (id, "missing" or "failed", reason)


def build_cache(
    split: Split,
    path: str | Path,
    *,
    frames: int = 12,
    sampling: str = "fps",
    size: int = 224,
    decoder: str = "auto",
    workers: int | None = None,
    time_limit: float = 60.0,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Decode a split's videos into the frame cache ``path``.

    frames, sampling, size: see ``xmafast.cache.decode``. workers: decode processes, one per core by default. time_limit: seconds
    for one video. limit: only the first videos of the split; a cache that holds more of them keeps the rest. progress: called
    with (videos tried, videos to try) after each.

    Rows that are done are kept; failed and missing ones, and those whose file has another size now, are tried again. While rows
    are open the file is named ``PATH.partial``. Raises CacheError where ``path`` holds frames of other settings, where another
    process is writing it, and where the disk is full.
    """
    path = Path(path)
    split = replace(split, videos=split.videos[:limit])
    name, decoder_version = resolve_decoder(decoder)
    settings: dict[str, object] = {"frames": frames, "sampling": sampling, "size": size}
    attributes = {
        **settings,
        "dataset": split.dataset,
        "split": split.name,
        "root": str(split.root.absolute()),
        "decoder": name,
        "decoder_version": decoder_version,
        "xmafast_version": __version__,
        "source_sha256": _fingerprint(split),
        "captions_per_epoch": split.captions_per_epoch,
        "epochs": split.epochs,
        "batch_size": split.batch_size,
        "train_frames": split.train_frames,
        "lr": split.lr,
        "default_backbone": split.default_backbone,
        "default_pretrained": split.default_pretrained,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    crew = workers or os.cpu_count() or 1
    with locked(path):
        return _build(path, split, settings, attributes, limited=limit is not None, workers=crew, time_limit=time_limit, progress=progress)


def _build(
    path: Path,
    split: Split,
    settings: dict[str, object],
    attributes: dict[str, object],
    *,
    limited: bool,
    workers: int,
    time_limit: float,
    progress: Callable[[int, int], None] | None,
) -> Summary:
    partial = path.with_name(path.name + ".partial")
    cache, reused = _open_or_create(path, partial, split, settings, attributes, limited=limited)
    summary = Summary(path)
    jobs = []
    for row, video in enumerate(split.videos):
        found = video.path is not None and video.path.is_file()
        size_now = video.path.stat().st_size if found and video.path is not None else -1
        if cache.status[row] == Status.DONE and (not found or size_now == cache.bytes[row]):
            summary.present += 1  # a decoded video may be deleted: the cache is what is kept
        elif not found:
            cache.status[row] = Status.MISSING
            summary.missing += 1
            summary.problems.append((video.id, "missing", f"no file for it under {split.root}"))
        else:
            assert video.path is not None
            cache.status[row], cache.bytes[row] = Status.TODO, size_now
            jobs.append(Job(row, video.path, video.interval))

    _check_room(cache, len(jobs), path.parent)
    if progress:
        progress(0, len(jobs))
    target = Target(cache.path, cache.offset, cache.shape, {**settings, "decoder": attributes["decoder"]})
    crew = min(workers, max(1, len(jobs)))
    if jobs:
        for tried, done in enumerate(decode_all(jobs, target, workers=crew, time_limit=time_limit), 1):
            if done.timestamps is not None:
                n = len(done.timestamps)
                cache.num_frames[done.row] = n
                cache.timestamps[done.row] = 0
                cache.timestamps[done.row, :n] = done.timestamps
                cache.checksum[done.row] = done.checksum
                cache.error[done.row] = b""
                cache.source[done.row] = _cut(_source(split.videos[done.row], split.root), SOURCE_BYTES)
                cache.status[done.row] = Status.DONE  # last: a row marked done is whole
                summary.done += 1
            else:
                if cache.frames[done.row].any():  # a hole stays a hole: a full disk could not fill it
                    cache.frames[done.row] = 0
                cache.num_frames[done.row] = 0
                cache.error[done.row] = _cut(done.error, ERROR_BYTES)
                cache.status[done.row] = Status.FAILED
                summary.failed += 1
                summary.problems.append((split.videos[done.row].id, "failed", done.error))
            if progress:
                progress(tried, len(jobs))
    order = {video.id: i for i, video in enumerate(split.videos)}
    summary.problems.sort(key=lambda problem: order[problem[0]])
    for view in (cache.frames, cache.num_frames, cache.timestamps, cache.bytes, cache.checksum, cache.error, cache.source, cache.status):
        if isinstance(view, np.memmap):
            view.flush()
    if not reused:
        partial.replace(path)
    return summary


def _open_or_create(
    path: Path, partial: Path, split: Split, settings: dict[str, object], attributes: dict[str, object], *, limited: bool
) -> tuple[FrameCache, bool]:
    """The writable cache to work on, and whether it is the finished file itself (else its partial)."""
    ids = [video.id for video in split.videos]
    twice = [i for i, n in Counter(ids).items() if n > 1]
    if twice:
        raise CacheError(f"{split.dataset}/{split.name} lists {twice[0]!r} more than once; every video needs an id of its own.")
    old: FrameCache | None = None
    for existing in (partial, path):
        if not existing.is_file():
            continue
        try:
            cache = FrameCache(existing, writable=True)
        except CacheError:
            if existing is path:
                raise
            existing.unlink()  # killed while its layout was being written: nothing is lost
            continue
        other = [f"{key} {cache.attributes.get(key)}" for key, value in settings.items() if cache.attributes.get(key) != value]
        if other:
            asked = ", ".join(f"{key} {value}" for key, value in settings.items())
            raise CacheError(f"{existing} was cached with {', '.join(other)}, and now {asked} is asked; name another --out, or delete it.")
        if cache.ids != ids and cache.attributes.get("root") != attributes["root"]:
            raise CacheError(
                f"{existing} was cached from {cache.attributes.get('root')}, and now {attributes['root']} is asked; "
                "name another --out, or delete it."
            )
        n = len(ids) if limited else len(cache.ids)
        if cache.ids[:n] == ids and cache.captions[:n] == [video.captions for video in split.videos]:
            return cache, existing is path
        old = old or cache
    scratch = partial.with_name(partial.name + ".new")
    create(scratch, ids, [video.captions for video in split.videos], attributes)
    cache = FrameCache(scratch, writable=True)
    donors = [*([old] if old else []), *_siblings(path, settings, attributes["root"])]
    _check_room(cache, min(len(ids), sum(len(donor.rows) for donor in donors)), path.parent)
    for donor in donors:  # the list of videos, or their splits, have changed: rows of the same id move over, the rest is todo
        row_of = {i: row for row, i in enumerate(donor.ids)}
        for row, i in enumerate(ids):
            if (was := row_of.get(i)) is not None and donor.status[was] == Status.DONE != cache.status[row]:
                cache.frames[row] = donor.frames[was]
                cache.num_frames[row], cache.timestamps[row] = donor.num_frames[was], donor.timestamps[was]
                cache.bytes[row], cache.source[row], cache.checksum[row] = donor.bytes[was], donor.source[was], donor.checksum[was]
                cache.status[row] = Status.DONE
    scratch.replace(partial)
    return FrameCache(partial, writable=True), False


def _siblings(path: Path, settings: dict[str, object], root: object) -> list[FrameCache]:
    """The caches beside ``path`` of the same videos' folder and settings: other splits, between which a video may have moved."""
    found = []
    for file in sorted(path.parent.glob("*.h5")):
        with contextlib.suppress(CacheError):
            cache = FrameCache(file)
            if file != path and cache.attributes.get("root") == root and all(cache.attributes.get(k) == v for k, v in settings.items()):
                found.append(cache)
    return found


def _check_room(cache: FrameCache, rows: int, folder: Path) -> None:
    """Raise CacheError before the first frame where the disk cannot hold what is to come: the file is full of holes until then."""
    need, free = rows * int(np.prod(cache.shape[1:])), shutil.disk_usage(folder).free
    if need > free:
        raise CacheError(
            f"{rows} videos need {need / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free; "
            "make room, or cache elsewhere with --out, fewer --frames or a smaller --size."
        )


def _source(video: Video, root: Path) -> str:
    if video.path is None:
        return ""
    return str(video.path.relative_to(root)) if video.path.is_relative_to(root) else str(video.path)


def _cut(text: str, length: int) -> bytes:
    """UTF-8 in at most ``length`` bytes, never half a character."""
    return text.encode("utf-8")[:length].decode("utf-8", "ignore").encode("utf-8")


def _fingerprint(split: Split) -> str:
    """sha256 of which videos and captions the cache was made from."""
    rows = [[video.id, _source(video, split.root), list(video.captions), video.interval] for video in split.videos]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode("utf-8")).hexdigest()
