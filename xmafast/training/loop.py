"""The training loop: one optimiser step after the other, from any place that was reached before."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmafast.blocks import checkpointed
from xmafast.cache import FeatureCache, FrameReader
from xmafast.cache.joined import JoinedFrames
from xmafast.distributed import ALONE, Processes
from xmafast.embeddings import Progress
from xmafast.frozen_embeddings import FrozenEmbeddings
from xmafast.losses import contrastive_loss, total_loss
from xmafast.retriever import Retriever
from xmafast.training.data import Batch, Draw, Place, Plan, read_ahead, read_now
from xmafast.training.gradients import share_backward, summed
from xmafast.training.negatives import Nearest, by_row, hard_negatives
from xmafast.training.recipe import Recipe, make_optimizer, schedule
from xmafast.training.split import datasets_of

SHOWN = 8  # ids of a batch that a message names


@dataclass(frozen=True)
class Step:
    """One optimiser step: its number of ``steps`` and its epoch of ``epochs`` (both from 1), loss, gradient norm before clipping, learning
    rate, videos a second, and the share of its time that it waited for data.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    grad_norm: float
    lr: float
    videos_per_second: float = 0.0
    wait: float = 0.0

    @property
    def ends_epoch(self) -> bool:
        return self.step * self.epochs == self.epoch * self.steps


class Diverged(FloatingPointError):
    """The loss or its gradient is no longer a number, in a step on the videos ``ids``; the weights are still those before the step."""

    def __init__(self, step: int, steps: int, loss: float, grad_norm: float, ids: list[str]) -> None:
        self.step, self.loss, self.grad_norm, self.ids = step, loss, grad_norm, ids
        some = ", ".join(ids[:SHOWN]) + (", …" if len(ids) > SHOWN else "")
        super().__init__(f"The loss became {loss} (gradient norm {grad_norm:g}) in step {step} of {steps}, on the videos {some}.")


