"""What several tests build by hand: shallow backbones and pieces of the embedded data."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from xmafast.backbone import Backbone
from xmafast.cache.decode import resolve_decoder
from xmafast.datasets import demo
from xmafast.datasets.base import Split, Video
from xmafast.errors import UsageError

PREPROCESS = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}


def shallow(name: str, vision: int = 2, text: int = 2, **changes: object) -> Backbone:
    """A named open_clip model with random weights, its real widths, and few blocks."""
    config = copy.deepcopy(open_clip.get_model_config(name)) | changes
    config["vision_cfg"]["layers"], config["text_cfg"]["layers"] = vision, text
    custom = config.pop("custom_text", False)
    torch.manual_seed(0)
    clip = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    return Backbone(name, "none", clip, SimpleTokenizer(), PREPROCESS)


def demo_split(name: str, count: int, root: Path = demo.ROOT) -> Split:
    """The first ``count`` clips of a split of the embedded data."""
    split = demo.load(demo.ROOT, name)
    videos = [Video(v.id, root / Path(v.path).relative_to(demo.ROOT), v.captions) for v in split.videos[:count] if v.path]
    return replace(split, videos=videos, root=root)


def need_decoder(name: str) -> None:
    """Skip a test where this decoder is not installed or cannot be loaded."""
    try:
        resolve_decoder(name)
    except UsageError as error:
        pytest.skip(str(error))
