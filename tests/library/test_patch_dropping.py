"""Patch dropping: a part of the patches in training, all of them else."""

import pytest
import torch

from xmafast.backbone import Shape
from xmafast.errors import UsageError
from xmafast.methods import METHODS
from xmafast.methods.patch_dropping import check_dropping, dropping
from xmafast.retriever import Retriever
from xmafast.training import train


def test_each_image_keeps_its_prefix_and_a_part_of_its_patches_in_order():
    torch.manual_seed(0)
    x = torch.arange(2 * 11).view(2, 11, 1).expand(2, 11, 3).float()
    found = dropping(None, 0.6, 1)(0).before(x)
    assert found.shape == (2, 5, 3)
    assert torch.equal(found[:, 0], x[:, 0])
    for before, after in zip(x[:, :, 0].tolist(), found[:, :, 0].tolist(), strict=True):
        assert set(after) <= set(before)
        assert after == sorted(after)
    assert (found[1] - 11 != found[0]).any()  # drawn for each image
    assert dropping(None, 0.6, 1)(1).before is None


def test_it_acts_in_training_alone(demo_backbone):
    model, x = Retriever(demo_backbone, "lora"), torch.randint(0, 256, (1, 2, 96, 96, 3), dtype=torch.uint8)
    plain = model.eval().encode_frames(x)
    model.patch_drop = 0.5
    assert torch.equal(model.encode_frames(x), plain)
    model.train()
    assert not torch.allclose(model.encode_frames(x), plain)


def test_methods_train_with_it_or_say_why_not(demo_backbone):
    x = torch.randint(0, 256, (1, 2, 96, 96, 3), dtype=torch.uint8)
    for name in ("cross-modal", "mv-adapter", "maple", "disco", "tempme", "full"):
        model = Retriever(demo_backbone, name).train()
        model.patch_drop = 0.5
        assert model.encode_frames(x).isfinite().all()
    for name in [name for name, method in METHODS.items() if method.needs_grid]:
        with pytest.raises(UsageError, match=f"'{name}', which needs every patch"):
            Retriever(demo_backbone, name).patch_drop = 0.5


def test_shares_and_towers_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="between 0 and 1"):
        check_dropping(1.0, Shape(8, 2, 8, 2, 8, 1), None)
    with pytest.raises(UsageError, match="reads the frozen model's embeddings"):
        check_dropping(0.5, Shape(8, 2, 8, 2, 8, 1), None)
    with pytest.raises(UsageError, match="rotary positions"):
        check_dropping(0.5, Shape(8, 2, 8, 2, 8, 1, rotary=True), None)


def test_a_run_is_trained_with_it(demo_backbone, small_caches, tmp_path):
    trained = train(small_caches, tmp_path / "run", backbone=demo_backbone, epochs=1, batch_size=8, patch_drop=0.5)
    assert trained.retriever.patch_drop == 0.5
    assert trained.metrics["best_epoch"] == 1
