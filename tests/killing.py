"""Work on caches and runs that kills itself with SIGKILL at its n-th step, a step being any change to a file or a folder.

``at_step`` runs in a process that is forked from a server with all of this imported, so that a kill costs as little as the work.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from support import demo_split

from xmafast import retriever, training
from xmafast.cache import FrameCache, Shard, build, build_cache, build_features, merge, open_splits, pool
from xmafast.cache.file import checksum
from xmafast.cache.stream import write_stream
from xmafast.datasets import Split
from xmafast.errors import RunError, UsageError
from xmafast.pretrained import load_backbone

SMALL: dict[str, Any] = {"frames": 2, "sampling": "uniform", "size": 32}
ROWS = 3


def decode_here(jobs: list[pool.Job], target: pool.Target, **_: object) -> Iterator[pool.Done]:
    """What the decode workers do, in this process."""
    file = os.open(target.file, os.O_WRONLY)
    for job in jobs:
        yield pool.Done(job.row, *pool.make_row(job, target, file))
    os.close(file)


def at_step(name: str, folder: Path, last: int | None, report: Connection | None = None) -> None:
    """Do the work ``name`` of ``WORKS`` in ``folder`` and die at step ``last``, with half of it done where there are halves.

    Without ``last`` the work is finished; its steps are counted and reported.
    """
    build.decode_all = decode_here  # type: ignore[assignment]
    taken = 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def stepwise(owner: Any, attribute: str, half: Any = None) -> None:
        original = getattr(owner, attribute)

        @functools.wraps(original)
        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal taken
            taken += 1
            if taken == last:
                if half:
                    half(original, *arguments, **options)
                die()
            return original(*arguments, **options)

        setattr(owner, attribute, step)

    for owner, attributes in (
        (os, ("replace", "unlink", "mkdir", "rmdir", "ftruncate", "posix_fallocate", "fsync")),
        (Path, ("replace", "unlink", "mkdir")),  # Python 3.10's do not call os through its names
        (np.memmap, ("__setitem__",)),
        (h5py.h5d, ("create",)),
        (h5py.File, ("create_dataset", "close")),
    ):
        for attribute in attributes:
            if hasattr(owner, attribute):
                stepwise(owner, attribute)
    stepwise(os, "pwrite", lambda write, file, data, offset: write(file, bytes(data)[: len(data) // 2], offset))
    stepwise(Path, "write_text", lambda write, path, text, **options: write(path, text[: len(text) // 2], **options))
    stepwise(Path, "write_bytes", lambda write, path, data: write(path, data[: len(data) // 2]))
    stepwise(retriever, "save_file", _half_a_file)
    WORKS[name][1](folder)
    if report:
        report.send(taken)


def _half_a_file(save: Any, tensors: Any, path: Path, **options: Any) -> None:
    save(tensors, path, **options)
    os.truncate(path, path.stat().st_size // 2)


def prepare(name: str, folder: Path) -> None:
    """What the work starts from."""
    build.decode_all = decode_here  # type: ignore[assignment]
    folder.mkdir(parents=True)
    WORKS[name][0](folder)


def other_videos(split: Split) -> Split:
    """The same ids with each other's files."""
    files = [video.path for video in split.videos]
    return replace(split, videos=[replace(v, path=files[i - 1]) for i, v in enumerate(split.videos)])


def nothing(folder: Path) -> None:
    pass


def frames(folder: Path, codec: str = "raw", rows: int = ROWS, other: bool = False) -> None:
    split = demo_split("train", rows)
    build_cache(other_videos(split) if other else split, folder / "train.h5", codec=codec, **SMALL)


def shards(folder: Path, codec: str = "raw", other: bool = False, which: tuple[int, ...] = (1, 2, 3)) -> None:
    split = demo_split("train", ROWS)
    for i in which:
        build_cache(other_videos(split) if other else split, folder / "train.h5", codec=codec, shard=Shard(i, 3), **SMALL)


def join(folder: Path) -> None:
    merge(folder / "train.h5")


def join_features(folder: Path) -> None:
    merge(folder / "embeddings" / "train.h5")


def half_joined_then_a_shard_anew(folder: Path) -> None:
    """A merge that was interrupted when its shards had other rows of the same list, of one frame only."""
    shards(folder, "jpeg")
    for i in (1, 2, 3):
        part = FrameCache(Shard(i, 3).path(folder / "train.h5"), writable=True)
        part.num_frames[:], part.lengths[:, 1:] = 1, 0
        part.checksum[:] = [checksum(part.stored(row), part.timestamps[row, :1]) for row in range(len(part))]
        part.flush()

    def stop(rows: int, of: int) -> None:
        if rows == ROWS:
            raise KeyboardInterrupt

    try:
        merge(folder / "train.h5", progress=stop)
    except KeyboardInterrupt:
        for i in (1, 2, 3):
            Shard(i, 3).path(folder / "train.h5").unlink()
        shards(folder, "jpeg")


