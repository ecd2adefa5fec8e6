"""The batches of a training: drawn one after the other, read ahead by a thread.

What is random here comes from one numpy generator, and is drawn in the order of the steps by the thread that trains; the thread that
reads only reads. A batch knows its place and how the generator stood at the beginning of its epoch, so that a checkpoint after any
step can say where to go on, however far ahead the reading is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmafast.cache import FeatureCache, FrameReader
from xmafast.cache.joined import JoinedFrames
from xmafast.distributed import Processes
from xmafast.training.negatives import Nearest

AHEAD = 2  # batches that are read while a step runs

Pairs = list[tuple[int, int]]  # (row, caption of the row)
Frames = tuple[Tensor, Tensor]  # uint8 (B, F, H, W, 3), or embeddings (B, F, D); mask (B, F)


@dataclass(frozen=True)
class Place:
    """After which batch of a training: its epoch (from 1), how many batches of it are taken, the generator at the epoch's beginning."""

    epoch: int = 1
    taken: int = 0
    generator: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Draw:
    """A batch that is not read yet. frames: of each video those that were drawn, (B, count), or None for all.

    whole: the rows of the batch that it is a process' part of.
    """

    pairs: Pairs
    frames: np.ndarray | None
    place: Place  # once this batch is taken
    whole: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        return np.array([row for row, _ in self.pairs], dtype=np.int64)

    def part(self, processes: Processes) -> Draw:
        """What a process reads of it, which may be nothing."""
        part = processes.part(len(self.pairs))
        return replace(self, pairs=self.pairs[part], frames=None if self.frames is None else self.frames[part])


class Plan:
    """Which batches a training takes: ``steps_per_epoch`` of them an epoch, the same ones for the same seed.

    A data set whose cache says so goes through every caption in an epoch, others through every video with one caption drawn. Of several
    data sets each batch is one's, so that its negatives are videos of the same kind; the batches of an epoch come in random order.

    nearest: called at the beginning of an epoch, with its number, for the rows that each row is put into a batch with, where there is room
    and they are not taken yet. An epoch has the same pairs without it.
    """

    def __init__(
        self,
        cache: FrameReader,
        rows: np.ndarray,
        batch_size: int,
        train_frames: int = 0,
        seed: int = 0,
        nearest: Callable[[int], Nearest] | None = None,
    ) -> None:
        self.cache, self.rows, self.nearest = cache, rows, nearest
        self.batch_size, self.train_frames, self.seed = batch_size, train_frames, seed
        self.sets = [_Set(cache, rows, cache.attributes)]
        if isinstance(cache, JoinedFrames):
            of = cache.part_of(rows)
            self.sets = [_Set(cache, rows[of == i], part.attributes) for i, part in enumerate(cache.parts)]
        self.steps_per_epoch = sum(len(_cuts(len(each), batch_size)) for each in self.sets)

    def draws(self, epochs: int, after: Place | None = None) -> Iterator[Draw]:
        """The batches of all epochs, or those after a place."""
        generator = np.random.default_rng(self.seed)
        after = after or Place()
        if after.generator:
            generator.bit_generator.state = after.generator
        for epoch in range(after.epoch, epochs + 1):
            state = dict(generator.bit_generator.state)
            near = None if self.nearest is None else self.nearest(epoch)
            batches = [pairs for each in self.sets for pairs in each.batches(self.batch_size, generator, near)]
            if len(self.sets) > 1:
                batches = [batches[i] for i in generator.permutation(len(batches))]
            for taken, pairs in enumerate(batches, 1):
                rows = np.array([row for row, _ in pairs], dtype=np.int64)
                draw = Draw(pairs, self._frames(pairs, generator), Place(epoch, taken, state), rows)
                if epoch > after.epoch or taken > after.taken:  # one that was taken already is drawn as well, and left out
                    yield draw

    def _frames(self, pairs: Pairs, generator: np.random.Generator) -> np.ndarray | None:
        total = self.cache.shape[1]
        if not 0 < self.train_frames < total:
            return None
        return draw_frames(self.cache.num_frames[[row for row, _ in pairs]], total, self.train_frames, generator)


def _cuts(count: int, batch_size: int) -> list[slice]:
    """The batches of ``count`` pairs in their order. A last one of a single pair joins the one before."""
    starts = list(range(0, count, batch_size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], count], strict=True)]


class _Set:
    """Rows of one data set, by its cache's attributes; its length is that of an epoch, in pairs."""

    def __init__(self, cache: FrameReader, rows: np.ndarray, attributes: Mapping[str, Any]) -> None:
        self.cache, self.rows = cache, rows
        every = attributes.get("captions_per_epoch") == "all"
        self.every_pair = [(int(row), i) for row in rows for i in range(len(cache.captions[row]))] if every else None

    def __len__(self) -> int:
        return len(self.rows if self.every_pair is None else self.every_pair)

    def batches(self, batch_size: int, generator: np.random.Generator, near: Nearest | None = None) -> list[Pairs]:
        """One epoch in random order: every pair, or every row with one caption drawn. near: rows that follow a row, where there is room."""
        pairs = self.every_pair
        if pairs is None:
            pairs = [(int(row), int(generator.integers(len(self.cache.captions[row])))) for row in self.rows]
        shuffled = [pairs[i] for i in generator.permutation(len(pairs))]
        cuts = _cuts(len(shuffled), batch_size)
        if near is not None:
            shuffled = _side_by_side(shuffled, near, [cut.stop for cut in cuts])
        return [shuffled[cut] for cut in cuts]


