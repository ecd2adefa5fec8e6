"""Processes that train together on the CPU, kept for many checks: forked from a server that has all of this imported.

``Crew(3).all(step, ...)`` calls a function of this module in three processes of one gloo group, and gives what each one returned.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import zlib
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support import ready
from torch import Tensor

from xmafast import training
from xmafast.backbone import Backbone
from xmafast.cache import FrameCache
from xmafast.distributed import Processes, joined
from xmafast.evaluation import rank_cache
from xmafast.frozen_embeddings import FrozenEmbeddings
from xmafast.losses import sharded_info_nce
from xmafast.methods.stream import Stream
from xmafast.pretrained import load_backbone
from xmafast.retriever import Retriever
from xmafast.training import Recipe, Trainer
from xmafast.training.data import Batch, Draw, Place
from xmafast.training.negatives import hard_negatives

LONGEST = 120.0

backbone = functools.cache(functools.partial(load_backbone, "demo"))


def server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["together"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        forkserver.ensure_running()  # of sys.path it would know nothing
    return context


class Crew:
    """count processes of one group, whose meeting place is a file in ``folder``."""

    def __init__(self, count: int, folder: Path) -> None:
        context, self.ends, self.members = server(), [], []
        for rank in range(count):
            here, there = context.Pipe()
            member = context.Process(target=_serve, args=(there, rank, count, str(folder / f"store-{count}")), daemon=True)
            member.start()
            self.ends.append(here)
            self.members.append(member)

    def all(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
        for end in self.ends:
            end.send((function, arguments, options))
        found = []
        for end in self.ends:
            assert end.poll(LONGEST), "a process does not answer"
            found.append(end.recv())
        for value in found:
            if isinstance(value, BaseException):
                raise value
        return found

    def close(self) -> None:
        for end, member in zip(self.ends, self.members, strict=True):
            end.close()
            member.join(10)
            if member.is_alive():
                member.kill()


def _serve(end: Connection, rank: int, count: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timedelta(seconds=LONGEST))
    while True:
        try:
            function, arguments, options = end.recv()
        except EOFError:
            return
        try:
            with joined() as processes:
                end.send(function(processes, *arguments, **options))
        except BaseException as error:  # the caller raises it
            end.send(error)


class Heard:
    """Another stream of any video, by its id."""

    def __init__(self, width: int) -> None:
        self.width = width

    def read(self, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        made = [torch.randn(2, self.width, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))) for name in ids]
        return torch.stack(made) if made else torch.zeros(0, 2, self.width), torch.ones(len(ids), 2, dtype=torch.bool)


def model_of(method: str | None, header: str | None, on: Backbone, **options: Any) -> Retriever:
    """A method away from its start, so that nothing is zero that need not be."""
    torch.manual_seed(0)
    model = Retriever(on, method, header, **{**ready(method), **options}).train()
    if isinstance(model.method, Stream):
        model.stream = Heard(model.method.stream_width)  # type: ignore[assignment]
    with torch.no_grad():
        for parameter in model.trained.values():
            parameter.add_(torch.randn_like(parameter) * 0.005)
    return model


def pairs_of(cache: FrameCache, count: int) -> list[tuple[int, int]]:
    """Pairs whose first and last are of one video."""
    pairs = [(int(row), 0) for row in cache.rows[: count - 1]]
    return [*pairs, (pairs[0][0], len(cache.captions[pairs[0][0]]) - 1)]


def step(
    processes: Processes,
    path: Path,
    method: str | None,
    header: str | None,
    count: int,
    micro_batch: int = 0,
    on: Backbone | None = None,
    pairs: list[tuple[int, int]] | None = None,
    patch_drop: float = 0.0,
    **options: Any,
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The loss and the gradients of a step on ``count`` pairs, or on those."""
    cache, model = FrameCache(path), model_of(method, header, on or backbone(), **options)
    model.patch_drop = patch_drop
    frozen = FrozenEmbeddings(model, cache) if model.on_features else None
    trainer = Trainer(model, cache, cache.rows, Recipe(1, 2, micro_batch=micro_batch), frozen, processes=processes)
    pairs = pairs or pairs_of(cache, count)
    draw = Draw(pairs, None, Place(), np.array([row for row, _ in pairs])).part(processes)
    shape = (0, *cache.shape[1:])
    frames, mask = torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape[:2], dtype=torch.bool)
    if len(draw.pairs):
        frames, mask = (frozen or cache).read(draw.rows)
    torch.manual_seed(7)
    trainer.optimizer.zero_grad()
    loss = trainer.backward(Batch(draw, frames, mask, 0.0))
    return loss, {name: parameter.grad for name, parameter in model.trained.items()}


