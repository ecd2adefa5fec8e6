"""LoRA and CLIP-LoRA: formula, sizes, merging, on fused and split projections."""

import pytest
import torch

from xmafast.backbone import Shape
from xmafast.errors import UsageError
from xmafast.methods import build_method
from xmafast.methods.base import Context
from xmafast.pretrained import backbone_shape
from xmafast.retriever import Retriever

SMALL = Shape(24, 2, 16, 2, 16, 1000)
CAPTIONS = ["a red heart beats", "rain", "two cats"]


def moved(backbone, name="lora", **options):
    torch.manual_seed(0)
    model = Retriever(backbone, name, **options).eval()
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.normal_(std=0.05)
    return model


def frames(backbone, b=2, f=2):
    size = backbone.image_size
    return torch.randint(0, 256, (b, f, size, size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16"])
def test_they_have_the_published_sizes(name):
    shape = backbone_shape(name)
    assert build_method("lora", shape).trainable == 491_520
    assert build_method("clip-lora", shape).trainable == 184_320


@pytest.mark.parametrize(("name", "scale"), [("lora", 1.0), ("clip-lora", 1 / 2**0.5)])
def test_the_update_is_its_formula(name, scale):
    torch.manual_seed(0)
    method = build_method(name, SMALL).double().eval()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_()
    h, qkv = torch.randn(3, 5, 24, dtype=torch.float64), torch.randn(3, 5, 72, dtype=torch.float64)
    found, own = method.vision_places(1, Context()).qkv(h, qkv), method.vision[1]
    pieces = []
    for i in range(3):  # q, k, v
        rank = own.up.shape[1]
        down = own.down[:rank] if own.groups == 1 else own.down[i * rank : (i + 1) * rank]
        pieces.append(torch.einsum("btd,rd,or->bto", h, down, own.up[24 * i : 24 * i + 24]))
    torch.testing.assert_close(found, qkv + scale * torch.cat(pieces, -1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["lora", "clip-lora"])
def test_merged_equals_unmerged_in_both_encoders_and_back_to_the_bit(demo_backbone, name):
    model, x = moved(demo_backbone, name), frames(demo_backbone)
    before = {key: value.clone() for key, value in demo_backbone.state_dict().items()}
    with torch.no_grad():
        video, text = model.encode_frames(x), model.encode_text(CAPTIONS)
        model.merge()
        torch.testing.assert_close(model.encode_frames(x), video, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.encode_text(CAPTIONS), text, rtol=1e-4, atol=1e-4)
        model.unmerge()
        assert torch.equal(model.encode_frames(x), video)
        assert torch.equal(model.encode_text(CAPTIONS), text)
    assert all(torch.equal(value, before[key]) for key, value in demo_backbone.state_dict().items())


def test_an_update_is_merged_into_what_another_method_tunes(demo_backbone):
    torch.manual_seed(0)
    model, x = Retriever(demo_backbone, "full", plugs=["lora"]).eval(), frames(demo_backbone)
    with torch.no_grad():
        for parameter in model.trained.values():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        video = model.encode_frames(x)
        model.merge()
        torch.testing.assert_close(model.encode_frames(x), video, rtol=1e-3, atol=1e-4)


def test_a_merged_model_is_no_longer_trained(demo_backbone):
    model = moved(demo_backbone)
    model.merge()
    assert not model.encode_text(CAPTIONS).requires_grad
    model.unmerge()
    assert model.encode_text(CAPTIONS).requires_grad


def test_what_cannot_be_merged_says_so(demo_backbone):
    with pytest.raises(UsageError, match="'cross-modal' cannot be merged"):
        Retriever(demo_backbone).merge()


def test_options_outside_their_range_are_refused():
    with pytest.raises(UsageError, match="rank must be at least 1"):
        build_method("lora", SMALL, rank=0)
    with pytest.raises(UsageError, match="dropout must lie"):
        build_method("lora", SMALL, dropout=1.0)
