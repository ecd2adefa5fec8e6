"""The folder of a run: whose it may be, and how it is begun."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from xmafast.errors import UsageError
from xmafast.files import is_scratch, write_atomically
from xmafast.training.settings import CONFIG, METRICS


def is_interrupted(out: Path) -> bool:
    """Whether a run was begun there, and has not come to its end."""
    return (out / CONFIG).is_file() and not (out / METRICS).exists()


def check_free(out: Path) -> None:
    """Raise UsageError unless ``out`` is new, empty, or a run that was interrupted: nothing else is ever overwritten."""
    if out.exists() and (not out.is_dir() or not (is_interrupted(out) or all(is_scratch(entry) for entry in out.iterdir()))):
        raise UsageError(f"{out} exists already; name another --out, so that no run is overwritten.")


def empty_folder(out: Path) -> None:
    """An empty folder for a run, which says from its first moment on that it is one."""
    check_free(out)  # again, now that no other process can be at work in it
    out.mkdir(exist_ok=True)
    for entry in [*(e for e in out.iterdir() if e.name != CONFIG), out / CONFIG]:
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def clear_scratch(out: Path) -> None:
    """Take away what a process that was killed was writing."""
    for entry in [path for path in out.rglob("*") if is_scratch(path)]:
        entry.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    write_atomically(path, lambda partial: partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))