def exchanged(processes: Processes, own: Tensor, counts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """gather, scatter_sum of what was gathered times the rank from 1, and maximum."""
    part = own.split(counts)[processes.rank]
    every = processes.gather(part, counts)
    return every, processes.scatter_sum(every * (processes.rank + 1), counts), processes.most(torch.tensor([float(processes.rank)]))


def shares(
    processes: Processes, queries: Tensor, candidates: Tensor, groups: Tensor | None, counts: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The share of the loss, and the gradients of own queries, own candidates and the scale."""
    own = slice(sum(counts[: processes.rank]), sum(counts[: processes.rank + 1]))
    leaves = [t[own].clone().requires_grad_() for t in (queries, candidates)] + [
        torch.tensor(20.0, dtype=queries.dtype, requires_grad=True)
    ]
    ids = None if groups is None else (groups[own], groups)
    share = sharded_info_nce(leaves[0], leaves[1], leaves[2], processes=processes, counts=counts, group_ids=ids)
    return (share.detach(), *torch.autograd.grad(share, leaves))


def ranks(processes: Processes, path: Path, method: str | None, header: str | None, captions: int | None = None) -> Any:
    cache, model = FrameCache(path), model_of(method, header, backbone())
    found = rank_cache(
        model, cache, captions=captions, frozen=FrozenEmbeddings(model, cache) if model.on_features else None, processes=processes
    )
    return found.t2v, found.v2t


def negatives(processes: Processes, path: Path, rows: list[int], count: int) -> np.ndarray:
    cache, model = FrameCache(path), model_of("cross-modal", "mean", backbone())
    return hard_negatives(model, cache, np.array(rows, dtype=np.int64), count, processes=processes)


def noise(processes: Processes, path: Path) -> tuple[Tensor, Tensor]:
    """What is initialised, and what is drawn afterwards."""
    cache = FrameCache(path)
    torch.manual_seed(0)
    model = Retriever(backbone())
    Trainer(model, cache, cache.rows, Recipe(1, 2), processes=processes)
    return torch.cat([p.detach().flatten() for p in model.trained.values()]), torch.rand(4)


def run(processes: Processes, path: Path, out: Path, stop_at: int = 0, rank: int = 0, **options: Any) -> tuple[Any, list[int]]:
    """(metrics or what an interrupted training says, the steps that were reported). stop_at: in which step a signal comes to ``rank``."""
    reported: list[int] = []
    real, calls = Trainer.backward, []

    def backward(trainer: Trainer, batch: Batch) -> Tensor:
        calls.append(1)
        if len(calls) == stop_at and processes.rank == rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(trainer, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "backward", backward)
        try:
            given = {} if options.get("resume") else {"cache": path}
            found = training.train(out=out, backbone=backbone(), report=lambda step, _: reported.append(step.step), **given, **options)
        except training.Interrupted as stopped:
            return str(stopped), reported
    return found.metrics, reported


def read_rows(processes: Processes, path: Path, batch_size: int) -> list[list[int]]:
    """The rows that a process reads of its cache in an epoch, a list for each reading."""
    cache, found = FrameCache(path), []
    real = cache.read

    def read(rows: np.ndarray, out: Any = None) -> Any:
        found.append([int(row) for row in rows])
        return real(rows, out) if out is not None else real(rows)

    cache.read = read  # type: ignore[method-assign]
    for _ in Trainer(Retriever(backbone()), cache, cache.rows, Recipe(1, batch_size), processes=processes).run():
        pass
    return found
