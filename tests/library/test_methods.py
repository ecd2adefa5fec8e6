"""The contract that every method keeps (docs/adding-a-method.md)."""

import re

import pytest
import torch
from support import ready, with_stream
from torch.profiler import ProfilerActivity, profile

from xmafast.backbone import Shape
from xmafast.errors import UsageError
from xmafast.evaluation import rank_both
from xmafast.losses import contrastive_loss, total_loss
from xmafast.methods import METHODS, build_method, pair_blocks
from xmafast.pretrained import backbone_shape
from xmafast.retriever import Retriever, load

CAPTIONS = ["a red heart beats", "rain", "two cats"]


def frames(backbone, b=3, f=2):
    size = backbone.image_size
    return torch.randint(0, 256, (b, f, size, size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


NEEDS = {  # of a backbone
    "tempme": "needs 4 vision blocks|needs a class token|rotary positions",
    "disco": "vision_blocks must lie|needs a class token",
    "stream": "blocks must lie",
    "dgl": "rotary positions",
}


def retriever(backbone, method="cross-modal", **options):
    torch.manual_seed(0)
    try:
        return with_stream(Retriever(backbone, method, **ready(method) | options).eval())
    except UsageError as error:
        if re.search(NEEDS.get(method, "no need"), str(error)):
            pytest.skip(f"{method} on {backbone.name}: {error}")
        raise


# the Cross-Modal Adapter as MV-Adapter's authors ran it
COMPARED = {"bottleneck": 128, "sites": "mlp", "norm": True, "train_biases": True}

# prompts start at random, the others at the frozen model or near it
EXACT = (
    *("mv-adapter", "adaptformer", "convpass", "st-adapter", "uniadapter", "mrs", "multi-head", "stream"),
    *("full", "partial", "projection", "bias"),
)

ROUNDED = ("lora", "clip-lora", "routed")  # the same sums, with the attention's steps taken one by one

BACKBONES = ("demo_backbone", "siglip", "eva02", "vit_b32", "vit_b16", "vit_l14", "siglip_b16")
ONE_OF_A_KIND = ("cross-modal", "mv-adapter", "convpass", "lora", "disco", "maple", "vop", "full")  # on timm's towers in the quick run


def quick(backbone, method):
    return backbone == "demo_backbone" or (backbone in ("siglip", "eva02") and method in ONE_OF_A_KIND)


WITH_KERNELS = ("demo_backbone", "siglip", "eva02", "vit_b32")  # one of each kind of tower
EVERY = [pytest.param(b, m, marks=() if quick(b, m) else pytest.mark.slow) for b in BACKBONES for m in METHODS]
every_method_on_every_backbone = pytest.mark.parametrize(("backbone", "method"), EVERY, indirect=["backbone"])


@pytest.fixture(params=[pytest.param(name, marks=() if quick(name, "cross-modal") else pytest.mark.slow) for name in BACKBONES])
def backbone(request):
    return request.getfixturevalue(request.param)


@every_method_on_every_backbone
def test_a_method_starts_as_the_frozen_model_or_by_its_published_start(backbone, method):
    model, x = retriever(backbone, method), frames(backbone, b=2)
    with torch.no_grad():
        start = model.encode_frames(x), model.encode_text(CAPTIONS)
        model.enabled = False
        frozen = model.encode_frames(x), model.encode_text(CAPTIONS)
    for ours, theirs in zip(start, frozen, strict=True):
        if method in EXACT:
            assert torch.equal(ours, theirs)
        elif method in ROUNDED:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        else:
            assert ours.isfinite().all()
    if method == "vpt":
        assert torch.equal(start[1], frozen[1])
    if method == "coop":
        assert torch.equal(start[0], frozen[0])


@every_method_on_every_backbone
def test_switched_off_the_features_are_the_backbones_to_the_bit(backbone, method):
    model = retriever(backbone, method)
    model.enabled = False
    x = frames(backbone)
    with torch.no_grad():
        expected = backbone.encode_image(backbone.normalise(x.flatten(0, 1))).view(3, 2, -1)
        assert torch.equal(model.encode_frames(x), expected)
        tokens = backbone.tokenize(CAPTIONS)
        assert torch.equal(model.encode_text(tokens), backbone.encode_text(tokens))


def test_cross_modal_starts_near_the_backbone_and_at_it_with_zero_up_projections(backbone):
    model, x = retriever(backbone), frames(backbone)
    with torch.no_grad():
        start = model.encode_frames(x)
        for name, parameter in model.method.named_parameters():
            if "up_" in name or "shared" in name:
                parameter.zero_()
        zeroed = model.encode_frames(x)
        model.enabled = False
        frozen = model.encode_frames(x)
    assert torch.equal(zeroed, frozen)
    change = (start - frozen).norm() / frozen.norm()
    assert 0 < change < 0.05


@every_method_on_every_backbone
def test_only_the_methods_parameters_get_gradients(backbone, method):
    model, mask = retriever(backbone, method), torch.ones(3, 2, dtype=torch.bool)
    total_loss(model, CAPTIONS, frames(backbone), mask, torch.arange(3)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.method.parameters())
    assert any(p.grad.abs().sum() > 0 for p in model.method.parameters())
    assert all(p.grad is None for p in model.backbone.parameters())


KERNEL_CASES = [
    pytest.param(b, m, h, marks=() if quick(b, m) and (h == "mean" or m in ONE_OF_A_KIND) else pytest.mark.slow)
    for b in WITH_KERNELS
    for m in METHODS
    for h in ("mean", "text-conditioned")
]


@pytest.mark.parametrize(("backbone", "method", "header"), KERNEL_CASES, indirect=["backbone"])
def test_kernels_and_eager_agree_in_loss_and_gradient(backbone, method, header):
    """On the CPU ``triton`` runs the registered ops' CPU kernels: the same calls, the same places."""
    model, x, groups = retriever(backbone, method, header=header), frames(backbone), torch.tensor([0, 1, 1])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    results = []
    for model.impl in ("eager", "triton"):
        model.zero_grad()
        torch.manual_seed(1)
        loss = total_loss(model, CAPTIONS, x, mask, groups)
        loss.backward()
        results.append((loss.detach(), [p.grad.clone() for p in model.method.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("header", "op"), [("mean", "info_nce_forward"), ("text-conditioned", "text_conditioned")])
def test_a_step_and_an_evaluation_call_the_registered_ops(demo_backbone, header, op):
    model, x, mask = retriever(demo_backbone, header=header, impl="triton"), frames(demo_backbone), torch.ones(3, 2)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        text, video = model.encode_text(CAPTIONS), model.encode_frames(x, mask)
        contrastive_loss(model, text, video, mask, torch.arange(3)).backward()
        rank_both(model, text.detach(), video.detach(), mask, torch.arange(3))
    called = {event.key for event in seen.key_averages()}
    counting = "count_above" if header == "mean" else "text_conditioned_count"
    expected = {"patches", "adapter_forward", "adapter_norm_forward", "adapter_norm_backward", op, counting}
    assert {f"xmafast::{name}" for name in expected} <= called


def test_a_shared_parameter_gets_the_sum_of_both_encoders_gradients(vit_b32):
    model, x = retriever(vit_b32), frames(vit_b32)
    shared = list(model.method.shared.parameters())

    def gradients(of):
        model.zero_grad()
        of().backward()
        return [p.grad.clone() for p in shared]

    def image():
        return model.encode_frames(x).square().sum()

    def text():
        return model.encode_text(CAPTIONS).square().sum()

    both = gradients(lambda: image() + text())
    for total, v, t in zip(both, gradients(image), gradients(text), strict=True):
        assert v.abs().sum() > 0
        assert t.abs().sum() > 0
        torch.testing.assert_close(total, v + t, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_an_embedding_does_not_depend_on_its_batch_mates(demo_backbone, method):
    model, x = retriever(demo_backbone, method), frames(demo_backbone)
    with torch.no_grad():
        alone, together = model.encode_frames(x[:1]), model.encode_frames(x)[:1]
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.encode_text(CAPTIONS[:1]), model.encode_text(CAPTIONS)[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_gives_the_same_scores(demo_backbone, method, tmp_path):
    model, x = retriever(demo_backbone, method), frames(demo_backbone)
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        before = model(CAPTIONS, x)
        assert torch.equal(with_stream(load(model.save(tmp_path / "a"), demo_backbone))(CAPTIONS, x), before)
        assert torch.equal(with_stream(load(tmp_path / "a"))(CAPTIONS, x), before)


@pytest.mark.parametrize(
    ("name", "method", "options", "count"),
    [
        ("ViT-B-16", "mv-adapter", {"train_biases": True}, 3_572_736),
        ("ViT-B-16", "adaptformer", {"bottleneck": 128, "norm": True, "train_biases": True}, 4_152_320),
        ("ViT-B-16", "adaptformer", {"bottleneck": 128, "norm": True, "form": "sequential"}, 3_981_312),
        ("ViT-B-16", "adaptformer", {}, 1_982_976),
        ("ViT-B-16", "st-adapter", {"train_biases": True}, 8_873_984),
        (
            "ViT-B-16",
            "convpass",
            {"bottleneck": 64, "text_bottleneck": 128, "depthwise": True, "norm": True, "train_biases": True},
            4_195_328,
        ),
        ("ViT-B-32", "vpt", {}, 46_080),
        ("ViT-B-32", "vl-prompt", {}, 76_800),
        ("ViT-B-32", "maple", {}, 4_758_528),
        ("ViT-B-32", "coop", {}, 2_048),
        ("ViT-B-32", "projection", {}, 655_360),
        ("ViT-B-32", "partial", {}, 10_240_256),
        ("ViT-B-32", "bias", {}, 171_008),
        ("ViT-B-32", "full", {}, 123_540_993),
        ("ViT-B-32", "full", {"freeze": 6}, 62_099_457),
        ("ViT-B-32", "full", {"freeze": 9}, 31_378_689),
        ("ViT-B-32", "full", {"freeze": 11}, 10_898_177),
        ("ViT-B-32", "full", {"freeze": 12}, 657_921),
        ("ViT-B-32", "adapter", {"bottleneck": 16}, 1_014_528),
        ("ViT-B-32", "clip-adapter", {}, 2 * 131_072),
        ("ViT-B-32", "clip-adapter", {"towers": "vision"}, 131_072),
        ("ViT-B-32", "memory", {}, 0),
        ("ViT-B-32", "memory", {"pairs": 9_000, "trainable_keys": True}, 2 * 4_608_000),
        ("ViT-B-16", "cross-modal", COMPARED, 4_127_552),
        ("ViT-B-16", "cross-modal", COMPARED | {"shared": 8}, 4_139_936),
        ("ViT-B-16", "cross-modal", COMPARED | {"shared": 512}, 3_359_744),
    ],
)
def test_baselines_have_their_published_sizes(name, method, options, count):
    assert build_method(method, backbone_shape(name), **options).trainable == count


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16"])
@pytest.mark.parametrize(
    ("bottleneck", "shared", "count"),
    [(8, 16, 519_168), (8, 8, 520_896), (16, 16, 1_008_000), (16, 64, 988_416), (16, 512, 805_632), (8, 0, 522_624)],
)
def test_cross_modal_has_the_published_size(name, bottleneck, shared, count):
    assert build_method("cross-modal", backbone_shape(name), bottleneck=bottleneck, shared=shared).trainable == count


@pytest.mark.parametrize(("name", "count"), [("ViT-L-14", 1_146_048), ("demo", 58_032)])
def test_unpaired_blocks_keep_an_unshared_slice(name, count):
    assert build_method("cross-modal", backbone_shape(name)).trainable == count


def test_the_shared_width_changes_only_what_is_shared(vit_b32):
    model, x = retriever(vit_b32, shared=512), frames(vit_b32)
    assert model.encode_frames(x).isfinite().all()
    assert model.encode_text(CAPTIONS).isfinite().all()


def test_blocks_pair_by_depth():
    assert pair_blocks(12, 12) == [(i, i) for i in range(12)]
    assert pair_blocks(24, 12) == [(2 * i + 1, i) for i in range(12)]
    assert pair_blocks(6, 3) == [(1, 0), (3, 1), (5, 2)]
    assert pair_blocks(3, 6) == [(0, 1), (1, 3), (2, 5)]


def test_options_outside_their_range_and_unknown_ones_are_refused():
    shape = Shape(32, 2, 16, 2, 16, 1000)
    with pytest.raises(UsageError, match="between 0 and 16"):
        build_method("cross-modal", shape, shared=17)
    with pytest.raises(UsageError, match="at least 1"):
        build_method("cross-modal", shape, bottleneck=0)
    with pytest.raises(UsageError, match="is int, as 8, not 'wide'"):
        build_method("cross-modal", shape, bottleneck="wide")
    with pytest.raises(UsageError, match="it has none"):
        build_method("bias", shape, rank=4)
    with pytest.raises(UsageError, match=r"Unknown sites 'mpl'.*Did you mean 'mlp'"):
        build_method("cross-modal", shape, sites="mpl")
    with pytest.raises(UsageError, match="no option 'rank'"):
        build_method("cross-modal", shape, rank=4)
    with pytest.raises(UsageError, match="Did you mean 'cross-modal'"):
        build_method("crossmodal", shape)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_stands_in_the_file_of_its_name(name):
    assert METHODS[name].__module__ == f"xmafast.methods.{name.replace('-', '_')}"
