"""What a run says while it trains: log.jsonl always, TensorBoard and a profiler's trace where they are asked for."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from xmafast.errors import UsageError
from xmafast.training.loop import Step

LOG, TENSORBOARD, TRACE = "log.jsonl", "tensorboard", "trace.json"
PROFILED = 3  # steps in a trace


class Log:
    """Rows of JSON, appended; what stands after ``keep`` bytes is cut off first. Raises OSError where the disk is full."""

    def __init__(self, path: Path, keep: int = 0) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        os.ftruncate(self._file, min(keep, os.fstat(self._file).st_size))
        os.lseek(self._file, 0, os.SEEK_END)

    def write(self, row: dict[str, Any]) -> None:
        text = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8")
        if os.write(self._file, text) != len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def synced(self) -> int:
        """The length of what is on the disk."""
        os.fsync(self._file)
        return os.fstat(self._file).st_size

    def close(self) -> None:
        os.close(self._file)


class NoLog(Log):
    """That of a process which does not write."""

    def __init__(self) -> None:
        pass

    def write(self, row: dict[str, Any]) -> None:
        pass

    def synced(self) -> int:
        return 0

    def close(self) -> None:
        pass


def require_tensorboard() -> None:
    """Raise UsageError where the package is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError("--tensorboard needs a package that is not installed; install it with: pip install 'xmafast[tensorboard]'")


class TensorBoard:
    """Event files in RUN/tensorboard; those of steps after ``done``, of a run that is resumed, are hidden."""

    def __init__(self, folder: Path, done: int) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter  # here, since it imports the package

        self._writer = SummaryWriter(str(folder / TENSORBOARD), purge_step=done + 1)

    def step(self, step: Step) -> None:
        for name in ("loss", "grad_norm", "lr", "videos_per_second", "wait"):
            self._writer.add_scalar(f"train/{name}", getattr(step, name), step.step)

    def epoch(self, row: dict[str, Any], step: int) -> None:
        for direction, metrics in row["validation"].items():
            for name, value in metrics.items():
                self._writer.add_scalar(f"validation/{direction} {name}", value, step)
        self._writer.add_scalar("validation/r_sum", row["r_sum"], step)
        self._writer.add_scalar("train/peak_memory_bytes", row["peak_memory_bytes"], step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Profile:
    """A Chrome trace of a few steps, RUN/trace.json: of the first ones, but for one where there are more to come."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.path = folder / TRACE
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        skipped = 1 if steps > 1 else 0
        when = torch.profiler.schedule(wait=0, warmup=skipped, active=min(PROFILED, steps - skipped), repeat=1)
        self._profiler = torch.profiler.profile(activities=kinds, schedule=when, on_trace_ready=self._write)
        self._profiler.start()

    def _write(self, profiler: Any) -> None:
        profiler.export_chrome_trace(str(self.path))

    def step(self) -> None:
        self._profiler.step()

    def close(self) -> None:
        self._profiler.stop()


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that was allocated on a GPU, or that this process has had in memory; 0 where neither is known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
