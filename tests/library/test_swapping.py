"""Several adapters on one backbone in memory, and their files in half precision."""

import pytest
import torch

from xmafast.errors import UsageError
from xmafast.methods import build_method
from xmafast.pretrained import load_backbone, meta_backbone
from xmafast.retriever import WEIGHTS, Retriever, load, stored_as

CAPTIONS = ["a red heart beats", "rain"]


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("demo")


@pytest.fixture
def saved(backbone, tmp_path):
    """Two adapters of one form with other weights, and one of another method, in their folders."""
    folders = []
    for name, method, seed in (("a", "cross-modal", 0), ("b", "cross-modal", 1), ("c", "lora", 2)):
        torch.manual_seed(seed)
        model = Retriever(backbone, method)
        with torch.no_grad():
            for parameter in model.method.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        folders.append(model.save(tmp_path / name))
    return folders


def embeddings(model):
    with torch.no_grad():
        return model.encode_text(CAPTIONS)


def test_adapters_on_one_backbone_share_its_weights_and_touch_none(backbone, saved):
    weights = {name: (p.data_ptr(), p._version) for name, p in backbone.named_parameters()}
    models = [load(folder, backbone) for folder in saved]
    first = [embeddings(model) for model in models]
    assert all(model.backbone is backbone for model in models)
    for _ in range(2):  # each in its turn gives what it gave before
        for model, expected in zip(models, first, strict=True):
            assert torch.equal(embeddings(model), expected)
    assert {name: (p.data_ptr(), p._version) for name, p in backbone.named_parameters()} == weights
    assert not torch.equal(first[0], first[1])


def test_an_adapter_takes_anothers_weights_in_place(backbone, saved):
    weights = {name: (p.data_ptr(), p._version) for name, p in backbone.named_parameters()}
    model, other = load(saved[0], backbone), load(saved[1], backbone)
    before, own = embeddings(model), {name: p.data_ptr() for name, p in model.trained.items()}
    model.restore(saved[1] / WEIGHTS)
    assert torch.equal(embeddings(model), embeddings(other))
    model.restore(saved[0] / WEIGHTS)
    assert torch.equal(embeddings(model), before)
    assert {name: p.data_ptr() for name, p in model.trained.items()} == own
    assert {name: (p.data_ptr(), p._version) for name, p in backbone.named_parameters()} == weights


def test_half_precision_is_half_the_file_and_the_same_adapter_to_its_rounding(backbone, saved, tmp_path):
    model = load(saved[0], backbone)
    half = model.save(tmp_path / "half", torch.float16)
    weights = sum(p.numel() for p in model.trained.values())
    sizes = [(folder / WEIGHTS).stat().st_size for folder in (saved[0], half)]
    assert sizes[0] - sizes[1] == pytest.approx(2 * weights, rel=0.01)
    again = load(half, backbone)
    assert all(p.dtype == torch.float32 for p in again.trained.values())
    torch.testing.assert_close(embeddings(again), embeddings(model), rtol=1e-3, atol=1e-3)
    assert (again.save(tmp_path / "again", torch.float16) / WEIGHTS).read_bytes() == (half / WEIGHTS).read_bytes()


def test_the_adapter_of_msrvtts_setting_takes_at_most_1_1_mb(tmp_path):
    from safetensors.torch import save_file

    method = build_method("cross-modal", meta_backbone("ViT-B-32").shape, bottleneck=8, shared=16)
    assert method.trainable == 519_168
    save_file({name: stored_as(p.detach(), torch.float16) for name, p in method.named_parameters()}, tmp_path / "half.safetensors")
    assert (tmp_path / "half.safetensors").stat().st_size <= 1.1e6


def test_what_half_precision_cannot_hold_is_refused(backbone, tmp_path):
    model = Retriever(backbone)
    with torch.no_grad():
        next(model.method.parameters()).fill_(1e6)
    with pytest.raises(UsageError, match=r"reach 1e\+06, which torch.float16 cannot hold"):
        model.save(tmp_path / "run", torch.float16)
    assert not (tmp_path / "run" / WEIGHTS).exists()
