"""The videos that cache.py builds from."""

from __future__ import annotations

import itertools
import multiprocessing as mp
from collections.abc import Iterator
from pathlib import Path

from xmafast.datasets import demo

WIDTH, HEIGHT, RATE = 320, 240, 24  # what MSR-VTT's videos measure
JOINED = 5  # embedded clips of about three seconds, one after another
DISTINCT = 60  # nothing is kept between two decodings of a file: it may be listed again


def embedded() -> list[Path]:
    """The 600 clips, 224 x 224."""
    return [video.path for name in ("train", "test") for video in demo.load(demo.ROOT, name).videos if video.path]


def rendered(folder: Path, count: int, workers: int) -> list[Path]:
    """H.264 files of 320 x 240 and about 15 seconds, ``JOINED`` embedded clips each. Raises ImportError without PyAV."""
    import av  # noqa: F401

    clips = embedded()
    folder.mkdir(parents=True)
    jobs = [(folder / f"{i:03d}.mp4", clips[i * JOINED : (i + 1) * JOINED]) for i in range(min(count, DISTINCT))]
    with mp.get_context("spawn").Pool(workers) as pool:
        return pool.starmap(render, jobs, chunksize=1)


def render(path: Path, clips: list[Path]) -> Path:
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in itertools.chain.from_iterable(map(_frames, clips)):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return path


def _frames(clip: Path) -> Iterator:
    import av

    with av.open(str(clip)) as file:
        for frame in file.decode(video=0):
            yield frame.to_ndarray(width=WIDTH, height=HEIGHT, format="rgb24")
