"""Which files are videos and images, and writing files so that a crash leaves the old one or the new one, never half of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}
VIDEOS = {".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".3gp", ".3g2", ".flv", ".wmv", ".mts", ".m2ts", ".ogv"}
SCRATCH = ".partial"


def is_scratch(path: Path) -> bool:
    """Whether a file is one that ``write_atomically`` was filling; of a process that was killed it is left."""
    return path.name.startswith(".") and path.suffix == SCRATCH


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """``write`` fills a file beside ``path``, which then takes its name; on any error ``path`` stays as it was."""
    partial = path.with_name(f".{path.name}.{os.getpid()}{SCRATCH}")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
