"""What a build of the cache is compared with: videos decoded by as many processes, and nothing kept. Workers import this file: no torch."""

from __future__ import annotations

import importlib.util
import multiprocessing as mp
import time
from functools import partial
from pathlib import Path

import numpy as np

from xmafast.cache.decode import decode, resize, span_indices

BARE, OPENCV, PYAV = "bare decoder", "OpenCV", "PyAV"
NEEDS = {OPENCV: "cv2", PYAV: "av"}


def missing(reader: str) -> bool:
    return reader in NEEDS and importlib.util.find_spec(NEEDS[reader]) is None


def frames_of(path: Path, reader: str, decoder: str, options: dict) -> np.ndarray:
    """(n, size, size, 3): the sampled frames of a video, resized."""
    if reader == OPENCV:
        return _opencv(path, **options)
    return decode(path, decoder="pyav" if reader == PYAV else decoder, **options).frames


def _opencv(path: Path, *, frames: int, sampling: str, size: int) -> np.ndarray:
    import cv2

    cv2.setNumThreads(1)
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])  # like the others: the processes fill the cores
    wanted = span_indices(int(video.get(cv2.CAP_PROP_FRAME_COUNT)), video.get(cv2.CAP_PROP_FPS), frames, sampling, None)
    found, position = [], -1
    for index in wanted:
        while position < index:
            video.grab()
            position += 1
        found.append(resize(cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB), size))
    return np.stack(found)


def count(path: Path, reader: str, decoder: str, options: dict) -> int:
    return len(frames_of(path, reader, decoder, options))


def decode_all(paths: list[Path], reader: str, decoder: str, options: dict, workers: int) -> tuple[list[float], int]:
    """When each video was done, and at the end when the processes were gone; and the frames, counted."""
    stamps, total = [], 0
    with mp.get_context("spawn").Pool(workers) as pool:
        for found in pool.imap_unordered(partial(count, reader=reader, decoder=decoder, options=options), paths, chunksize=1):
            stamps.append(time.perf_counter())
            total += found
        pool.terminate()
        pool.join()
    return [*stamps, time.perf_counter()], total