def features(folder: Path) -> None:
    build_features(open_splits(folder)["train"], folder / "embeddings" / "train.h5", load_backbone("demo"))


def feature_shards(folder: Path) -> None:
    shards(folder)
    for i in (1, 2, 3):
        part = Shard(i, 3).path(folder / "train.h5")
        build_features(next(iter(open_splits(part).values())), folder / "embeddings" / part.name, load_backbone("demo"))


def features_of_other_frames(folder: Path) -> None:
    frames(folder, other=True)
    features(folder)
    frames(folder)


def run(folder: Path) -> None:
    """Train; where a run is finished it must be refused."""
    finished = (folder / "runs" / "x" / "metrics.json").exists()
    try:
        training.train(folder, folder / "runs" / "x", backbone="demo", epochs=1, batch_size=2)
    except UsageError:
        if not finished:
            raise
    else:
        assert not finished, "a finished run was overwritten"


def go_on(folder: Path) -> None:
    """Train with a checkpoint after every step, and go on with a run that was interrupted."""
    out = folder / "runs" / "x"
    if (out / "metrics.json").exists():
        try:
            training.train(out=out, resume=True)
        except RunError:
            return
        raise AssertionError("a finished run was gone on with")
    if training.is_interrupted(out):
        training.train(out=out, resume=True, save_every="1")
    else:
        training.train(folder, out, backbone="demo", epochs=2, batch_size=2, save_every="1")


# name -> (what it starts from, the work, what the same files are made with at once)
WORKS: dict[str, Any] = {
    "raw": (nothing, frames, frames),
    "jpeg": (nothing, lambda f: frames(f, "jpeg"), lambda f: frames(f, "jpeg")),
    "a longer list": (lambda f: frames(f, rows=2), frames, frames),
    "a longer list in jpeg": (lambda f: frames(f, "jpeg", 2), lambda f: frames(f, "jpeg"), lambda f: frames(f, "jpeg")),
    "other videos": (lambda f: frames(f, other=True), frames, lambda f: (frames(f, other=True), frames(f))),
    "other videos in jpeg": (
        lambda f: frames(f, "jpeg", other=True),
        lambda f: frames(f, "jpeg"),
        lambda f: (frames(f, "jpeg", other=True), frames(f, "jpeg")),
    ),
    "a shard": (nothing, lambda f: shards(f, which=(2,)), lambda f: shards(f, which=(2,))),
    "merge": (shards, join, frames),
    "merge of jpeg": (lambda f: shards(f, "jpeg"), join, lambda f: frames(f, "jpeg")),
    "merge begun with other shards": (half_joined_then_a_shard_anew, join, lambda f: frames(f, "jpeg")),
    "merge of features": (
        feature_shards,
        join_features,
        lambda f: (shards(f), features(f)),
    ),
    "features": (frames, features, lambda f: (frames(f), features(f))),
    "features of other frames": (features_of_other_frames, features, lambda f: (features_of_other_frames(f), features(f))),
    "train": (lambda f: frames(f, rows=6), run, lambda f: (frames(f, rows=6), run(f))),
    "train, resumed": (lambda f: frames(f, rows=6), go_on, lambda f: (frames(f, rows=6), go_on(f))),
}


def options_of(method: str) -> dict[str, Any]:
    """How a method is trained here: on a few clips, with all that is random in it."""
    own: dict[str, dict[str, Any]] = {
        "hada": {"second": "demo", "second_pretrained": "none"},
        "memory": {"trainable_keys": True},
        "lora": {"dropout": 0.25},
        "cross-modal": {"patch_drop": 0.5, "train_frames": 1},
    }
    return {"method": method, "backbone": "demo", "epochs": 3, "batch_size": 2, **own.get(method, {})}


def stream(folder: Path) -> str:
    """Features of another stream of the clips in the cache of ``folder``."""
    ids = FrameCache(folder / "train.h5").ids
    generator = np.random.default_rng(0)
    return str(write_stream(folder / "stream.h5s", {name: generator.standard_normal((2, 8)) for name in ids}))


def train_until(folder: Path, out: Path, options: dict[str, Any], last: int | None, save_every: str, resume: bool = False) -> None:
    """Train and die after step ``last``, when it is in the log and in no checkpoint yet."""

    def report(step: training.Step, validation: object) -> None:
        if step.step == last and validation is None:
            os.kill(os.getpid(), signal.SIGKILL)

    given = {} if resume else options
    training.train(None if resume else folder, out, resume=resume, save_every=save_every, report=report, **given)


def whole(name: str, folder: Path) -> None:
    """What the finished work must be equal to."""
    build.decode_all = decode_here  # type: ignore[assignment]
    folder.mkdir(parents=True)
    WORKS[name][2](folder)
