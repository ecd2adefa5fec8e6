"""Decode workers: spawned processes, one video at a time each, under a time limit.

spawn, because decord hangs in a forked child; processes, because a decoder can hang or crash on a bad file, and then only
its worker is lost. A worker writes its row of ``/frames`` itself; the parent alone marks rows done. It writes through the file
and not through a memory map, where a full disk would be a crash instead of an error.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmafast.cache.decode import decode
from xmafast.cache.file import FULL, checksum, write
from xmafast.cache.frames import encode
from xmafast.errors import CacheError, DecodeError


class Job(NamedTuple):
    row: int
    path: Path
    interval: tuple[float, float] | None = None


class Done(NamedTuple):
    row: int
    timestamps: np.ndarray | None  # None where it failed
    error: str
    checksum: int = 0
    lengths: np.ndarray | None = None  # bytes of each JPEG


@dataclass(frozen=True)
class Target:
    """Where rows go, each with a place of ``capacity`` bytes from ``offset`` on in the file, and how a video becomes a row."""

    file: Path
    offset: int
    capacity: int
    codec: str
    options: dict[str, Any] = field(default_factory=dict)  # of ``decode``


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    jobs: deque[Job] = field(default_factory=deque)  # the one at work, and the one that waits for it
    deadline: float = 0.0  # of the one at work


def decode_all(jobs: Iterable[Job], target: Target, *, workers: int, time_limit: float) -> Iterator[Done]:
    """Decode every job into its row; yields each as it ends, in no fixed order. Never raises for a single video."""
    queue = deque(jobs)
    crew: list[_Worker] = []

    def hire() -> _Worker:
        context = mp.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, target), daemon=True)
        process.start()
        there.close()
        return _Worker(process, here)

    def give(worker: _Worker, most: int) -> None:
        while queue and len(worker.jobs) < most:
            worker.jobs.append(queue.popleft())
            with contextlib.suppress(OSError):  # a worker that has died meanwhile is noticed below
                worker.pipe.send(worker.jobs[-1])

    def begin(worker: _Worker) -> None:
        """The worker is at its first job from now on. While there are enough, the next waits for it, so that it is never idle."""
        give(worker, 2 if len(queue) >= workers else 1)
        worker.deadline = time.monotonic() + time_limit + (0 if worker.process.pid in warm else START_GRACE)

    def replace(worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        crew.remove(worker)
        queue.extendleft(reversed(worker.jobs))
        if queue:
            crew.append(hire())
            begin(crew[-1])

    warm: set[int | None] = set()
    try:
        for _ in range(min(workers, len(queue))):
            crew.append(hire())
            give(crew[-1], 1)
        for worker in crew:
            begin(worker)
        while busy := [w for w in crew if w.jobs]:
            pause = max(0.0, min(w.deadline for w in busy) - time.monotonic())
            ready = set(wait([w.pipe for w in busy], pause))
            for worker in busy:
                row = worker.jobs[0].row
                if worker.pipe in ready:
                    try:
                        timestamps, error, checksum, lengths = worker.pipe.recv()
                    except (EOFError, OSError):
                        worker.process.join()
                        if worker.process.exitcode == 1 and worker.process.pid not in warm:
                            raise CacheError(
                                "The decode processes end before their first video. In a script, call build_cache under "
                                "`if __name__ == '__main__':`, since each of them imports the script anew."
                            ) from None
                        worker.jobs.popleft()
                        yield Done(row, None, f"the decoder crashed ({_exit(worker.process.exitcode)})")
                        replace(worker)
                        continue
                    warm.add(worker.process.pid)
                    worker.jobs.popleft()
                    begin(worker)
                    if error == NO_ROOM:
                        raise CacheError(
                            f"There is no room left for {target.file}; what was decoded is kept. Make room, and repeat the command."
                        )
                    yield Done(row, timestamps, error, checksum, lengths)
                elif time.monotonic() >= worker.deadline:
                    worker.jobs.popleft()
                    yield Done(row, None, f"not decoded within the time limit of {time_limit:g} s")
                    replace(worker)
    finally:
        for worker in crew:
            worker.process.kill()
        for worker in crew:
            worker.process.join()
            worker.pipe.close()


NO_ROOM = "no room"
START_GRACE = 60.0  # seconds that a fresh process may take to import, on top of its first video's limit


def _exit(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _work(pipe: Connection, target: Target) -> None:
    """A worker's life: a job in, its row written, timestamps or an error out. Ends when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # the codecs' own chatter; what matters comes back as an error
    file = os.open(target.file, os.O_WRONLY | getattr(os, "O_BINARY", 0))
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send(make_row(job, target, file))
        except OSError:
            return


def make_row(job: Job, target: Target, file: int) -> tuple[np.ndarray | None, str, int, np.ndarray | None]:
    """Decode a video and write its row to the open file; what ``Done`` says of it. Never raises for a single video."""
    try:
        decoded = decode(job.path, interval=job.interval, **target.options)
        pieces, lengths = (decoded.images, None) if target.codec == "raw" else encode(decoded.images)
        place = target.offset + job.row * target.capacity
        end = place + target.capacity
        for piece in pieces:
            write(file, np.ascontiguousarray(piece).reshape(-1), place)
            place += piece.nbytes
        if target.codec == "raw":
            write(file, bytes(end - place), place)  # padding
        return decoded.timestamps, "", checksum(pieces, decoded.timestamps), lengths
    except DecodeError as problem:
        return None, str(problem), 0, None
    except OSError as problem:
        return None, NO_ROOM if problem.errno in FULL else f"{type(problem).__name__}: {problem}", 0, None
    except Exception as problem:
        return None, f"{type(problem).__name__}: {problem}", 0, None
