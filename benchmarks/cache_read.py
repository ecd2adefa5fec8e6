"""How fast decoded frames are read again, and how much of the disk they take."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from cache_rivals import RIVALS, Epoch
from measure import free_bytes, summary, turns
from torch.utils.data import default_collate

from xmafast import FrameDataset
from xmafast.cache import FrameCache, build_cache
from xmafast.datasets import Split, Video

# options of build_cache; raw, which all others are compared with, is first
CODECS: dict[str, dict] = {"raw": {}, "jpeg": {"codec": "jpeg"}}
BATCH = 32
OURS, FRESH, DATASET, COPY = "FrameCache.read(rows, out)", "FrameCache.read(rows)", "FrameDataset, a loop", "np.copyto, the machine"
TOLERANCE = 4.0  # mean difference of a video in levels of 255, of forms that keep JPEGs
LEAST = 0.5  # seconds that one measurement takes: short epochs are repeated
COPIES = 6  # of all frames, in memory or in the page cache at once


class Stores:
    """The same frames in every form, written below a folder."""

    def __init__(self, work: Path, paths: list[Path], options: dict, workers: int) -> None:
        room = int(free_bytes("cpu") / 2 / COPIES / (options["frames"] * options["size"] ** 2 * 3))
        videos = [Video(f"{i:05d}", path) for i, path in enumerate(paths[:room])]
        self.caches = {}
        self.folders = {}
        for codec, option in CODECS.items():
            name = f"cache, {codec}"
            self.folders[name] = work / f"cache-{codec}"
            file = self.folders[name] / "videos.h5"
            build_cache(Split("folder", "videos", work, videos), file, workers=workers, **options, **option)
            self.caches[codec] = FrameCache(file)
            if len(self.caches[codec].rows) < len(videos):
                sys.exit(f"no measurement: {len(videos) - len(self.caches[codec].rows)} of {len(videos)} videos cannot be decoded")
        self.frames = np.array(self.caches["raw"].frames)
        for rival in RIVALS:
            if not rival.missing:
                self.folders[rival.name] = work / rival.name.replace(", ", "-").replace(" ", "-")
                self.folders[rival.name].mkdir()
                rival.write(self.frames, self.folders[rival.name])


def measure_bytes(stores: Stores) -> list[dict]:
    n = len(stores.frames)
    names = [*(f"cache, {codec}" for codec in CODECS), *(rival.name for rival in RIVALS)]
    return [
        {"section": "bytes", "case": case(stores), "form": name, "state": "measured", "bytes_per_video": on_disk(stores.folders[name]) / n}
        if name in stores.folders
        else {"section": "bytes", "case": case(stores), "form": name, "state": "not installed"}
        for name in names
    ]


def on_disk(folder: Path) -> int:
    """Bytes of the blocks that a folder's files take."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def case(stores: Stores) -> str:
    n, f, height, width, _ = stores.frames.shape
    return f"{n} videos of {f} x {height} x {width}"


def measure_read(stores: Stores, rounds: int) -> list[dict]:
    """A row for each form: videos/s of epochs in an order drawn anew for each."""
    n = len(stores.frames)
    out = torch.zeros((BATCH, *stores.frames.shape[1:]), dtype=torch.uint8)  # zeros are written: no page of it is new
    forms = our_forms(stores, out)
    rows: dict[str, dict] = {name: {} for name in forms}
    for rival in RIVALS:
        rows[rival.name] = {"state": "not installed"}
        if not rival.missing:
            forms[rival.name] = rival.open(stores.folders[rival.name], out.numpy()), rival.lossless
    random = np.random.default_rng(0)
    for name, (epoch, lossless) in list(forms.items()):
        rows[name] = examine(epoch, shuffled(n, random), stores.frames, lossless)
        if rows[name]["state"] != "measured":
            del forms[name]
    if missing := [name for name in our_forms(stores, out) if name not in forms]:
        sys.exit(f"no measurement: {missing[0]}: {rows[missing[0]]}")
    times: dict[str, list[float]] = {name: [] for name in [*forms, COPY]}
    forms[COPY] = copying(stores.frames, out.numpy()), True
    rows[COPY] = {"state": "measured", "checked": False}
    for name in turns(forms, rounds):
        times[name].append(epoch_ms(forms[name][0], shuffled(n, random)))
    for name, values in times.items():
        rows[name] |= summary(values) | {"rounds": rounds}
        rows[name]["videos_per_s"] = n / rows[name]["median_ms"] * 1e3
    return [{"section": "read", "case": case(stores), "form": name, **row} for name, row in rows.items()]


def epoch_ms(epoch: Epoch, batches: list[np.ndarray]) -> float:
    start, epochs = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < LEAST:
        for _ in epoch(batches):
            pass
        epochs += 1
    return passed / epochs * 1e3


def our_forms(stores: Stores, out: torch.Tensor) -> dict[str, tuple[Epoch, bool]]:
    raw = stores.caches["raw"]
    dataset = FrameDataset(raw, each_caption=False)
    forms: dict[str, tuple[Epoch, bool]] = {
        OURS: (epochs(lambda rows: raw.read(rows, out)[0]), True),
        FRESH: (epochs(lambda rows: raw.read(rows)[0]), True),
        DATASET: (epochs(lambda rows: default_collate([dataset[row] for row in rows.tolist()])["frames"]), True),
    }
    for codec, cache in stores.caches.items():
        if codec != "raw":
            forms[f"{OURS}, {codec}"] = epochs(lambda rows, cache=cache: cache.read(rows, out)[0]), False
    return forms


def epochs(read) -> Epoch:
    def epoch(batches: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows in batches:
            yield rows, read(rows).numpy()

    return epoch


def copying(source: np.ndarray, out: np.ndarray) -> Epoch:
    """What one thread of the machine copies from memory, batch after batch in order, without looking for a row."""

    def epoch(batches: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for i, rows in enumerate(batches):
            np.copyto(out[: len(rows)], source[i * BATCH : i * BATCH + len(rows)])
            yield rows, out

    return epoch


def shuffled(n: int, random: np.random.Generator) -> list[np.ndarray]:
    order = random.permutation(n)
    return [order[i : i + BATCH] for i in range(0, n, BATCH)]


def examine(epoch: Epoch, batches: list[np.ndarray], expected: np.ndarray, lossless: bool) -> dict:
    """Whether an epoch gives each video once, with its frames. It also brings the store into the page cache."""
    seen: list[int] = []
    worst = 0.0
    try:
        for rows, frames in epoch(batches):
            for row, video in zip(rows.tolist(), frames, strict=True):
                seen.append(row)
                same = np.array_equal(video, expected[row])
                worst = max(worst, 0.0 if same else float(np.abs(video.astype(np.int16) - expected[row]).mean()))
    except Exception as failure:
        return {"state": f"failed: {type(failure).__name__}: {str(failure)[:80]}"}
    tolerance = 0.0 if lossless else TOLERANCE
    right = sorted(seen) == list(range(len(expected))) and worst <= tolerance
    return {"state": "measured" if right else "wrong result", "checked": True, "error": worst, "tolerance": tolerance}
