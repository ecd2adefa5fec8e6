"""The patch coefficient: 0 is the frozen model, 1 the whole method, and what lies between is in proportion."""

import pytest
import torch
from support import ready, with_stream

from xmafast.errors import UsageError
from xmafast.methods import METHODS
from xmafast.retriever import Retriever

CAPTIONS = ["a red heart beats", "rain"]
SCALABLE = [name for name, method in METHODS.items() if method.scalable]


def moved(backbone, name):
    torch.manual_seed(0)
    model = with_stream(Retriever(backbone, name, **ready(name)).eval())
    with torch.no_grad():
        for parameter in model.trained.values():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


@pytest.mark.parametrize("name", METHODS)
def test_zero_is_the_frozen_model_to_the_bit(demo_backbone, name):
    model, x = moved(demo_backbone, name), torch.randint(0, 256, (2, 2, 96, 96, 3), dtype=torch.uint8)
    model.patch = 0
    with torch.no_grad():
        found = model.encode_frames(x), model.encode_text(CAPTIONS)
        model.patch, model.enabled = 1, False
        assert all(torch.equal(a, b) for a, b in zip(found, (model.encode_frames(x), model.encode_text(CAPTIONS)), strict=True))


QUICK = ("cross-modal", "adaptformer", "convpass", "lora", "full", "clip-adapter")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SCALABLE])
def test_a_small_share_is_a_small_change(demo_backbone, name):
    model, x = moved(demo_backbone, name), torch.randint(0, 256, (2, 2, 96, 96, 3), dtype=torch.uint8)
    changes = []
    with torch.no_grad():
        model.patch = 0
        frozen = model.encode_frames(x), model.encode_text(CAPTIONS)
        for model.patch in (0.01, 0.02, 1.0):
            now = model.encode_frames(x), model.encode_text(CAPTIONS)
            changes.append([float((a - b).norm()) for a, b in zip(now, frozen, strict=True)])
    for small, double, whole in list(zip(*changes, strict=True))[: 1 if name == "stream" else 2]:  # which leaves texts alone
        assert 0 < small < double < whole
        assert double == pytest.approx(2 * small, rel=0.1)  # to first order


@pytest.mark.parametrize("name", [name for name in METHODS if name not in SCALABLE])
def test_methods_that_do_more_than_add_know_zero_and_one_alone(demo_backbone, name):
    model = moved(demo_backbone, name)
    with pytest.raises(UsageError, match="can only be 0 or 1"):
        model.patch = 0.5


def test_shares_outside_zero_and_one_are_refused(demo_backbone):
    with pytest.raises(UsageError, match="between 0 and 1"):
        Retriever(demo_backbone).patch = 1.1


def test_a_merged_update_is_merged_by_its_share(demo_backbone):
    model, x = moved(demo_backbone, "lora"), torch.randint(0, 256, (2, 2, 96, 96, 3), dtype=torch.uint8)
    model.patch = 0.3
    with torch.no_grad():
        before = model.encode_frames(x)
        model.merge()
        torch.testing.assert_close(model.encode_frames(x), before, rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match="unmerge"):
        model.patch = 0.5
