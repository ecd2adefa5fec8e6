"""TempMe: its merging written out a second time, its published sizes, and padding that is never seen."""

import pytest
import torch

from xmafast.backbone import Shape
from xmafast.errors import UsageError
from xmafast.macs import count_macs
from xmafast.methods import build_method
from xmafast.methods.tempme import match, merge
from xmafast.pretrained import backbone_shape, meta_backbone
from xmafast.retriever import Retriever


def by_hand(metric, x, size, prefix, r):
    """One sequence: the r best matches of every second token, one after the other."""
    first = [i for i in range(prefix, len(x)) if (i - prefix) % 2 == prefix % 2]
    second = [i for i in range(prefix, len(x)) if i not in first]
    unit = metric / metric.norm(dim=1, keepdim=True)
    best = {i: max((float(unit[i] @ unit[j]), j) for j in second) for i in first}
    gone = sorted(first, key=lambda i: -best[i][0])[:r]
    total, weight = x * size[:, None], size.clone()
    for i in gone:
        j = best[i][1]
        total[j] += x[i] * size[i]
        weight[j] += size[i]
    kept = [*range(prefix), *(i for i in first if i not in gone), *second]
    return total[kept] / weight[kept, None], weight[kept]


@pytest.mark.parametrize("prefix", [1, 2])
@pytest.mark.parametrize("r", [1, 3, 5])
def test_merging_is_the_formula(prefix, r):
    torch.manual_seed(0)
    metric, x = torch.randn(3, 12, 6, dtype=torch.float64), torch.randn(3, 12, 8, dtype=torch.float64)
    size = torch.randint(1, 5, (3, 12)).double()
    found, sizes = merge(x, size, prefix, match(metric, prefix, r, size))
    for i in range(3):
        expected, weight = by_hand(metric[i], x[i], size[i], prefix, r)
        torch.testing.assert_close(found[i], expected, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(sizes[i], weight)
    torch.testing.assert_close((found * sizes[..., None]).sum(1), (x * size[..., None]).sum(1))


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16"])
def test_with_lora_it_has_the_published_size(name):
    assert build_method("lora", backbone_shape(name), plugs=["tempme"]).trainable == 507_648


@pytest.mark.parametrize(("name", "published"), [("ViT-B-32", 34.8), ("ViT-B-16", 121.4)])
def test_with_lora_it_costs_what_is_published(name, published):
    found = count_macs(meta_backbone(name), "lora", plugs=["tempme"])["video"] / 1e9
    assert found == pytest.approx(published, rel=0.005)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 12])
def test_any_number_of_frames_gives_an_embedding_each(demo_backbone, count):
    torch.manual_seed(0)
    model = Retriever(demo_backbone, "tempme")
    with torch.no_grad():
        for position in model.method.positions:
            position.normal_(std=0.1)
        x = torch.randint(0, 256, (2, count, 96, 96, 3), dtype=torch.uint8)
        both = model.encode_frames(x)
        assert both.shape == (2, count, 192)
        assert both.isfinite().all()
        torch.testing.assert_close(model.encode_frames(x[1:]), both[1:], rtol=1e-4, atol=1e-5)
        if count > 1:
            assert not torch.allclose(both[:, 0], model.encode_frames(x[:, :1])[:, 0])  # it has seen the other frames


def test_frames_of_padding_are_never_seen(demo_backbone):
    torch.manual_seed(0)
    model, mask = Retriever(demo_backbone, "tempme"), torch.tensor([[True] * 3 + [False] * 2, [True] + [False] * 4])
    x = torch.randint(0, 256, (2, 5, 96, 96, 3), dtype=torch.uint8)
    with torch.no_grad():
        first = model.encode_frames(x, mask)
        x[~mask] = 255 - x[~mask]
        second = model.encode_frames(x, mask)
    torch.testing.assert_close(second[mask], first[mask], rtol=1e-5, atol=1e-6)
    assert first.isfinite().all()


def test_it_refuses_what_it_cannot_do(demo_backbone):
    with pytest.raises(UsageError, match="needs 4 vision blocks"):
        build_method("tempme", Shape(24, 3, 16, 3, 16, 1000))
    with pytest.raises(UsageError, match="needs a class token"):
        build_method("tempme", Shape(24, 6, 16, 3, 16, 1000, prefix=0))
    with pytest.raises(UsageError, match=r"between 0 and 0\.5"):
        build_method("tempme", Shape(24, 6, 16, 3, 16, 1000), clip_share=0.7)
    with pytest.raises(UsageError, match="up to 2 frames and is given 3"):
        Retriever(demo_backbone, "tempme", frames=2).encode_frames(torch.zeros(1, 3, 96, 96, 3, dtype=torch.uint8))
