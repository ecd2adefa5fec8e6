"""MV-Adapter: its formula written out a second time, its published sizes, and what it may not see."""

import math
from dataclasses import replace

import pytest
import torch

from xmafast.backbone import Shape
from xmafast.errors import UsageError
from xmafast.methods import build_method
from xmafast.methods.base import Context
from xmafast.methods.mv_adapter import TYINGS
from xmafast.pretrained import backbone_shape
from xmafast.retriever import Retriever

SMALL = Shape(24, 3, 16, 3, 16, 1000)


def gelu(x):
    return x / (1 + torch.exp(-1.702 * x))


def norm(x, layer):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias


def block(z, t, visible):
    """A pre-LayerNorm transformer block over one sequence (T, d), head by head and query by query; visible (T, T)."""
    a, n, d = t.attention, norm(z, t.norm1), z.shape[1]
    q, k, v = (n @ a.in_weight[i * d : (i + 1) * d].T + a.in_bias[i * d : (i + 1) * d] for i in range(3))
    heads, size = [], d // a.heads
    for h in range(a.heads):
        part = slice(h * size, (h + 1) * size)
        logits = (q[:, part] @ k[:, part].T) / math.sqrt(size)
        heads.append(torch.where(visible, logits, -torch.inf).softmax(-1) @ v[:, part])
    z = z + torch.cat(heads, 1) @ a.out_weight.T + a.out_bias
    m = norm(z, t.norm2)
    return z + gelu(m @ t.fc1.weight.T + t.fc1.bias) @ t.fc2.weight.T + t.fc2.bias


def tied(weight, branch, factor, end):
    if weight is None:
        return sum(torch.kron(s, m[None]) for s, m in zip(factor, branch.mix, strict=True))
    if factor is None or not branch.tying.startswith(end):
        return weight
    beta = branch.tie.weight @ factor + branch.tie.bias
    return torch.einsum("i,oi->oi" if branch.tying.endswith("in") else "o,oi->oi", beta, weight)


def video(f, b, mask, factor, prefix=1):
    """One video: f (F, prefix + P, D), mask (F,) -> A(f), by the paper's steps; without a class token, by ours."""
    frames = len(f)
    d = gelu(f @ tied(b.down_weight, b, factor, "down").T + b.down_bias)
    mean = d[:, prefix:].mean(1)
    sequence = torch.stack([b.cc, *(d[:, 0] if prefix else mean), *mean]) + b.positions[: 2 * frames + 1]
    keys = torch.cat([torch.ones(1, dtype=torch.bool), mask, mask])
    z = gelu(block(norm(sequence, b.norm_pre), b.transformer, keys.expand(len(keys), -1)))
    out = []
    for i in range(frames):
        cls, patch, c = z[1 + i], z[1 + frames + i], b.calibration
        u = torch.cat([cls + patch, c.context.weight @ z[0] + c.context.bias]) * mask[i]
        alpha = 1 + c.out.weight @ torch.relu(c.hidden.weight @ u + c.hidden.bias)
        up = torch.einsum("i,oi,i->o", alpha, tied(b.up_weight, b, factor, "up"), cls)
        others = d[i, min(prefix, 1) :] @ b.up_weight.T + b.up_bias
        out.append(torch.cat([up[None] + b.up_bias, others]) if prefix else others + up)
    return torch.stack(out)


def text(f, b, factor, causal=True):
    d = norm(f @ tied(b.down_weight, b, factor, "down").T + b.down_bias + b.positions[: len(f)], b.norm_pre)
    visible = torch.ones(len(f), len(f), dtype=torch.bool)
    z = gelu(block(d, b.transformer, visible.tril() if causal else visible))
    return z @ tied(b.up_weight, b, factor, "up").T + b.up_bias


def random(shape=SMALL, **options):
    torch.manual_seed(0)
    method = build_method("mv-adapter", shape, bottleneck=8, frames=4, words=7, factor=5, **options).double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return method