def _side_by_side(pairs: Pairs, near: Nearest, ends: list[int]) -> Pairs:
    """The same pairs in their order, but that each is followed by pairs of the rows near to it, up to the next of ``ends``.

    Of a row whose pairs are many one follows; a row that is in a batch already does not follow in it again.
    """
    left: dict[int, deque[int]] = {}
    for i, (row, _) in enumerate(pairs):
        left.setdefault(row, deque()).append(i)
    taken = np.zeros(len(pairs), dtype=bool)
    found: Pairs = []
    at, here = iter(ends), set[int]()
    end = next(at)

    def take(i: int) -> None:
        nonlocal end
        taken[i] = True
        left[pairs[i][0]].remove(i)
        found.append(pairs[i])
        here.add(pairs[i][0])
        if len(found) == end:
            here.clear()
            end = next(at, len(pairs))

    for i, (row, _) in enumerate(pairs):
        if taken[i]:
            continue
        room = end - len(found)
        take(i)
        for other in near.get(row, ())[: room - 1]:
            if left.get(other) and other not in here:
                take(left[other][0])
    return found


def draw_frames(real: np.ndarray, total: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """For each video ``count`` of its ``total`` frames in order, real ones first: (B,) -> (B, count)."""
    keys = generator.random((len(real), total)) + (np.arange(total) >= real[:, None])
    return np.sort(np.argpartition(keys, count - 1, axis=1)[:, :count], axis=1)


def pick(frames: Tensor, mask: Tensor, drawn: np.ndarray | None) -> Frames:
    """Of each video the frames that were drawn."""
    if drawn is None:
        return frames, mask
    index = torch.from_numpy(drawn).to(frames.device)
    return frames[torch.arange(len(index), device=frames.device)[:, None], index], mask.gather(1, index)


class Uploads:
    """Copies of batches to a GPU, from pinned memory and on a stream of their own, so that none waits for a step nor a step for it."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def send(self, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, torch.cuda.Event]:
        """Begin a copy. In the thread that reads."""
        with torch.cuda.stream(self.stream):
            there = [part.pin_memory().to(self.device, non_blocking=True) for part in (frames, mask)]
            done = torch.cuda.Event()
            done.record(self.stream)
        return there[0], there[1], done

    def take(self, frames: Tensor, mask: Tensor, done: torch.cuda.Event) -> Frames:
        """Have the current stream wait for a copy. In the thread that trains."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(done)
        for part in (frames, mask):
            part.record_stream(current)  # its memory is not given away while the step still reads it
        return frames, mask


@dataclass(frozen=True)
class Batch:
    """A batch that is read. waited: seconds that the training waited for it."""

    draw: Draw
    frames: Tensor
    mask: Tensor
    waited: float


def read_ahead(cache: FrameReader | FeatureCache, draws: Iterator[Draw], device: torch.device) -> Generator[Batch, None, None]:
    """Batches of a cache of frames or of their tokens, on the device, in the order of ``draws``. Closing it ends the thread."""
    uploads = Uploads(device) if device.type == "cuda" else None

    def read(draw: Draw) -> tuple[Any, ...]:
        drawn = draw.frames
        if not draw.pairs:  # of a process without one
            one, mask = cache.read(np.zeros(1, dtype=np.int64))
            frames = one.shape[1] if drawn is None else drawn.shape[1]
            return one[:0, :frames], mask[:0, :frames]
        if uploads is None:
            return pick(*cache.read(draw.rows), drawn)
        dtype, shape = (torch.float16, cache.data.shape) if isinstance(cache, FeatureCache) else (torch.uint8, cache.shape)
        pinned = None  # memory that torch keeps for the next batch
        if drawn is None:
            pinned = torch.empty((len(draw.pairs), *shape[1:]), dtype=dtype, pin_memory=True)
        return uploads.send(*pick(*cache.read(draw.rows, pinned), drawn))

    pool = ThreadPoolExecutor(1, "xmafast-reader")
    try:
        waiting = deque((draw, pool.submit(read, draw)) for draw in islice(draws, AHEAD))
        while waiting:
            draw, future = waiting.popleft()
            began = time.monotonic()
            parts = future.result()
            frames, mask = uploads.take(*parts) if uploads is not None and draw.pairs else parts
            waited = time.monotonic() - began
            if (following := next(draws, None)) is not None:
                waiting.append((following, pool.submit(read, following)))
            yield Batch(draw, frames, mask, waited)
    finally:
        pool.shutdown(cancel_futures=True)


def read_now(read: Callable[[np.ndarray], Frames], draws: Iterator[Draw]) -> Generator[Batch, None, None]:
    """The same of what lies in memory already."""
    for draw in draws:
        began = time.monotonic()
        frames, mask = pick(*read(draw.rows), draw.frames)
        yield Batch(draw, frames, mask, time.monotonic() - began)
