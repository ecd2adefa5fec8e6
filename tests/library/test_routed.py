"""One inventory of low-rank updates for several data sets."""

import pytest
import torch

from xmafast.errors import UsageError
from xmafast.methods import build_method
from xmafast.pretrained import backbone_shape
from xmafast.retriever import Retriever, load

CAPTIONS = ["a red heart beats", "rain"]
NAMES = "msrvtt,didemo,lsmdc"


def randomised(backbone, **options):
    """Trained by nobody, but far from its start: the three data sets get weights of their own."""
    torch.manual_seed(0)
    model = Retriever(backbone, "routed", datasets=NAMES, **options).eval()
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.copy_(torch.randn_like(parameter) * (2 if parameter.ndim == 4 else 0.2))
    return model


def features(model, images):
    with torch.no_grad():
        return model.encode_frames(images), model.encode_text(CAPTIONS)


@pytest.fixture
def images(demo_backbone):
    size = demo_backbone.image_size
    return torch.randint(0, 256, (2, 2, size, size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize(("skills", "heads", "count"), [(4, 1, 1_476_000), (8, 8, 2_972_160)])
def test_it_has_the_published_size_for_five_data_sets(skills, heads, count):
    method = build_method("routed", backbone_shape("ViT-B-32"), skills=skills, heads=heads, datasets="a,b,c,d,e")
    assert method.trainable == count


@pytest.mark.parametrize(("skills", "heads"), [(3, 1), (2, 4)])
def test_the_update_is_its_formula(demo_backbone, skills, heads):
    model = randomised(demo_backbone, skills=skills, heads=heads, rank=2, alpha=3.0)
    model.dataset = "didemo"
    own = model.method.double().vision[1]
    width = own.down.shape[-1] * heads
    x = torch.randn(2, 5, width, dtype=torch.float64)
    expected = []
    for p in range(3):
        a, b = torch.zeros(2, width, dtype=torch.float64), torch.zeros(width, 2, dtype=torch.float64)
        piece = width // heads
        for k in range(heads):
            z = [torch.sigmoid(own.route[p, 1, k, s]) for s in range(skills)]
            for s in range(skills):
                w = z[s] / sum(z)
                a[:, k * piece : (k + 1) * piece] += w * own.down[p, s, k]
                b[k * piece : (k + 1) * piece] += w * own.up[p, s, k]
        expected.append((x @ a.T) @ b.T)
    assert model.method.scale == 3 / 2
    torch.testing.assert_close(own(x), torch.cat(expected, -1), rtol=1e-9, atol=1e-9)


def test_each_data_set_has_its_own_features_and_another_gets_their_mean(demo_backbone, images):
    model = randomised(demo_backbone)
    found = {}
    for name in (*model.datasets, None):
        model.dataset = name
        found[name] = features(model, images)[0]
    values = list(found.values())
    assert all(not torch.allclose(a, b, rtol=1e-3) for i, a in enumerate(values) for b in values[:i])


@pytest.mark.parametrize("plugs", [(), ("tempme",)])
def test_collapsed_it_is_a_plain_low_rank_update_that_can_be_merged(demo_backbone, images, plugs, tmp_path):
    model = randomised(demo_backbone, plugs=plugs)
    for name in ("lsmdc", None):
        model.dataset = name
        expected = features(model, images)
        plain = model.collapsed()
        assert plain.datasets == []
        assert plain.trainable < model.trainable / 3
        plain.save(tmp_path / str(name))
        loaded = load(tmp_path / str(name), demo_backbone)
        loaded.merge()
        for model_now in (plain, loaded):
            for ours, theirs in zip(features(model_now, images), expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_saved_inventory_keeps_its_names(demo_backbone, images, tmp_path):
    model = randomised(demo_backbone)
    model.save(tmp_path)
    again = load(tmp_path, demo_backbone)
    again.dataset = model.dataset = "msrvtt"
    assert again.datasets == NAMES.split(",")
    assert torch.equal(features(again, images)[1], features(model, images)[1])


def test_wrong_names_and_sizes_are_refused(demo_backbone):
    model = Retriever(demo_backbone, "routed", datasets=NAMES)
    with pytest.raises(UsageError, match="msvd"):
        model.dataset = "msvd"
    with pytest.raises(UsageError, match="nothing to collapse"):
        Retriever(demo_backbone, "lora").collapsed()
    wrong = (("heads", 7, "divide"), ("skills", 0, "at least"), ("datasets", "a,,b", "once"), ("datasets", "a,a", "once"))
    for option, value, reason in wrong:
        with pytest.raises(UsageError, match=reason):
            Retriever(demo_backbone, "routed", **{option: value})
