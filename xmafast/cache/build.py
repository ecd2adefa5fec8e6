"""Building a frame cache: what is there already stays, what is missing is tried again, a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from xmafast import __version__
from xmafast.cache.decode import resolve_decoder
from xmafast.cache.file import ERROR_BYTES, SOURCE_BYTES, Status, cut, written_back
from xmafast.cache.frames import CODECS, FrameCache, create, pack, row_capacity
from xmafast.cache.lock import locked
from xmafast.cache.pool import Job, Target, decode_all
from xmafast.cache.renew import Summary, check_room, renewed
from xmafast.cache.shards import Shard
from xmafast.datasets import Split, Video
from xmafast.errors import CacheError, unknown

JPEG_SHARE = 6  # raw bytes for one of JPEG, at least; real videos have 8 to 14


def build_cache(
    split: Split,
    path: str | Path,
    *,
    frames: int = 12,
    sampling: str = "fps",
    size: int = 224,
    codec: str = "raw",
    decoder: str = "auto",
    shard: Shard | None = None,
    workers: int | None = None,
    time_limit: float = 60.0,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Decode a split's videos into the frame cache ``path``.

    frames, sampling, size: see ``xmafast.cache.decode``. codec: ``raw``, or ``jpeg``, smaller on disk and slower to
    read. shard: only every N-th video, into ``shard.path(path)``; ``merge`` joins the shards. workers: decode processes, one per core
    by default. time_limit: seconds for one video. limit: only the first videos of the split; a cache that holds more of them keeps
    the rest. progress: called with (videos tried, videos to try) after each.

    Rows that are done are kept; failed and missing ones, and those whose file has another size now, are tried again. While rows
    are open the file is named ``PATH.partial``. Raises CacheError where ``path`` holds frames of other settings, where another
    process is writing it, and where the disk is full.
    """
    if codec not in CODECS:
        raise unknown("codec", codec, CODECS)
    path = Path(path) if shard is None else shard.path(Path(path))
    split = replace(split, videos=split.videos[:limit])
    total, listed = len(split.videos), _sha256([[video.id, list(video.captions), video.interval] for video in split.videos])
    if shard is not None:
        split = replace(split, videos=[split.videos[row] for row in shard.rows(len(split.videos))])
    name, decoder_version = resolve_decoder(decoder)
    settings: dict[str, object] = {"frames": frames, "sampling": sampling, "size": size, "codec": codec}
    attributes = {
        **settings,
        "dataset": split.dataset,
        "split": split.name,
        "root": str(split.root.absolute()),
        "decoder": name,
        "decoder_version": decoder_version,
        "xmafast_version": __version__,
        "source_sha256": _sha256([[v.id, _source(v, split.root), list(v.captions), v.interval] for v in split.videos]),
        "captions_per_epoch": split.captions_per_epoch,
        "epochs": split.epochs,
        "batch_size": split.batch_size,
        "train_frames": split.train_frames,
        "lr": json.dumps(dict(split.lr)),
        "default_backbone": split.default_backbone,
        "default_pretrained": split.default_pretrained,
    }
    if shard is not None:
        attributes |= {"shard": f"{shard.index}/{shard.count}", "list_videos": total, "list_sha256": listed}
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
    ids = [video.id for video in split.videos]
    twice = [i for i, n in Counter(ids).items() if n > 1]
    if twice:
        raise CacheError(f"{split.dataset}/{split.name} lists {twice[0]!r} more than once; every video needs an id of its own.")

    def lay_out(scratch: Path, ids: Sequence[str], captions: Sequence[tuple[str, ...]]) -> None:
        create(scratch, ids, captions, attributes)

    def fixed(cache: FrameCache) -> bool:
        return cache.packed and bool(_plan(cache, split, Summary(path)))

    captions = [video.captions for video in split.videos]
    cache, reused = renewed(FrameCache, path, ids, captions, attributes, settings, lay_out, limited=limited, fixed=fixed)
    summary = Summary(path)
    jobs = _plan(cache, split, summary)
    raw = row_capacity(cache.shape[1], cache.shape[2], "raw")
    each = raw if cache.codec == "raw" else raw // JPEG_SHARE
    check_room(len(jobs) * each, len(jobs), path.parent, "or cache elsewhere with --out, fewer --frames or a smaller --size")
    if progress:
        progress(0, len(jobs))
    sampled = {key: settings[key] for key in ("frames", "sampling", "size")}
    target = Target(cache.path, cache.offset, cache.capacity, cache.codec, {**sampled, "decoder": attributes["decoder"]})
    crew = min(workers, max(1, len(jobs)))
    with written_back(cache.path):
        for tried, done in enumerate(decode_all(jobs, target, workers=crew, time_limit=time_limit) if jobs else (), 1):
            if done.timestamps is not None:
                n = len(done.timestamps)
                cache.num_frames[done.row] = n
                cache.timestamps[done.row] = 0
                cache.timestamps[done.row, :n] = done.timestamps
                cache.checksum[done.row] = done.checksum
                cache.error[done.row] = b""
                cache.source[done.row] = cut(_source(split.videos[done.row], split.root), SOURCE_BYTES)
                if done.lengths is not None:
                    cache.lengths[done.row] = 0
                    cache.lengths[done.row, :n] = done.lengths
                cache.status[done.row] = Status.DONE  # last: a row marked done is whole
                summary.done += 1
            else:
                cache.clear(done.row)
                cache.error[done.row] = cut(done.error, ERROR_BYTES)
                cache.status[done.row] = Status.FAILED
                summary.failed += 1
                summary.problems.append((split.videos[done.row].id, "failed", done.error))
            if progress:
                progress(tried, len(jobs))
    order = {video.id: i for i, video in enumerate(split.videos)}
    summary.problems.sort(key=lambda problem: order[problem[0]])
    cache.flush()
    if not reused:
        finish(cache, path)
    return summary


def finish(cache: FrameCache, path: Path) -> None:
    """Give a partial file its name; a jpeg one is packed on the way."""
    if cache.codec == "raw":
        cache.path.replace(path)
        return
    packed = path.with_name(path.name + ".packed")
    pack(cache, packed)
    packed.replace(path)
    cache.path.unlink()


def _plan(cache: FrameCache, split: Split, summary: Summary) -> list[Job]:
    """What is to be decoded; counts the rest in ``summary``."""
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
    return jobs


def _source(video: Video, root: Path) -> str:
    if video.path is None:
        return ""
    return str(video.path.relative_to(root)) if video.path.is_relative_to(root) else str(video.path)


def _sha256(rows: list[list[object]]) -> str:
    """Of which videos and captions a cache was made from."""
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode("utf-8")).hexdigest()
