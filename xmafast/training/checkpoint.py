"""The checkpoint of a run that is under way: one file, the old one or the new one, whatever happens while it is written.

    checkpoint.safetensors    tensors: model.NAME, optimizer.I.KEY, random.cpu, random.cuda
                              metadata: {"state": JSON of the rest}

It is written beside the old one, brought to the disk and renamed, so that neither a kill nor a full disk can leave half of it. Nothing
in it is ever run: safetensors and JSON.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from xmafast.cache.file import FULL
from xmafast.distributed import NPROC
from xmafast.errors import RunError, UsageError
from xmafast.files import write_atomically
from xmafast.training.data import Place
from xmafast.training.settings import CONFIG

CHECKPOINT = "checkpoint.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class State:
    """Where a run stands beside its tensors: steps done, their place, what was validated, seconds of training, length of its log.

    fitted: what fitting found before the first step.
    """

    step: int
    place: Place
    seconds: float
    log_bytes: int
    history: list[dict[str, Any]] = field(default_factory=list)
    fitted: dict[str, Any] = field(default_factory=dict)


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], state: State) -> None:
    """Raises OSError where the disk is full; the checkpoint before it is still there then."""
    text = json.dumps({"format": FORMAT, **asdict(state)})
    content = save({name: value.cpu().contiguous() for name, value in tensors.items()}, {"state": text})
    write_atomically(folder / CHECKPOINT, lambda partial: partial.write_bytes(content))


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], State] | None:
    """The tensors, on the CPU, and the state; None where none was written yet. Raises RunError for a damaged one."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        if state.pop("format") != FORMAT:
            raise RunError(f"{path} was written by another version of xmafast; go on with that one, or begin anew without --resume.")
        return tensors, State(**{**state, "place": Place(**state["place"])})
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RunError(f"{path} is damaged ({reason}); restore it, or begin anew without --resume.") from error


def resume_command(folder: Path) -> str:
    processes = f"--nproc {os.environ[NPROC]} " if NPROC in os.environ else ""
    return f"xmafast train --resume {processes}--out {shlex.quote(str(folder))}"


class Cadence:
    """When to write a checkpoint: every so many seconds (``"60s"``) or steps (``"200"``). Raises UsageError for anything else."""

    def __init__(self, text: str) -> None:
        found = re.fullmatch(r"(\d+)(s?)", text.strip())
        if not found or int(found[1]) < 1:
            raise UsageError(f"--save-every is a number of seconds, as 60s, or of steps, as 200, not {text!r}.")
        self.every, self.by_time = int(found[1]), bool(found[2])
        self.last = time.monotonic()

    def due(self, step: int) -> bool:
        return time.monotonic() - self.last >= self.every if self.by_time else step % self.every == 0

    def saved(self) -> None:
        self.last = time.monotonic()


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """Turn the error of a full disk into a RunError that says what is kept and how to go on."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = error.errno in FULL if isinstance(error, OSError) else "StorageFull" in str(error) or "No space" in str(error)
        if not full:
            raise
        room = f"There is no room left for {folder}"
        if not (folder / CONFIG).is_file():
            raise RunError(f"{room}, of which nothing is written yet. Make room, and repeat the command.") from error
        kept = "its last checkpoint is kept" if (folder / CHECKPOINT).is_file() else "no checkpoint was written yet"
        raise RunError(f"{room}; {kept}. Make room, and go on with: {resume_command(folder)}") from error
