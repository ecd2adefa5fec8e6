"""Published annotation files -> videos, captions, splits: one file per data set.

A loader offers ``splits(root)``, the splits that its files define with, for each, the files that are missing, and
``load(root, split)``, and names ``SAMPLING``, the frame sampling of its protocol, ``PROTOCOL``, how the field uses the data, and
``FILES``, the annotation files of each split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xmafast.datasets import activitynet, coco, demo, didemo, flickr30k, folder, lsmdc, msrvtt, msvd, vatex
from xmafast.datasets.base import SPLITS, Protocol, Split, Video, tree
from xmafast.errors import DataError, UsageError, unknown

# a loader is a module, or, for a variant of one, a namespace with the same names
DATASETS: dict[str, Any] = {
    "demo": demo,
    "folder": folder,
    "msrvtt": msrvtt,
    "msrvtt-7k": msrvtt.seven_k,
    "msrvtt-full": msrvtt.full,
    "msvd": msvd,
    "vatex": vatex,
    "activitynet": activitynet,
    "didemo": didemo,
    "lsmdc": lsmdc,
    "coco": coco,
    "flickr30k": flickr30k,
}


def loader(dataset: str) -> Any:
    """The module of a data set. Raises UsageError for an unknown name."""
    if dataset not in DATASETS:
        raise unknown("data set", dataset, DATASETS)
    return DATASETS[dataset]


def default_root(dataset: str, workspace: Path) -> Path:
    """Where the data set's files are looked for when no folder is named."""
    return demo.ROOT if dataset == "demo" else workspace / "datasets" / dataset.partition("-")[0]  # variants share a folder


def load_split(dataset: str, root: Path, split: str) -> Split:
    """One split. Raises UsageError where the data set has no such split, DataError where a file of it is missing or malformed."""
    module = loader(dataset)
    known: dict[str, list[str]] = module.splits(root)
    if split not in known:
        hint = " `xmafast train` cuts its own validation split from train." if split == "val" else ""
        raise UsageError(f"{dataset} has no {split} split; it has: {', '.join(known)}.{hint}")
    if known[split]:
        raise missing(dataset, root, known[split])
    loaded: Split = module.load(root, split)
    return loaded


def usable_splits(dataset: str, root: Path) -> tuple[list[str], list[str]]:
    """The splits whose files are all there, and a sentence for each missing file of the others."""
    known: dict[str, list[str]] = loader(dataset).splits(root)
    remarks = dict.fromkeys(line for lines in known.values() for line in lines)
    return [name for name, lines in known.items() if not lines], list(remarks)


def missing(dataset: str, root: Path, sentences: list[str]) -> DataError:
    """The error for files that are not there: one sentence, and under it the tree that was expected."""
    more = f" ({len(sentences) - 1} more files are missing.)" if len(sentences) > 1 else ""
    return DataError(f"{sentences[0]}{more}\n{tree(root, loader(dataset).FILES)}")


__all__ = ["DATASETS", "Protocol", "SPLITS", "Split", "Video", "default_root", "load_split", "loader", "missing", "usable_splits"]
