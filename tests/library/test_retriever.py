import json

import pytest
import torch

from xmafast.errors import RunError, UsageError
from xmafast.pretrained import load_backbone
from xmafast.retriever import Retriever, load


def test_frames_of_another_size_are_resized(demo_backbone):
    model = Retriever(demo_backbone)
    x = torch.full((1, 2, 50, 70, 3), 128, dtype=torch.uint8)
    assert model.encode_frames(x).shape == (1, 2, demo_backbone.shape.embed_dim)


def test_normalised_float_frames_give_the_same_embeddings(demo_backbone):
    model = Retriever(demo_backbone).eval()
    x = torch.randint(0, 256, (2, 3, 96, 96, 3), dtype=torch.uint8)
    ready = demo_backbone.normalise(x.flatten(0, 1)).view(2, 3, 3, 96, 96)
    assert torch.equal(model.encode_frames(ready), model.encode_frames(x))


def test_a_single_caption_is_one_text(demo_backbone):
    assert Retriever(demo_backbone).encode_text("red heart").shape == (1, demo_backbone.shape.embed_dim)


def test_the_default_header_is_the_methods(demo_backbone):
    assert Retriever(demo_backbone).header == "text-conditioned"
    assert Retriever(demo_backbone, header="mean").header == "mean"
    with pytest.raises(UsageError, match="Unknown header"):
        Retriever(demo_backbone, header="max")


def test_without_a_method_nothing_is_trained_and_nothing_saved(demo_backbone, tmp_path):
    model = Retriever(demo_backbone, None)
    assert model.trainable == 0
    with pytest.raises(RunError, match="nothing to save"):
        model.save(tmp_path)


def test_a_saved_adapter_holds_only_what_was_trained(demo_backbone, tmp_path):
    model = Retriever(demo_backbone)
    folder = model.save(tmp_path / "run")
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert (folder / "adapter_model.safetensors").stat().st_size < model.trainable * 4 + 20_000


def test_folders_that_cannot_be_loaded_say_why(demo_backbone, tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        load(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"holds no adapter_config\.json"):
        load(tmp_path)
    folder = Retriever(demo_backbone).save(tmp_path / "run")
    with pytest.raises(RunError, match="trained on other weights"):
        load(folder, load_backbone("demo", "none"))
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RunError, match="cannot be loaded"):
        load(folder, demo_backbone)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(RunError, match="not an xmafast adapter configuration"):
        load(folder, demo_backbone)


def test_a_method_of_a_later_version_is_refused(demo_backbone, tmp_path):
    folder = Retriever(demo_backbone).save(tmp_path / "run")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"method": "later"}))
    with pytest.raises(RunError, match="method that this version knows"):
        load(folder, demo_backbone)
