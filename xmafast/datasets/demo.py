"""The embedded data set: 600 animated emoji clips (Fluent design) with their labels and tags, 450 to train and 150 to test."""

from __future__ import annotations

import json
from pathlib import Path

from xmafast.datasets.base import Files, Protocol, Split, Video

ROOT = Path(__file__).parents[1] / "demo" / "fluent-clips"
SAMPLING = "uniform"  # the clips last three seconds: one frame a second would miss the motion
FRAME_SIZE = 96  # the demo backbone's input
# Of the first by cross-validation inside the training clips (benchmarks/tune_demo.py, with the epochs), of the others on one of its
# folds (benchmarks/methods.py tune).
LR = {
    "cross-modal": 5e-3,
    "adapter": 9e-3,
    "mv-adapter": 9e-3,
    "adaptformer": 2.7e-2,
    "convpass": 2.7e-2,
    "st-adapter": 9e-3,
    "coop": 1e-2,
    "vpt": 3e-2,
    "vl-prompt": 1e-2,
    "maple": 2.7e-2,
    "full": 3e-4,
    "partial": 2.7e-3,
    "projection": 3e-3,
    "bias": 2.7e-2,
    "seqTransf": 9e-4,
    "lora": 9e-3,
    "clip-lora": 9e-3,
    "routed": 9e-3,
    "uniadapter": 2.7e-2,
    "mrs": 2.7e-2,
    "multi-head": 0.243,
    "vop": 3e-2,
    "dgl": 3e-2,
    "coupled": 2.7e-2,
    "clip-adapter": 2.7e-2,
}
FILES: Files = {"train": (("captions.jsonl",),), "test": (("captions.jsonl",),)}
PROTOCOL = Protocol(
    title="Animated Fluent emoji",
    paper="none; embedded in xmafast",
    home="https://github.com/microsoft/fluentui-emoji",
    licence="MIT",
    videos={"train": 450, "test": 150},
    captions={"test": 150},
    queries="the label",
)


def splits(root: Path) -> dict[str, list[str]]:
    return {"train": [], "test": []}


def load(root: Path, split: str) -> Split:
    """train: the label, the tags, and both, as three captions of each clip. test: the label alone, the query."""
    videos = []
    with (root / "captions.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["split"] == split:
                tags = ", ".join(row["tags"])
                captions = (row["label"], tags, f"{row['label']}, {tags}") if split == "train" and tags else (row["label"],)
                videos.append(Video(row["id"], root / row["video"], captions))
    return Split(
        "demo",
        split,
        root,
        videos,
        captions_per_epoch="one",
        epochs=12,
        batch_size=64,
        train_frames=4,
        lr=LR,
        default_backbone="demo",
        default_pretrained="demo",
    )
