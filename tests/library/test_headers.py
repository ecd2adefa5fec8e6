"""The headers as parts of a retriever: seqTransf by its formula, and any header with any method."""

import math
import shutil

import pytest
import torch
from support import ready, with_stream

from xmafast.backbone import Shape
from xmafast.cache import FrameCache
from xmafast.errors import UsageError
from xmafast.evaluation import assess
from xmafast.headers import POOLING, SeqTransf
from xmafast.losses import total_loss
from xmafast.methods import METHODS
from xmafast.pretrained import backbone_shape
from xmafast.retriever import Retriever, load

CAPTIONS = ["a red heart beats", "rain", "two cats"]


def gelu(x):
    return x / (1 + torch.exp(-1.702 * x))


def norm(x, layer):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def transformed(f, header):
    """f (F, D), all real: f + T(f + p), attention query by query."""
    x = f + header.positions[: len(f)]
    d = f.shape[1]
    for block in header.blocks:
        h, heads = norm(x, block.ln_1), block.attn.num_heads
        q, k, v = (h @ block.attn.in_proj_weight[i * d : (i + 1) * d].T + block.attn.in_proj_bias[i * d : (i + 1) * d] for i in range(3))
        size, parts = d // heads, []
        for n in range(heads):
            part = slice(n * size, (n + 1) * size)
            parts.append((q[:, part] @ k[:, part].T / math.sqrt(size)).softmax(-1) @ v[:, part])
        x = x + torch.cat(parts, 1) @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
        m = gelu(norm(x, block.ln_2) @ block.mlp.c_fc.weight.T + block.mlp.c_fc.bias)
        x = x + m @ block.mlp.c_proj.weight.T + block.mlp.c_proj.bias
    return f + x


def test_seqtransf_is_its_formula_and_never_sees_padding():
    torch.manual_seed(0)
    header = SeqTransf(Shape(8, 1, 8, 4, 128, 1)).double()
    with torch.no_grad():
        for parameter in header.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
        frames = torch.randn(2, 5, 128, dtype=torch.float64)
        mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
        found = header(frames, mask)
        torch.testing.assert_close(found[0], transformed(frames[0], header), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found[1, :3], transformed(frames[1, :3], header), rtol=1e-6, atol=1e-9)
        frames[1, 3:] = 1e3
        torch.testing.assert_close(header(frames, mask)[1, :3], found[1, :3], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16"])
def test_seqtransf_on_frozen_clip_has_clip4clips_size(name):
    assert sum(p.numel() for p in SeqTransf(backbone_shape(name)).parameters()) == 12_648_960


def test_seqtransf_starts_as_the_first_text_blocks(demo_backbone):
    model = Retriever(demo_backbone, None, "seqTransf")
    assert torch.equal(model.temporal.positions, demo_backbone.text_positions)
    for own, block in zip(model.temporal.blocks, demo_backbone.text.transformer.resblocks, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), block.state_dict().values(), strict=True))
        assert type(own.mlp.gelu) is type(block.mlp.gelu)


def test_seqtransf_takes_no_more_frames_than_it_has_positions(demo_backbone):
    model = Retriever(demo_backbone, None, "seqTransf")
    with pytest.raises(UsageError, match="32 positions and is given 33 frames"):
        model.encode_frames(torch.zeros(1, 33, 96, 96, 3, dtype=torch.uint8))


FEW = (None, "cross-modal", "mv-adapter", "coop", "full", "clip-adapter")
PAIRS = [(m, h) for m in (None, *METHODS) for h in POOLING]


@pytest.mark.parametrize(
    ("method", "header"), [pytest.param(m, h, marks=() if h == "seqTransf" and m in FEW else pytest.mark.slow) for m, h in PAIRS]
)
def test_any_method_goes_with_any_header(demo_backbone, method, header, tmp_path):
    torch.manual_seed(0)
    model = with_stream(Retriever(demo_backbone, method, header, **ready(method)))
    x = torch.randint(0, 256, (3, 2, 96, 96, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    loss = total_loss(model, CAPTIONS, x, mask, torch.arange(3))
    assert loss.isfinite()
    if not model.trained:
        return
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.trained.values())
    with torch.no_grad():
        for parameter in model.trained.values():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        scores = model.eval()(CAPTIONS, x, mask)
        assert torch.equal(with_stream(load(model.save(tmp_path / "run"), demo_backbone))(CAPTIONS, x, mask), scores)
        model.enabled = False
        frozen = demo_backbone.encode_image(demo_backbone.normalise(x.flatten(0, 1))).view(3, 2, -1)
        assert torch.equal(model.encode_frames(x, mask), frozen)


def test_stored_embeddings_of_two_headers_are_told_apart(demo_backbone, small_caches, tmp_path):
    shutil.copy(small_caches / "test.h5", tmp_path)
    cache, store = FrameCache(tmp_path / "test.h5"), tmp_path / "run"
    torch.manual_seed(0)
    plain, temporal = Retriever(demo_backbone, None, "mean"), Retriever(demo_backbone, None, "seqTransf")
    with torch.no_grad():
        for parameter in temporal.temporal.parameters():
            parameter.normal_()
    first, second = (assess(model, cache, keep=0, store=store).ranks for model in (plain, temporal))
    assert len(list(store.iterdir())) == len(list((tmp_path / "embeddings").iterdir())) == 1  # what the header makes is not kept
    assert (assess(temporal, cache, keep=0, store=store).ranks.t2v == second.t2v).all()
    assert (first.t2v != second.t2v).any()
