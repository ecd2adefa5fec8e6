"""Stills of a third design, for the study's image-text row: python benchmarks/study_stills.py FOLDER

Fetches the npm package emoji-datasource-facebook once (its 64-pixel images; they are measured on, and are no part of xmafast). Neither the
backbone's pretraining (Google's and Twitter's designs) nor a training on the demo (Fluent) has seen this design.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from xmafast.datasets import demo
from xmafast.demo import pretrain

DESIGN = "facebook"
PACKAGES = {DESIGN: f"emoji-datasource-{DESIGN}@16.0.0"}


def images_of(folder: Path) -> Path:
    return folder / DESIGN / "package" / "img" / DESIGN / "64"


def test_stills(folder: Path) -> tuple[torch.Tensor, list[str]]:
    """(N, 1, 96, 96, 3) uint8 on white and their labels: the demo's test emoji in the third design, those that it has."""
    files = {path.stem.replace("-fe0f", ""): path for path in images_of(folder).glob("*.png")}
    images, labels = [], []
    with (demo.ROOT / "captions.jsonl").open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            key = row["id"].replace("-fe0f", "")
            if row["split"] == "test" and key in files:
                rgba = np.asarray(Image.open(files[key]).convert("RGBA").resize((64, 64)))
                images.append(torch.from_numpy(rgba.copy()).permute(2, 0, 1))
                labels.append(row["label"])
    if not images:
        raise FileNotFoundError(f"{images_of(folder)} holds none of the test emoji; fetch them with: python {__file__} {folder}")
    frames = (pretrain.on_white(torch.stack(images)) * 255).round().byte()
    return frames.permute(0, 2, 3, 1)[:, None].contiguous(), labels


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    pretrain.fetch_stills(target, PACKAGES)
    print(f"{target}: {len(test_stills(target)[1])} of the demo's test emoji")
