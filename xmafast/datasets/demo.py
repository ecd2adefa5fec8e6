"""The embedded data set: 600 animated emoji clips (Fluent design) with their labels and tags, 450 to train and 150 to test."""

from __future__ import annotations

import json
from pathlib import Path

from xmafast.datasets.base import Files, Protocol, Split, Video

ROOT = Path(__file__).parents[1] / "demo" / "fluent-clips"
SAMPLING = "uniform"  # the clips last three seconds: one frame a second would miss the motion
FRAME_SIZE = 96  # the demo backbone's input
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
        lr=5e-3,  # with the epochs, by cross-validation inside the training clips: benchmarks/tune_demo.py
        default_backbone="demo",
        default_pretrained="demo",
    )
