"""`xmafast import`: official files as a user has them."""

import argparse
import json

import official
import pytest
import torch
from safetensors.torch import save_file

from xmafast import import_official, load


@pytest.mark.parametrize("method", official.MAKERS)
def test_an_official_file_becomes_a_run_that_is_evaluated(method, call, tmp_path, small_caches):
    state = official.MAKERS[method](image=32, **({"words": 32} if method == "mv-adapter" else {}))
    if method == "cross-modal":
        torch.save({"state_dict": {name: value.half() for name, value in state.items()}, "epoch": 4}, tmp_path / "pytorch_model.bin.4")
    else:
        unique = {name: value.clone() for name, value in state.items()}  # safetensors takes no tensor twice
        save_file(unique, tmp_path / "model.safetensors")
    file = next(path for path in tmp_path.iterdir() if "model" in path.name)
    code, out, err = call("import", method, file, "--out", "runs/official")
    assert code == 0, err
    for said in (
        method,
        f"{load('runs/official').trainable:,} parameters",
        "bottleneck",
        "3 blocks of width 128 for images of 32 px in patches of 16",
        "embeddings of 48",
    ):
        assert said in out
    assert "xmafast eval runs/official CACHE" in err
    code, out, err = call("eval", "runs/official", small_caches, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["queries"] > 0
    assert result["t2v"]["MnR"] != result["zero_shot"]["t2v"]["MnR"]
    expected = import_official(method, {name: value.half() for name, value in state.items()} if method == "cross-modal" else state)
    assert torch.equal(load("runs/official").encode_text(["a red heart"]), expected.encode_text(["a red heart"]))


def test_it_says_what_it_read_as_json(call, tmp_path):
    torch.save(official.mv_adapter(), tmp_path / "model.pth")
    code, out, err = call("import", "mv-adapter", tmp_path / "model.pth", "--out", "run", "--tying", "up-out", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["run"], found["method"], found["header"], found["words"]) == ("run", "mv-adapter", "mean", 9)
    assert (found["options"]["tied"], found["options"]["tying"], found["options"]["frames"]) == (2, "up-out", 4)
    assert (found["backbone"]["vision_width"], found["backbone"]["text_depth"], found["backbone"]["image_size"]) == (128, 3, 64)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "backbone",
    ]


def test_with_its_backbone_named_a_run_holds_the_adapter_alone(call, tmp_path):
    state = official.cross_modal()
    import_official("cross-modal", state).backbone.save(tmp_path / "clip")
    torch.save(state, tmp_path / "model.bin")
    code, out, err = call("import", "cross-modal", "model.bin", "--out", "run", "--backbone", "clip")
    assert code == 0, err
    assert "on " + str(tmp_path / "clip") in out
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert load("run").trainable == import_official("cross-modal", state).trainable


def test_what_cannot_be_imported_is_one_sentence(call, tmp_path):
    state = official.cross_modal()
    torch.save(state, tmp_path / "good.pt")
    torch.save({"args": argparse.Namespace(lr=1e-5), "state_dict": {"clip.proj": torch.ones(1)}}, tmp_path / "namespace.pt")
    torch.save(torch.ones(3), tmp_path / "one.pt")
    torch.save({name: value for name, value in state.items() if name != "clip.ln_final.bias"}, tmp_path / "short.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "cut.bin").write_bytes((tmp_path / "good.pt").read_bytes()[:5000])
    (tmp_path / "cut.safetensors").write_bytes(b"12")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("")
    for file, reason in (
        ("nothing.pt", "There is no file nothing.pt."),
        ("taken", "taken is a folder"),
        ("namespace.pt", "namespace.pt holds more than tensors"),
        ("one.pt", "one.pt holds one Tensor, not a state dict"),
        ("short.pt", "short.pt: The state dict has no tensor 'clip.ln_final.bias', which should be (64,)"),
        *((name, f"{name} is not a checkpoint that can be read") for name in ("text.pt", "cut.bin", "cut.safetensors", "empty.pth")),
    ):
        code, out, err = call("import", "cross-modal", file, "--out", "run")
        assert (code, out) == (1, "")
        assert reason in err
        assert len(err.splitlines()) == 1
        assert not (tmp_path / "run").exists()
    for arguments, reason, expected in (
        (("cross-modal", "good.pt", "--out", "taken"), "taken exists already", 2),
        (("cross-modal", "good.pt", "--out", "run", "--pretrained", "openai"), "--pretrained goes with --backbone", 2),
        (("cross-modal", "good.pt", "--out", "run", "--tying", "down-in"), "tying is mv-adapter's", 2),
        (("cross-modal", "good.pt", "--out", "run", "--backbone", "taken"), "holds no open_clip_config.json", 1),
        (("cross-modal", "good.pt", "--out", "file/run"), "file/run cannot be written", 1),
        (("mv-adapter", "good.pt", "--out", "run"), "no tensor 'clip.visual.transformer.resblocks.0.attn.q_proj.weight'", 1),
        (("coop", "good.pt", "--out", "run"), "coop", 2),
        (("cross-modal", "good.pt"), "--out", 2),
    ):
        code, out, err = call("import", *arguments)
        assert (code, out) == (expected, "")
        assert reason in err
        assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_an_import_that_was_killed_is_begun_anew(call, tmp_path):
    torch.save(official.cross_modal(), tmp_path / "model.bin")
    (tmp_path / ".run.partial").mkdir()
    (tmp_path / ".run.partial" / "half").write_text("")
    code, _, err = call("import", "cross-modal", "model.bin", "--out", "run")
    assert code == 0, err
    assert not (tmp_path / ".run.partial").exists()
    assert not (tmp_path / "run" / "half").exists()


def test_the_backbone_of_an_import_is_one_for_other_commands_too(call, tmp_path, small_caches):
    torch.save(official.cross_modal(image=32), tmp_path / "model.bin")
    call("import", "cross-modal", "model.bin", "--out", "run")
    backbone = tmp_path / "run" / "backbone"
    code, out, err = call("eval", "--zero-shot", small_caches, "--backbone", backbone, "--json")
    assert code == 0, err
    assert json.loads(out)["protocol"]["backbone"] == str(backbone)
    code, out, err = call("methods", "--backbone", backbone, "--json")
    assert code == 0, err
    small = {"--epochs": 1, "--batch-size": 8, "--bottleneck": 4, "--out": "trained"}
    code, out, err = call("train", small_caches, "--backbone", backbone, *(str(x) for pair in small.items() for x in pair))
    assert code == 0, err
    assert sum(path.stat().st_size for path in (tmp_path / "trained").rglob("*") if path.is_file()) < 1_000_000
    assert load("trained").backbone.fingerprint == load("run").backbone.fingerprint
