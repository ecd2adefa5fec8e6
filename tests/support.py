"""What several tests build by hand: shallow backbones and pieces of the embedded data."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip
import pytest
import timm
import torch
from open_clip.tokenizer import SimpleTokenizer

from xmafast.backbone import Backbone
from xmafast.cache.decode import resolve_decoder
from xmafast.datasets import demo
from xmafast.datasets.base import Split, Video
from xmafast.errors import UsageError
from xmafast.pretrained import DEMO, load_backbone
from xmafast.retriever import Retriever

PREPROCESS = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}


def shallow(name: str, vision: int = 2, text: int = 2, **changes: object) -> Backbone:
    """A named open_clip model with random weights, its real widths, and few blocks."""
    config = copy.deepcopy(open_clip.get_model_config(name)) | changes
    config["vision_cfg"]["layers"], config["text_cfg"]["layers"] = vision, text
    custom = config.pop("custom_text", False)
    torch.manual_seed(0)
    clip = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    return Backbone(name, "none", clip, SimpleTokenizer(), PREPROCESS)


@cache
def second_backbone() -> Backbone:
    """A small one beside any other, for methods that fuse two."""
    return load_backbone("demo", "none")


def ready(method: str | None) -> dict[str, Any]:
    """The options under which a method trains something on any backbone, offline."""
    return {"hada": {"second": second_backbone()}, "memory": {"pairs": 4, "trainable_keys": True}}.get(method or "", {})


def with_stream(model: Retriever) -> Retriever:
    """A method that reads another stream of each video is given one, the same for all."""
    if model.reads_stream:
        width = next(part.stream_width for part in getattr(model.method, "parts", {"": model.method}).values() if part.reads_stream)
        features = torch.randn(1, 3, width, generator=torch.Generator().manual_seed(0))
        encode = model.encode_frames

        def encode_frames(x, mask=None, stream=None):
            return encode(x, mask, (features.expand(len(x), -1, -1), torch.ones(len(x), 3, dtype=torch.bool)))

        model.encode_frames = encode_frames
    return model


def shallow_timm(name: str, vision: int = 2, text: int = 2, trunk: dict | None = None, **text_changes: object) -> Backbone:
    """A named open_clip model around a timm tower, with random weights, few blocks and the demo's small vocabulary.

    trunk: what else to change of timm's tower, by timm's names. Weights that timm starts at zero, or next to it, do not: a bias or a
    head that a forward leaves out has to show.
    """
    trunk = {"depth": vision, **(trunk or {})}
    tokenizer = SimpleTokenizer(bpe_path=str(DEMO / "bpe.txt.gz"))
    config = copy.deepcopy(open_clip.get_model_config(name))
    if config is None and version("open_clip_torch").startswith("3.1."):
        pytest.skip(f"open_clip 3.1, the oldest that is tested, has no {name}")
    config["text_cfg"] |= {"layers": text, "vocab_size": tokenizer.vocab_size, **text_changes}
    if "img_size" in trunk:
        config["vision_cfg"]["image_size"] = trunk["img_size"]
    if "embed_dim" in trunk and config["vision_cfg"]["timm_proj"] == "none":  # the trunk's width is the common space's
        config["embed_dim"] = trunk["embed_dim"]
    custom = config.pop("custom_text", False)
    torch.manual_seed(0)
    with mock.patch.object(timm, "create_model", partial(timm.create_model, **trunk)):
        clip = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    for key, parameter in clip.named_parameters():
        if key.endswith("bias") or ".gamma_" in key or key == "visual.trunk.head.weight":
            torch.nn.init.normal_(parameter, std=0.05)
    return Backbone(name, "none", clip, tokenizer, PREPROCESS)


SMALL_TRUNK = {"img_size": 64, "embed_dim": 192, "num_heads": 3}
SMALL_TEXT = {"width": 128, "heads": 2, "context_length": 24}


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
