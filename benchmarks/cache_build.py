"""How fast a cache is built, against the same videos decoded by other readers that keep nothing."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import cache_decoders as decoders
import numpy as np
from measure import summary, turns

from xmafast.cache import FrameCache, build_cache
from xmafast.cache.decode import resolve_decoder
from xmafast.datasets import Split, Video

OURS = "build_cache"
COMPARED = 8  # videos whose frames are compared one by one; of all others the number of frames
TOLERANCE = 1.0  # mean difference of a frame in levels of 255: other builds of FFmpeg round colours in another way
STARTED = 0.1  # the share of videos after which the steady rate is counted


def measure_build(case: str, paths: list[Path], options: dict, work: Path, workers: int, rounds: int) -> list[dict]:
    """A row for each form: videos/s of a whole run, and from its first tenth to its last video."""
    split = Split("folder", "videos", work, [Video(f"{i:05d}", path) for i, path in enumerate(paths)])
    file = work / "build.h5"
    decoder, _ = resolve_decoder("auto")

    def ours() -> tuple[list[float], int]:
        stamps: list[float] = []
        build_cache(split, file, workers=workers, progress=lambda tried, _: tried and stamps.append(time.perf_counter()), **options)
        stamps.append(time.perf_counter())
        return stamps, int(FrameCache(file).num_frames.sum())

    expected = ours()[1]  # untimed: the videos come into the page cache
    cache = FrameCache(file)
    if len(cache.rows) < len(paths):
        sys.exit(f"no measurement: {len(paths) - len(cache.rows)} of the {len(paths)} videos of {case} cannot be decoded")
    forms = {OURS: ours}
    rows = {OURS: {"state": "measured", "checked": True}}
    for reader in (decoders.BARE, decoders.OPENCV, decoders.PYAV):
        rows[reader] = examine(cache, paths, reader, decoder, options)
        if rows[reader]["state"] == "measured":
            forms[reader] = lambda reader=reader: decoders.decode_all(paths, reader, decoder, options, workers)
    times: dict[str, list[float]] = {name: [] for name in forms}
    steady: dict[str, list[float]] = {name: [] for name in forms}
    for name in turns(forms, rounds):
        file.unlink(missing_ok=True)  # before the clock starts: a build is a fresh one, and freeing its blocks is no part of it
        start = time.perf_counter()
        stamps, total = forms[name]()
        if total != expected:
            if name == OURS:
                sys.exit(f"no measurement: {case}: {total:,} frames in the cache, not {expected:,}")
            rows[name] = {"state": f"wrong result: {total:,} frames, not {expected:,}"}
        times[name].append((stamps[-1] - start) * 1e3)
        first, last = int(STARTED * len(paths)), len(paths) - 1
        steady[name].append((last - first) / (stamps[last] - stamps[first]))
    for name, row in rows.items():
        if row["state"] == "measured":
            row |= summary(times[name]) | {"rounds": rounds, "workers": workers, "decoder": decoder}
            row |= {"videos_per_s": len(paths) / row["median_ms"] * 1e3, "steady_videos_per_s": float(np.median(steady[name]))}
    return [{"section": "build", "case": case, "form": name, **row} for name, row in rows.items()]


def examine(cache: FrameCache, paths: list[Path], reader: str, decoder: str, options: dict) -> dict:
    """Whether a reader is there and gives the cache's frames; the decoder that the cache was made with gives the same bytes."""
    if decoders.missing(reader):
        return {"state": "not installed"}
    worst = 0.0
    for row, path in enumerate(paths[:COMPARED]):
        try:
            found = decoders.frames_of(path, reader, decoder, options).astype(np.int16)
        except Exception as failure:
            return {"state": f"failed: {type(failure).__name__}: {str(failure)[:80]}"}
        kept = cache.frames[row, : cache.num_frames[row]]
        if found.shape != kept.shape:
            return {"state": f"wrong result: {len(found)} frames, not {len(kept)}"}
        worst = max(worst, float(np.abs(found - kept).mean((1, 2, 3)).max()))
    tolerance = 0.0 if reader == decoders.BARE else TOLERANCE
    return {"state": "measured" if worst <= tolerance else "wrong result", "checked": True, "error": worst, "tolerance": tolerance}
