"""What a data set is to xmafast: videos with captions, in splits, and the protocol that goes with them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from xmafast.errors import DataError
from xmafast.files import IMAGES, VIDEOS

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Video:
    """One video or image: its id, its file (None where it is missing), its captions (none: it can only be searched)."""

    id: str
    path: Path | None
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """A split of a data set, and the protocol's choices that a cache remembers.

    captions_per_epoch: ``all`` (every pair of video and caption once) or ``one`` (every video once, with one caption drawn).
    epochs, batch_size, train_frames, lr: the training defaults for this data; lr 0 leaves it to the method.
    """

    dataset: str
    name: str
    root: Path
    videos: list[Video] = field(repr=False)
    captions_per_epoch: str = "all"
    epochs: int = 5
    batch_size: int = 128
    train_frames: int = 0
    lr: float = 0.0
    default_backbone: str = "ViT-B-32"
    default_pretrained: str = "openai"


def find_files(root: Path, suffixes: set[str] = VIDEOS | IMAGES) -> list[Path]:
    """Every file under ``root`` with one of these endings, sorted; links to folders are not followed."""
    found = []
    for folder, folders, files in os.walk(root):
        folders.sort()
        found += [Path(folder) / name for name in sorted(files) if Path(name).suffix.lower() in suffixes]
    return found


def need_folder(root: Path, dataset: str) -> None:
    """Raise DataError where a data set's folder is not there."""
    if not root.is_dir():
        raise DataError(f"There is no folder {root}; put {dataset}'s files there, or name the place with --root DIR.")
