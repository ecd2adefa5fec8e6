"""What comes from the model hub comes when it is needed, and says in one sentence that it could not."""

import contextlib
import socket

import open_clip
import pytest
import torch

from xmafast.errors import BackboneError
from xmafast.hub import HubTokenizer, reachable
from xmafast.pretrained import load_backbone

NAME, SOURCE = "ViT-B-16-SigLIP", "timm/ViT-B-16-SigLIP"


@pytest.fixture
def offline(monkeypatch):
    def no_network(*args, **options):
        raise OSError("no route")

    monkeypatch.setattr("socket.create_connection", no_network)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: None)


def test_a_backbone_without_its_tokenizers_files_counts_and_encodes_ids(siglip, offline, monkeypatch):
    monkeypatch.setattr("xmafast.pretrained._build", lambda config: siglip.clip)
    backbone = load_backbone(NAME, "none")
    assert backbone.encode_text(torch.ones(1, 24, dtype=torch.long)).shape == (1, 192)
    with pytest.raises(BackboneError, match=f"The tokenizer '{SOURCE}' of {NAME} is not on this machine.*Be online once") as caught:
        backbone.tokenize(["a heart"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "mean"),
    [("ViT-B-16-SigLIP", 0.5), ("PE-Core-B-16", 0.5), ("ViT-B-32", open_clip.OPENAI_DATASET_MEAN[0]), ("ViT-L-14-CLIPA", 0.485)],
)
def test_random_and_local_weights_are_normalised_as_the_models_first_tag_is(siglip, monkeypatch, name, mean):
    monkeypatch.setattr("xmafast.pretrained._build", lambda config: siglip.clip)
    assert load_backbone(name, "none").mean[0, 0].item() == pytest.approx(mean)


def test_a_tokenizer_is_loaded_once_with_the_first_caption(monkeypatch):
    calls = []

    def get_tokenizer(name):
        calls.append(name)
        return lambda texts, context_length: torch.zeros(len(texts), context_length)

    monkeypatch.setattr("xmafast.hub.reachable", lambda *arguments: True)
    monkeypatch.setattr(open_clip, "get_tokenizer", get_tokenizer)
    tokenizer = HubTokenizer(NAME, SOURCE)
    assert calls == []
    assert tokenizer(["a", "b"], context_length=5).shape == (2, 5)
    tokenizer(["c"], context_length=5)
    assert calls == [NAME]


def test_a_package_that_is_missing_is_named(monkeypatch):
    def get_tokenizer(name):
        raise ModuleNotFoundError("No module named 'transformers'")

    monkeypatch.setattr("xmafast.hub.reachable", lambda *arguments: True)
    monkeypatch.setattr(open_clip, "get_tokenizer", get_tokenizer)
    with pytest.raises(BackboneError, match=r"No module named 'transformers'\); run `pip install transformers sentencepiece`"):
        HubTokenizer(NAME, SOURCE)(["a"])


def test_a_tokenizer_beside_a_local_weights_file_is_taken_from_there(siglip, offline, monkeypatch, tmp_path):
    monkeypatch.setattr("xmafast.pretrained._build", lambda config: siglip.clip)
    monkeypatch.setattr("xmafast.pretrained._load_file", lambda clip, path, name: clip)
    asked = []

    def get_tokenizer(name):
        asked.append(name)
        return lambda texts, context_length: torch.zeros(len(texts), context_length, dtype=torch.long)

    monkeypatch.setattr(open_clip, "get_tokenizer", get_tokenizer)
    for file in ("open_clip_model.safetensors", "open_clip_config.json"):
        (tmp_path / file).touch()
    backbone = load_backbone(NAME, str(tmp_path / "open_clip_model.safetensors"))
    assert not backbone.tokenize(["a"]).any()
    assert asked == [f"local-dir:{tmp_path}"]


def test_where_there_is_a_proxy_it_is_asked_in_place_of_the_hub(monkeypatch):
    knocked = []

    def connect(address, timeout):
        knocked.append(address)
        if address[0] != "proxy.example":
            raise OSError("no route")
        return contextlib.closing(socket.socket()).thing

    monkeypatch.setattr("socket.create_connection", connect)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: None)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert not reachable("org/name")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert reachable("org/name")
    monkeypatch.setenv("no_proxy", "huggingface.co")
    assert not reachable("org/name")
    assert knocked == [("huggingface.co", 443), ("proxy.example", 3128), ("huggingface.co", 443)]
