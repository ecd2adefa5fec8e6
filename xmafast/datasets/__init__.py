"""Published annotation files -> videos, captions, splits: one file per data set.

A loader module offers ``splits(root)``, the splits that its files define with, for each, the files that are missing, and
``load(root, split)``, and names ``SAMPLING``, the frame sampling of its protocol.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from xmafast.datasets import demo, folder, msrvtt
from xmafast.datasets.base import SPLITS, Split, Video
from xmafast.errors import DataError, UsageError, unknown

DATASETS: dict[str, ModuleType] = {"demo": demo, "folder": folder, "msrvtt": msrvtt}


def loader(dataset: str) -> ModuleType:
    if dataset not in DATASETS:
        raise unknown("data set", dataset, DATASETS)
    return DATASETS[dataset]


def default_root(dataset: str, workspace: Path) -> Path:
    return demo.ROOT if dataset == "demo" else workspace / "datasets" / dataset


def load_split(dataset: str, root: Path, split: str) -> Split:
    """One split. Raises UsageError where the data set has no such split, DataError where a file of it is missing or malformed."""
    module = loader(dataset)
    known: dict[str, list[str]] = module.splits(root)
    if split not in known:
        hint = " `xmafast train` cuts its own validation split from train." if split == "val" else ""
        raise UsageError(f"{dataset} has no {split} split; it has: {', '.join(known)}.{hint}")
    if known[split]:
        raise DataError(known[split][0])
    loaded: Split = module.load(root, split)
    return loaded


def usable_splits(dataset: str, root: Path) -> tuple[list[str], list[str]]:
    """The splits whose files are all there, and a sentence for each missing file of the others."""
    known: dict[str, list[str]] = loader(dataset).splits(root)
    return [name for name, missing in known.items() if not missing], [line for missing in known.values() for line in missing]


__all__ = ["DATASETS", "SPLITS", "Split", "Video", "default_root", "load_split", "loader", "usable_splits"]
