"""Several processes that train as one: who this one is, and what they do together.

``torchrun``, or ``xmafast train --nproc``, starts them and says in the environment who each one is: nccl connects GPUs, gloo processes
on a CPU. Every call here is made by all processes, in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from xmafast.errors import RunError, UsageError

LONGEST = timedelta(hours=6)  # that one may wait for another, as while the first embeds a data set; a death is noticed at once
CPU = torch.device("cpu")
NPROC = "XMAFAST_NPROC"  # in the environment of what --nproc has started: how many
PARENT = "XMAFAST_PARENT"  # which process has


class Lost(RunError):
    """Another process of the training has ended, so that this one cannot go on."""


@dataclass(frozen=True)
class Processes:
    """Those that train together: this one's ``rank`` of ``count``, on ``device`` for what they send each other."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether it is this one that writes files and speaks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.count == 1

    def counts(self, total: int) -> list[int]:
        """How many of ``total`` items each process has: those of the first ones are larger by at most one, and may be all there are."""
        least, more = divmod(total, self.count)
        return [least + (rank < more) for rank in range(self.count)]

    def part(self, total: int) -> slice:
        """Which of ``total`` items are this one's: neighbours, in the order of the ranks."""
        counts = self.counts(total)
        start = sum(counts[: self.rank])
        return slice(start, start + counts[self.rank])

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each; in place."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def most(self, tensor: Tensor) -> Tensor:
        """The maximum over all processes; in place."""
        return self._reduced(tensor, dist.ReduceOp.MAX)

    def gather(self, own: Tensor, counts: Sequence[int]) -> Tensor:
        """(counts[rank], ...) -> (sum of counts, ...), in the order of the ranks."""
        if self.alone:
            return own
        padded = own.new_zeros(max(counts), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in counts]
        with _told():
            dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def scatter_sum(self, every: Tensor, counts: Sequence[int]) -> Tensor:
        """(sum of counts, ...) of each process -> (counts[rank], ...), this one's rows of their sum: what ``gather`` is backwards."""
        if self.alone:
            return every
        start, end = sum(counts[: self.rank]), sum(counts[: self.rank + 1])
        if dist.get_backend() != "nccl" or len(set(counts)) > 1:  # gloo has it for some versions alone
            return self.sum(every.clone())[start:end]
        own = every.new_empty(end - start, *every.shape[1:])
        with _told():
            dist.reduce_scatter_tensor(own, every.contiguous())
        return own

    def share(self, tensor: Tensor) -> None:
        """Give every process what the first one has; in place."""
        if not self.alone:
            there = tensor.to(self.device)
            with _told():
                dist.broadcast(there, 0)
            tensor.copy_(there)

    def say(self, text: str) -> str:
        """The first one's text."""
        if self.alone:
            return text
        content = torch.tensor(list(text.encode("utf-8")), dtype=torch.uint8)
        length = torch.tensor([len(content)])
        self.share(length)
        content = content if self.first else torch.zeros(int(length), dtype=torch.uint8)
        self.share(content)
        return bytes(content.tolist()).decode("utf-8")

    def wait(self) -> None:
        """For all of them to come here."""
        self.sum(torch.zeros(1, device=self.device)).item()

    def _reduced(self, tensor: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
        if not self.alone:
            with _told():
                dist.all_reduce(tensor, how)
        return tensor


ALONE = Processes()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise Lost(f"Another process of this training has ended, and this one cannot go on without it ({reason}).") from error


def launched() -> bool:
    """Whether ``torchrun``, or anything that sets the same variables, has started this process with others."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ) and int(os.environ["WORLD_SIZE"]) > 1


def orphaned() -> bool:
    """Whether the process that has started this one for --nproc was killed."""
    return os.environ.get(PARENT, "") not in ("", str(os.getppid()))


def check_gpus(count: int) -> None:
    """Raise UsageError where this machine has GPUs, but fewer than processes."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if 0 < found < count:
        raise UsageError(
            f"{count} processes need {count} GPUs, and this machine has {found}; with CUDA_VISIBLE_DEVICES= they train on its CPU."
        )


@contextmanager
def joined() -> Iterator[Processes]:
    """This process among those that were started with it, or alone. A group that the caller has made is taken as it is.

    Raises UsageError where there are fewer GPUs than processes, Lost where the others cannot be reached.
    """
    if dist.is_available() and dist.is_initialized():
        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else CPU
        yield Processes(dist.get_rank(), dist.get_world_size(), device)
        return
    if not launched():
        yield ALONE
        return
    device = CPU
    if torch.cuda.is_available():
        check_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    with _told():
        dist.init_process_group("gloo" if device.type == "cpu" else "nccl", timeout=LONGEST)
    yield Processes(dist.get_rank(), dist.get_world_size(), device)
    dist.destroy_process_group()  # after an error it ends with the process: until then the others wait, and one at a time speaks
