"""DiscoVLA: its attention and its image-level terms written out a second time, in float64."""

import math

import pytest
import torch

from xmafast.backbone import Shape
from xmafast.errors import UsageError
from xmafast.losses import total_loss
from xmafast.methods import build_method
from xmafast.methods.base import Context
from xmafast.pretrained import backbone_shape
from xmafast.retriever import Retriever

SMALL = Shape(24, 3, 16, 3, 16, 1000)


def gelu(x):
    return x / (1 + torch.exp(-1.702 * x))


def fused(y, own):
    return gelu(y @ own.down.weight.T + own.down.bias) @ own.up.weight.T + own.up.bias


def random(**options):
    torch.manual_seed(0)
    method = build_method("disco", SMALL, vision_blocks=2, text_blocks=1, bottleneck=4, **options).double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_(std=0.5)
    return method


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16"])
def test_with_lora_it_has_the_published_size_and_deploys_less(name):
    method = build_method("lora", backbone_shape(name), plugs=["disco"])
    assert method.trainable == 561_200
    assert method.trainable - sum(p.numel() for p in method.parts["disco"].text.parameters()) == 543_776


def test_class_tokens_attend_to_all_frames():
    method, mask = random(), torch.tensor([[True, True, True], [True, True, False]])
    q, k, v, y = (torch.randn(6, 2, 5, 12, dtype=torch.float64) for _ in range(4))
    context = Context(3, mask)
    places = method.vision_places(2, context)
    found = places.attended(q, k, v, y)
    assert torch.equal(found[:, :, :5], y)
    for video in range(2):
        real = [3 * video + f for f in range(3) if mask[video, f]]
        for frame in real:
            for head in range(2):
                keys = torch.cat([k[f, head] for f in real])
                values = torch.cat([v[f, head] for f in real])
                weights = (keys @ q[frame, head, 0] / math.sqrt(12)).softmax(0)
                torch.testing.assert_close(found[frame, head, 5], weights @ values, rtol=1e-6, atol=1e-9)
    h = torch.randn(6, 6, 24, dtype=torch.float64)
    out = places.after_attention(h)
    torch.testing.assert_close(out[:, 0], h[:, 5] + fused(h[:, 0], method.vision[1]), rtol=1e-6, atol=1e-9)
    assert torch.equal(out[:, 1:], h[:, 1:5])
    assert method.vision_places(0, context).attended is None


def test_text_maps_act_at_the_texts_end_in_training_alone():
    method, h, ends = random(), torch.randn(2, 5, 16, dtype=torch.float64), torch.tensor([3, 4])
    assert method.text_places(2, Context(ends=ends)).after_attention is None
    out = method.text_places(2, Context(ends=ends, image_level=True)).after_attention(h)
    for i, end in enumerate(ends):
        torch.testing.assert_close(out[i, end], h[i, end] + fused(h[i, end], method.text[0]), rtol=1e-6, atol=1e-9)
    changed = (out != h).any(-1)
    assert changed.sum() == 2
    assert method.text_places(1, Context(ends=ends, image_level=True)).after_attention is None


def test_the_image_level_terms_are_their_formula():
    method = random(frame_loss=0.3, distill=1.0)
    n, f, c = 4, 3, 20.0
    t, v = torch.randn(n, 8, dtype=torch.float64), torch.randn(n, f, 8, dtype=torch.float64)
    mask, groups = torch.ones(n, f, dtype=torch.bool), torch.arange(n)
    mask[1, 2] = False
    scores = torch.rand(n, n, dtype=torch.float64)
    s = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            a = torch.stack([t[i] @ v[j, k] / (t[i].norm() * v[j, k].norm()) for k in range(f) if mask[j, k]])
            s[i, j] = (a.max() + ((c * a).softmax(0) * a).sum()) / 2
    nce = sum(-(c * z).log_softmax(-1).diagonal().mean() for z in (s, s.T)) / 2
    kl = torch.zeros((), dtype=torch.float64)
    for ours, theirs in ((s, scores), (s.T, scores.T)):
        p, q = (c * ours).softmax(-1), (c * theirs).softmax(-1)
        kl = kl + (p * (p.log() - q.log())).sum() / n**2 * 100 / 2
    found = method.image_terms(t, v, mask, scores, c, groups)
    torch.testing.assert_close(found, 0.3 * nce + kl, rtol=1e-5, atol=1e-8)


def test_training_sees_the_terms_and_evaluation_does_not(demo_backbone):
    torch.manual_seed(0)
    with_terms = Retriever(demo_backbone, "disco")
    without = Retriever(demo_backbone, "disco", frame_loss=0.0, distill=0.0)
    without.method.vision.load_state_dict(with_terms.method.vision.state_dict())
    assert len(without.method.text) == 0
    texts, x = ["red heart", "rain"], torch.randint(0, 256, (2, 3, 96, 96, 3), dtype=torch.uint8)
    mask, groups = torch.ones(2, 3, dtype=torch.bool), torch.arange(2)
    assert total_loss(with_terms, texts, x, mask, groups) > total_loss(without, texts, x, mask, groups)
    assert torch.equal(with_terms(texts, x), without(texts, x))


def test_blocks_that_are_not_there_are_refused():
    with pytest.raises(UsageError, match="between 1 and 3"):
        build_method("disco", SMALL, vision_blocks=4)
    with pytest.raises(UsageError, match="needs a class token"):
        build_method("disco", Shape(24, 6, 16, 3, 16, 1000, prefix=0))
