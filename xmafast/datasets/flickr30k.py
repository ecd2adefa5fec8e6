"""Flickr30k (Young et al., TACL 2014) in Karpathy's split: 29,000 images to train, 1,014 to validate, 1,000 to test.

ROOT/dataset_flickr30k.json        {"images": [{"filename", "split", "sentences": [{"raw"}, ...]}, ...]}
ROOT/flickr30k-images/*.jpg        in any folder under ROOT

Five captions an image, each a query.

Home and terms: https://shannon.cs.illinois.edu/DenotationGraph/
"""

from __future__ import annotations

from pathlib import Path

from xmafast.datasets.base import BEST_CAPTION, Files, Protocol, Split, missing_files
from xmafast.datasets.coco import WHERE, karpathy

SAMPLING = "uniform"
FILES: Files = dict.fromkeys(("train", "val", "test"), (("dataset_flickr30k.json",),))
PROTOCOL = Protocol(
    title="Flickr30k",
    paper="Young et al., From image descriptions to visual denotations, TACL 2014; split: Karpathy and Fei-Fei, CVPR 2015",
    home="https://shannon.cs.illinois.edu/DenotationGraph/",
    licence="research and education, by the terms on its home page; the images belong to their owners on Flickr",
    videos={"train": 29_000, "val": 1014, "test": 1000},
    captions={"train": 145_000, "val": 5070, "test": 5000},
    frames=1,
    words=32,
    v2t=BEST_CAPTION,
)


def splits(root: Path) -> dict[str, list[str]]:
    return missing_files(root, "Flickr30k", FILES, WHERE)


def load(root: Path, split: str) -> Split:
    return Split("flickr30k", split, root, karpathy(root, root / "dataset_flickr30k.json", split))
