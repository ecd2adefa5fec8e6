"""Multiply-accumulates, against counts by hand."""

import pytest

from xmafast.macs import FRAMES, WORDS, count_macs
from xmafast.methods import METHODS
from xmafast.pretrained import backbone_shape, meta_backbone


def tower(tokens, width, depth):
    """Projections and MLP, and the two products of attention."""
    return depth * (tokens * 12 * width**2 + 2 * tokens**2 * width)


@pytest.mark.parametrize(("name", "size", "patch"), [("ViT-B-32", 224, 32), ("demo", 96, 16)])
def test_the_frozen_model_is_counted_as_by_hand(name, size, patch):
    s, patches = backbone_shape(name), (size // patch) ** 2
    image = patches * 3 * patch**2 * s.vision_width + tower(patches + 1, s.vision_width, s.vision_depth) + s.vision_width * s.embed_dim
    text = tower(WORDS, s.text_width, s.text_depth) + s.text_width * s.embed_dim
    assert count_macs(meta_backbone(name)) == {"video": FRAMES * image, "text": text}


def test_an_adapter_costs_its_two_products_a_token():
    s, r = backbone_shape("demo"), 8
    frozen, adapted = count_macs(meta_backbone("demo")), count_macs(meta_backbone("demo"), "adapter")
    assert adapted["video"] - frozen["video"] == FRAMES * 37 * s.vision_depth * 2 * 2 * r * s.vision_width
    assert adapted["text"] - frozen["text"] == WORDS * s.text_depth * 2 * 2 * r * s.text_width


@pytest.mark.parametrize(  # all but one, which merges tokens
    "method",
    [
        pytest.param(name, marks=() if name in ("mv-adapter", "coop", "lora", "memory") else pytest.mark.slow)
        for name in METHODS
        if name != "tempme"
    ],
)
def test_no_method_is_cheaper_than_the_frozen_model(method):
    frozen, adapted = count_macs(meta_backbone("demo")), count_macs(meta_backbone("demo"), method)
    assert adapted["video"] >= frozen["video"]
    assert method == "coop" or adapted["text"] >= frozen["text"]  # its words leave fewer to the caption, in a context of 32