class Trainer:
    """A retriever's method and header in training on rows of a cache.

    frozen: the cache's frozen embeddings, where all that is trained acts on them; the backbone is not run then. checkpointing: run each
    block again in the backward pass instead of keeping what is in it. tokens: of the cache's frames, to train from in their place.
    processes: those that share out each batch; all make the same calls, and have the same weights after each step.

    Attributes: ``done`` and ``steps`` (of the whole training), ``epoch``, ``optimizer``, ``place``. ``tensors``, with ``place`` and
    ``done``, is all that ``restore`` needs to go on to the same end, to the bit where the device's arithmetic repeats. ``asks`` gives
    numbers whose sums over the processes are in ``told`` after each step, at no cost of their own.
    """

    def __init__(
        self,
        retriever: Retriever,
        cache: FrameReader,
        rows: np.ndarray,
        recipe: Recipe,
        frozen: FrozenEmbeddings | None = None,
        *,
        checkpointing: bool = False,
        tokens: FeatureCache | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.retriever, self.cache, self.recipe, self.processes = retriever, cache, recipe, processes
        self.frozen, self.checkpointing, self.tokens = frozen, checkpointing, tokens
        self.rows = rows
        self.plan = Plan(cache, rows, recipe.batch_size, recipe.train_frames, recipe.seed, self._nearest if recipe.hard_negatives else None)
        self.optimizer = make_optimizer(retriever, recipe)
        self.steps = recipe.epochs * self.plan.steps_per_epoch
        self.place, self.done = Place(), 0
        self.mined: tuple[int, np.ndarray] | None = None  # the epoch, and the hard negatives of each row in it
        self.progress: Progress | None = None  # of looking for them
        self.asks: Callable[[], list[float]] = list
        self.told: list[float] = []
        for tensor in retriever.kept.values() if not processes.alone else ():
            processes.share(tensor.data)  # the same already, unless their machines draw or compute otherwise
        if not processes.first:  # noise of its own; what is initialised was drawn alike
            torch.manual_seed(int(np.random.SeedSequence([recipe.seed, processes.rank]).generate_state(1, np.uint64)[0]) >> 1)

    @property
    def epoch(self) -> int:
        """Of the last step that was taken, from 1."""
        return self.place.epoch

    @property
    def between_epochs(self) -> bool:
        """Whether the last step that was taken ended an epoch."""
        return self.done > 0 and self.done % self.plan.steps_per_epoch == 0

    def run(self) -> Generator[Step, None, None]:
        """Take the steps that are left; between two of them the model may be used for anything else. Raises Diverged."""
        draws = (draw.part(self.processes) for draw in self.plan.draws(self.recipe.epochs, self.place))
        if not self.recipe.hard_negatives:
            yield from self._run(draws)
            return
        while self.done < self.steps:  # the draws of an epoch need the weights at its beginning, so that none is read ahead
            yield from self._run(islice(draws, self.plan.steps_per_epoch - self.done % self.plan.steps_per_epoch))

    def _run(self, draws: Iterator[Draw]) -> Iterator[Step]:
        device = self.retriever.device
        source = self.cache if self.tokens is None else self.tokens
        with closing(read_ahead(source, draws, device) if self.frozen is None else read_now(self.frozen.read, draws)) as batches:
            while True:
                began = time.monotonic()
                if (batch := next(batches, None)) is None:
                    return
                loss, norm, lr = self.step(batch)
                seconds = time.monotonic() - began
                rate, wait = len(batch.draw.whole) / seconds, batch.waited / seconds
                yield Step(self.done, self.steps, self.epoch, self.recipe.epochs, loss, norm, lr, rate, wait)

    def _nearest(self, epoch: int) -> Nearest:
        """The hard negatives of an epoch, found when it begins."""
        if self.mined is None or self.mined[0] != epoch:
            found = hard_negatives(
                self.retriever,
                self.cache,
                self.rows,
                self.recipe.hard_negatives,
                tokens=self.tokens,
                frozen=self.frozen,
                processes=self.processes,
                progress=self.progress,
            )
            self.mined = (epoch, found)
        return by_row(self.rows, self.mined[1])

    def step(self, batch: Batch) -> tuple[float, float, float]:
        """(loss, gradient norm, learning rate) of one step. Raises Diverged, with nothing changed, where they are not numbers."""
        if not self.retriever.training:  # a validation has left it otherwise
            self.retriever.train()
        lr = self.recipe.lr * schedule(self.done, self.steps, self.recipe.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("share", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.backward(batch)
        norm = torch.nn.utils.clip_grad_norm_(list(self.retriever.trained.values()), self.recipe.clip_norm)
        value, size = torch.stack([loss, norm.to(loss)]).tolist()  # one wait for the device
        if not (math.isfinite(value) and math.isfinite(size)):
            raise Diverged(self.done + 1, self.steps, value, size, [self.cache.ids[row] for row in batch.draw.whole])
        self.optimizer.step()
        self.done, self.place = self.done + 1, batch.draw.place
        return value, size, lr

    def backward(self, batch: Batch) -> Tensor:
        """The loss of a step, without a graph; its gradients are those of the whole batch, in every process."""
        texts = [self.cache.captions[row][caption] for row, caption in batch.draw.pairs]
        whole, micro = batch.draw.whole, self.recipe.micro_batch
        groups = torch.from_numpy(whole)
        if self.retriever.datasets:
            self.retriever.dataset = datasets_of(self.cache)[_part_of(self.cache, whole)]
        stream = self.retriever.read_stream([self.cache.ids[row] for row in batch.draw.rows])
        with checkpointed(self.checkpointing):
            if self.processes.alone and not 0 < micro < len(texts):
                loss = batch_loss(self.retriever, texts, batch.frames, batch.mask, groups, self.frozen, stream)
                loss.backward()
                return loss.detach()
            share = share_backward(self.retriever, texts, batch.frames, batch.mask, groups, self.frozen, self.processes, micro, stream)
        if self.processes.alone:
            return share
        numbers = torch.cat([share[None], share.new_tensor(self.asks())])
        total: Tensor
        total, *told = summed(list(self.retriever.trained.values()), numbers, self.processes)
        self.told = [float(number) for number in told]
        return total

    def tensors(self) -> dict[str, Tensor]:
        """All that steps change, by name: what is trained or kept, the optimiser's state, torch's random states.

        Of several processes all call it, and the first one's are complete.
        """
        found = {f"model.{name}": value.detach() for name, value in self.retriever.kept.items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{i}.{key}": torch.as_tensor(value) for key, value in state.items()}
        if self.mined is not None:
            found["negatives"] = torch.from_numpy(self.mined[1])
        states = {"cpu": torch.get_rng_state()}
        if self.retriever.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.retriever.device)
        for kind, state in states.items():
            every = self.processes.gather(state[None].to(self.processes.device), [1] * self.processes.count).cpu()
            found |= {_random(kind, rank): each.clone() for rank, each in enumerate(every)}
        return found

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], place: Place, done: int) -> None:
        """Go on after ``done`` steps. Raises KeyError or RuntimeError for tensors of another training."""
        for name, value in self.retriever.kept.items():
            value.copy_(tensors[f"model.{name}"])
        optimizer: dict[int, dict[str, Any]] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                i, _, key = rest.partition(".")
                optimizer.setdefault(int(i), {})[key] = value
        self.optimizer.load_state_dict({"state": optimizer, "param_groups": self.optimizer.state_dict()["param_groups"]})
        rank = self.processes.rank
        if not rank or _random("cpu", rank) in tensors:  # one that was not there before has noise of its own already
            torch.set_rng_state(tensors[_random("cpu", rank)])
            if self.retriever.device.type == "cuda":
                torch.cuda.set_rng_state(tensors[_random("cuda", rank)], self.retriever.device)
        self.place, self.done = place, done
        if self.recipe.hard_negatives:
            self.mined = (place.epoch, tensors["negatives"].numpy())


def _part_of(cache: FrameReader, rows: np.ndarray) -> int:
    """Which of its data sets a batch is of."""
    return int(cache.part_of(rows[0])) if isinstance(cache, JoinedFrames) else 0


def _random(kind: str, rank: int) -> str:
    """The name of a process' random state in a checkpoint."""
    return f"random.{kind}" if rank == 0 else f"random.{kind}.{rank}"


def batch_loss(
    retriever: Retriever,
    texts: list[str],
    frames: Tensor,
    mask: Tensor,
    groups: Tensor,
    frozen: FrozenEmbeddings | None = None,
    stream: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The loss of a batch: texts (B), frames as ``Batch`` has them, mask (B, F), groups (B,) the video that each pair shows.

    stream: as ``Retriever.encode_frames`` takes it.
    """
    if frozen is None:
        return total_loss(retriever, texts, frames, mask, groups, stream)
    video, text = retriever.on_frames(frames, mask), retriever.on_text(frozen.text(texts))
    return contrastive_loss(retriever, text.float(), video.float(), mask, groups.to(text.device))


def fit(
    retriever: Retriever,
    cache: FrameReader,
    rows: np.ndarray,
    recipe: Recipe,
    stepped: Callable[[Step], None] | None = None,
    frozen: FrozenEmbeddings | None = None,
) -> Iterator[Step]:
    """Train a retriever's method and header on rows of a cache; yields the last step of each epoch, to validate or to stop.

    Of a training without a folder; ``train`` writes one. Raises Diverged, naming the step and its videos.
    """
    with closing(Trainer(retriever, cache, rows, recipe, frozen).run()) as steps:
        for step in steps:
            if stepped:
                stepped(step)
            if step.ends_epoch:
                yield step