@pytest.mark.parametrize("tying", TYINGS)
def test_both_branches_are_the_papers_formula(tying):
    method = random(tying=tying, tied=2)
    y, mask = torch.randn(2 * 3, 1 + 4, 24, dtype=torch.float64), torch.tensor([[True] * 3, [True, True, False]])
    words = torch.randn(2, 5, 16, dtype=torch.float64)
    for i in range(3):
        factor = method.shared[i - 1] if i else None  # the last two pairs are tied
        found = method.vision_places(i, Context(3, mask)).after_mlp(y)
        expected = torch.cat([video(y[3 * j : 3 * j + 3], method.vision[i], mask[j], factor) for j in range(2)])
        torch.testing.assert_close(found, y + 0.1 * expected, rtol=1e-6, atol=1e-8)
        found = method.text_places(i, Context()).after_mlp(words)
        torch.testing.assert_close(found, words + 0.1 * torch.stack([text(w, method.text[i], factor) for w in words]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("tying", ["down-in", "up-out"])
@pytest.mark.parametrize("prefix", [0, 3], ids=["no class token", "registers"])
def test_our_formula_for_towers_without_a_class_token_and_with_registers(prefix, tying):
    method = random(replace(SMALL, prefix=prefix), tying=tying, tied=2)
    y, mask = torch.randn(2 * 3, prefix + 4, 24, dtype=torch.float64), torch.tensor([[True] * 3, [True, True, False]])
    for i in range(3):
        factor = method.shared[i - 1] if i else None
        found = method.vision_places(i, Context(3, mask)).after_mlp(y)
        expected = torch.cat([video(y[3 * j : 3 * j + 3], method.vision[i], mask[j], factor, prefix) for j in range(2)])
        torch.testing.assert_close(found, y + 0.1 * expected, rtol=1e-6, atol=1e-8)


def test_a_text_encoder_without_a_causal_mask_is_read_whole():
    method = random(replace(SMALL, causal=False, context_length=9), tied=0)
    words = torch.randn(2, 9, 16, dtype=torch.float64)
    assert method.options()["words"] == 9
    found = method.text_places(1, Context()).after_mlp(words)
    expected = torch.stack([text(w, method.text[1], None, causal=False) for w in words])
    torch.testing.assert_close(found, words + 0.1 * expected, rtol=1e-6, atol=1e-8)


def test_a_norm_on_the_input_is_part_of_it_where_asked():
    method = random(norm=True)
    y = torch.randn(2, 5, 24, dtype=torch.float64)
    found = method.vision_places(0, Context(2)).after_mlp(y)
    branch = method.vision[0]
    expected = video(norm(y, branch.norm), branch, torch.ones(2, dtype=torch.bool), None)
    torch.testing.assert_close(found, y + 0.1 * expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 3_401_728),
        ({"tying": "down-out"}, 3_325_696),
        ({"tied": 3}, 3_444_000),
        ({"frames": 32, "words": 64}, 3_457_024),
        ({"frames": 32, "words": 64, "tying": "down-out"}, 3_380_992),
        ({"frames": 32, "words": 64, "tied": 1}, 3_414_752),
        ({"frames": 32, "words": 64, "tied": 1, "norm": True}, 3_445_472),
        ({"tied": 0}, 3_317_184),
        ({"tying": "kronecker", "tied": 12}, 3_710_820),  # 2.48 %; the first version's description has 2.56 %
    ],
)
def test_it_has_the_published_size(options, count):
    assert build_method("mv-adapter", backbone_shape("ViT-B-16"), **options).trainable == count


def moved(backbone, **options):
    model = Retriever(backbone, "mv-adapter", **options).eval()
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return model


def test_it_starts_as_the_frozen_model_and_each_tie_reaches_both_encoders(demo_backbone):
    model = Retriever(demo_backbone, "mv-adapter").eval()
    pixels = torch.randint(0, 256, (2, 3, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        start, words = model.encode_frames(pixels), model.encode_text(["a red heart"])
        model.enabled = False
        assert torch.equal(start, model.encode_frames(pixels))
        assert torch.equal(words, model.encode_text(["a red heart"]))
    model = moved(demo_backbone)
    with torch.no_grad():
        before = model.encode_frames(pixels), model.encode_text(["a red heart"])
        model.method.shared[0].add_(1.0)
        after = model.encode_frames(pixels), model.encode_text(["a red heart"])
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(before, after, strict=True))


def test_frames_of_padding_are_never_seen_and_fewer_frames_give_the_same(demo_backbone):
    model = moved(demo_backbone)
    pixels = torch.randint(0, 256, (1, 4, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, False, False]])
    other = pixels.clone()
    other[:, 2:] = 255 - other[:, 2:]
    with torch.no_grad():
        a, b = model.encode_frames(pixels, mask)[:, :2], model.encode_frames(other, mask)[:, :2]
        whole = model.encode_frames(pixels)[:, :2]
    assert torch.equal(a, b)
    assert (a - whole).abs().max() > 1e-4  # what is real is seen


def test_a_text_does_not_see_what_comes_after_it(demo_backbone):
    model = moved(demo_backbone)
    with torch.no_grad():
        short = model.encode_text(demo_backbone.tokenize(["red heart"], 8))
        long = model.encode_text(demo_backbone.tokenize(["red heart"], 20))
    torch.testing.assert_close(short, long, rtol=1e-4, atol=1e-5)


def test_more_frames_or_words_than_it_is_built_for_are_refused(demo_backbone):
    model = Retriever(demo_backbone, "mv-adapter", frames=2, words=16)
    with pytest.raises(UsageError, match="up to 2 frames and is given 3"):
        model.encode_frames(torch.zeros(1, 3, 96, 96, 3, dtype=torch.uint8))
    with pytest.raises(UsageError, match="up to 16 words and is given 20"):
        model.encode_text(torch.zeros(1, 20, dtype=torch.int64))
    for options, reason in (
        ({"tied": 13}, "between 0 and 3"),
        ({"tying": "down"}, "Did you mean 'down-in'"),
        ({"bottleneck": 5}, "divisible by its 2 heads"),
        ({"frames": 0}, "at least 1"),
    ):
        with pytest.raises(UsageError, match=reason):
            build_method("mv-adapter", SMALL, **options)
