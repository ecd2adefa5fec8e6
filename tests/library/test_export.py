"""Export: the adapter's folder, what is in it and what must not be, and merged models that open_clip loads."""

import json
from pathlib import Path

import official
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from xmafast import import_official
from xmafast.card import escape, needs_own_file
from xmafast.errors import RunError, UsageError
from xmafast.export import as_dtype, export, open_clip_config, portable
from xmafast.pretrained import load_backbone
from xmafast.retriever import CONFIG, WEIGHTS, Retriever, load

CAPTIONS = ["red heart", "owl", "a cat that laughs with tears"]


def moved(backbone, method="cross-modal", std=0.05, **options):
    torch.manual_seed(0)
    model = Retriever(backbone, method, **options).eval()
    with torch.no_grad():
        for parameter in model.trained.values():
            parameter.normal_(std=std)
    return model


def features(model, size):
    frames = torch.randint(0, 256, (2, 2, size, size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.inference_mode():
        return model.encode_text(CAPTIONS), model.encode_frames(frames)


def test_an_exported_adapter_is_the_runs_and_holds_nothing_else(demo_backbone, tmp_path):
    model = moved(demo_backbone)
    run = tmp_path / "run"
    model.save(run / "best")
    for name in ("config.json", "metrics.json"):
        (run / name).write_text("{}")
    (run / "eval-test.json").write_text(json.dumps({"captions": ["secret"]}))
    (run / "log.jsonl").write_text("private")
    written = export(run, tmp_path / "deep" / "out")
    assert written.files == ["README.md", CONFIG, WEIGHTS]
    assert "secret" not in (tmp_path / "deep" / "out" / "README.md").read_text()
    again = load(tmp_path / "deep" / "out", demo_backbone)
    for ours, theirs in zip(features(model, 96), features(again, 96), strict=True):
        assert torch.equal(ours, theirs)
    assert not list((tmp_path / "deep").glob(".*")), "nothing half-written is left"


def test_half_precision_halves_the_file_and_loads_into_float32(demo_backbone, tmp_path):
    model = moved(demo_backbone)
    run = model.save(tmp_path / "run")
    export(run, tmp_path / "half", dtype="float16")
    stored = load_file(tmp_path / "half" / WEIGHTS)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    again = load(tmp_path / "half", demo_backbone)
    for name, value in again.trained.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, model.trained[name], rtol=1e-3, atol=1e-6)
    assert "float16; the results are those of the float32 weights" in (tmp_path / "half" / "README.md").read_text()


def test_numbers_that_half_precision_cannot_hold_are_refused():
    with pytest.raises(UsageError, match=r"'big' has numbers beyond float16's 65504"):
        as_dtype({"big": torch.tensor([1e5])}, "float16")
    kept = as_dtype({"inf": torch.tensor([torch.inf]), "ids": torch.tensor([70_000])}, "float16")
    assert kept["inf"].dtype == torch.float16
    assert kept["ids"].tolist() == [70_000]


def test_a_backbone_of_its_own_comes_along(tmp_path):
    model = import_official("cross-modal", official.cross_modal())
    run = model.save(tmp_path / "run")
    (run / "backbone" / "notes.txt").write_text("private")
    written = export(run, tmp_path / "out")
    assert [name for name in written.files if "backbone" in name] == [
        "backbone/open_clip_config.json",
        "backbone/open_clip_model.safetensors",
    ]
    run.rename(tmp_path / "gone")
    assert torch.equal(load(tmp_path / "out").encode_text(CAPTIONS), model.encode_text(CAPTIONS))


def test_no_path_of_the_machine_is_exported(demo_backbone, tmp_path):
    run = moved(demo_backbone).save(tmp_path / "run")
    config = json.loads((run / CONFIG).read_text())
    config["backbone"] |= {"name": "ViT-B-32", "pretrained": "/home/me/secret place/clip.safetensors"}
    config["second"] = config["backbone"] | {"name": "C:\\Users\\me\\clip\\", "pretrained": "local"}
    config["options"] |= {"second": "/home/me/clip", "second_pretrained": "~/weights.pt"}
    found = portable(config)
    assert found["backbone"]["pretrained"] == "clip.safetensors"
    assert found["second"]["name"] == "clip"
    assert (found["options"]["second"], found["options"]["second_pretrained"]) == ("clip", "weights.pt")
    (run / CONFIG).write_text(json.dumps(config))
    (run / "config.json").write_text(json.dumps({"cache": "/home/me/caches/demo/train.h5", "init": "/home/me/runs/before"}))
    (run / "metrics.json").write_text("{}")
    export(run, tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert b"/home/me" not in path.read_bytes()
        assert b"Users" not in path.read_bytes()
    text = (tmp_path / "out" / "README.md").read_text()
    assert 'backbone=xmafast.load_backbone("ViT-B-32", "clip.safetensors")' in text
    assert "demo/train.h5" in text


@pytest.mark.parametrize(
    ("name", "pretrained", "own"),
    [
        ("demo", "demo", False),
        ("./backbone", "local", False),
        ("ViT-B-32", "openai", False),
        ("ViT-B-32", "none", False),
        ("ViT-B-32", "clip.pt", True),
        ("myclip", "local", True),
    ],
)
def test_a_backbone_is_asked_for_where_no_name_gives_it_back(name, pretrained, own):
    assert needs_own_file({"name": name, "pretrained": pretrained}) is own


@pytest.mark.parametrize("method", ["lora", "clip-lora", "routed"])
def test_a_merged_model_is_open_clips_with_the_same_features(demo_backbone, tmp_path, method):
    options = {"datasets": "msrvtt,didemo", "std": 0.3} if method == "routed" else {}
    model = moved(demo_backbone, method, **options)
    if options:
        model.dataset = "didemo"
    run = model.save(tmp_path / "run")
    before = {name: value.clone() for name, value in demo_backbone.clip.state_dict().items()}
    written = export(run, tmp_path / "out", merged=True, dataset="didemo" if options else None)
    assert written.files == ["README.md", "bpe.txt.gz", "open_clip_config.json", "open_clip_model.safetensors"]
    assert all(torch.equal(value, before[name]) for name, value in demo_backbone.clip.state_dict().items())

    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    mine = clip.eval().state_dict()
    assert set(mine) == set(before)
    assert any(not torch.equal(mine[name], before[name]) for name in before)
    tokens = demo_backbone.tokenize(CAPTIONS)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        text, frames = model.encode_text(tokens), model.encode_frames(images[:, None])[:, 0]
        torch.testing.assert_close(clip.encode_text(tokens), text, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(clip.encode_image(images), frames, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(demo_backbone.clip.encode_text(tokens), text, atol=1e-2), "the updates do something"
    assert tuple(preprocess.transforms[-1].mean) == pytest.approx(tuple(demo_backbone.mean.flatten().tolist()))

    plain = Retriever(load_backbone(str(tmp_path / "out")), None, "mean").eval()
    for ours, theirs in zip(features(model, 96), features(plain, 96), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_a_named_backbones_activation_and_scale_go_into_the_merged_models_description(vit_b32):
    vit_b32.pretrained, was = "openai", vit_b32.pretrained
    try:
        described = open_clip_config(vit_b32)
    finally:
        vit_b32.pretrained = was
    assert described["model_cfg"]["quick_gelu"] is True
    assert described["preprocess_cfg"]["mean"] == pytest.approx(list(open_clip.OPENAI_DATASET_MEAN))
    assert "quick_gelu" not in open_clip_config(vit_b32)["model_cfg"], "of random weights the name alone says"
    assert "quick_gelu" not in open_clip.get_model_config("ViT-B-32"), "open_clip's own table is as it was"


@pytest.mark.parametrize(
    ("method", "more", "sentence"),
    [
        ("cross-modal", {}, "'cross-modal' cannot be merged"),
        ("lora", {"plugs": ["tempme"]}, "'tempme' cannot be merged"),
        ("lora", {"header": "seqTransf"}, "trained header 'seqTransf' cannot be merged"),
        (None, {"header": "seqTransf"}, "trained header 'seqTransf' cannot be merged"),
        ("routed", {"datasets": "a,b"}, "name one with --dataset: a, b"),
    ],
)
def test_what_is_more_than_low_rank_updates_is_not_merged(demo_backbone, tmp_path, method, more, sentence):
    run = moved(demo_backbone, method, **more).save(tmp_path / "run")
    with pytest.raises(UsageError, match=sentence):
        export(run, tmp_path / "out", merged=True)
    assert not (tmp_path / "out").exists()


def test_wrong_inputs_are_one_sentence_each(demo_backbone, tmp_path):
    run = moved(demo_backbone).save(tmp_path / "run")
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in ("there", "link"):
        with pytest.raises(UsageError, match=f"{out} exists already"):
            export(run, tmp_path / out)
    with pytest.raises(UsageError, match=r"Unknown dtype 'float17'\. Did you mean 'float16'"):
        export(run, tmp_path / "out", dtype="float17")
    with pytest.raises(UsageError, match="names no licence"):
        export(run, tmp_path / "out", licence=" ")
    with pytest.raises(UsageError, match="--dataset goes with --merged"):
        export(run, tmp_path / "out", dataset="msrvtt")
    with pytest.raises(UsageError, match="for several data sets, which this is not"):
        export(moved(demo_backbone, "lora").save(tmp_path / "lora"), tmp_path / "out", merged=True, dataset="msrvtt")
    routed = moved(demo_backbone, "routed", datasets="msrvtt,didemo").save(tmp_path / "routed")
    with pytest.raises(UsageError, match="Unknown data set 'mrsvtt'"):
        export(routed, tmp_path / "out", merged=True, dataset="mrsvtt")
    with pytest.raises(RunError, match="missing does not exist"):
        export(tmp_path / "missing", tmp_path / "out")
    with pytest.raises(RunError, match=r"there holds no adapter_config\.json"):
        export(tmp_path / "there", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file.* cannot be written"):
        export(run, tmp_path / "file" / "out")
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_is_refused_and_its_best_epoch_can_be_named(demo_backbone, tmp_path):
    run = tmp_path / "run"
    moved(demo_backbone).save(run / "best")
    (run / "config.json").write_text("{}")
    with pytest.raises(RunError, match="is not finished; go on with: xmafast train --resume"):
        export(run, tmp_path / "out")
    assert export(run / "best", tmp_path / "out").files
    assert "not trained by this program" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("{", "is not an xmafast adapter configuration"),
        ("[]", "is not an xmafast adapter configuration"),
        ('{"peft_type": "LORA", "r": 8}', "that peft made"),
        ('{"backbone": {"name": 1}}', "is not an xmafast adapter configuration"),
    ],
)
def test_a_damaged_or_foreign_configuration_is_said_to_be_one(tmp_path, config, sentence):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONFIG).write_text(config)
    save_file({"x": torch.ones(1)}, tmp_path / "run" / WEIGHTS)
    with pytest.raises(RunError, match=sentence):
        export(tmp_path / "run", tmp_path / "out")


def test_damaged_weights_are_not_exported(demo_backbone, tmp_path):
    run = moved(demo_backbone).save(tmp_path / "run")
    (run / WEIGHTS).write_bytes((run / WEIGHTS).read_bytes()[:-10])
    with pytest.raises(RunError, match=r"adapter_model.safetensors cannot be loaded"):
        export(run, tmp_path / "out")


HOSTILE = [
    "a|b",
    "*bold* _it_",
    "[x](http://evil.example)",
    "<script>alert(1)</script>",
    "`code`",
    "# title",
    "a\nb\n---",
    "![i](u)",
    "&lt;",
    "\\|",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_shown_as_they_are(name):
    markdown_it = pytest.importorskip("markdown_it")
    shown = " ".join(name.split())
    parser = markdown_it.MarkdownIt("commonmark").enable("table")
    tokens = parser.parse(f"| | |\n| --- | --- |\n| Key | {escape(name)} |\n\n# {escape(name)}\n")
    cells = [t for t in tokens if t.type == "inline" and t.content]
    assert [t.type for t in tokens].count("td_open") == 2, "it makes no cell of its own"
    for cell in cells[1:]:
        assert {child.type for child in cell.children} == {"text"}
        assert "".join(child.content for child in cell.children) == shown
    assert len(cells) == 3


def test_a_card_of_hostile_names_is_valid_and_says_them(demo_backbone, tmp_path):
    from huggingface_hub import ModelCard

    run = tmp_path / "run *x* [y](z)"
    moved(demo_backbone).save(run / "best")
    recipe = {"note": "<b>|`x`: y"}
    cache = "/c/my | data: 'x' # \"y\""
    (run / "config.json").write_text(json.dumps({"cache": cache, "recipe": recipe}))
    (run / "metrics.json").write_text(json.dumps({"checkpoint_rule": "the *best*\n---\nlicense: mit"}))
    written = export(run, tmp_path / "out", licence="My Own: Licence #1", repo="me/x_y")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "other"
    assert card.data.to_dict()["license_name"] == "my-own-licence-1"
    assert "# me/x\\_y" in card.text
    assert "\nlicense: mit" not in card.text
    assert 'xmafast.load("me/x_y")' in card.text
    assert any("none of the hub's licence identifiers" in remark for remark in written.remarks)
    assert any("No evaluation is recorded" in remark for remark in written.remarks)


def test_base_model_is_open_clips_own_repository_of_the_tag(demo_backbone, tmp_path):
    run = moved(demo_backbone).save(tmp_path / "run")
    config = json.loads((run / CONFIG).read_text())
    for (name, tag), expected in {("ViT-B-32", "openai"): "timm/vit_base_patch32_clip_224.openai", ("demo", "demo"): None}.items():
        config["backbone"] |= {"name": name, "pretrained": tag}
        (run / CONFIG).write_text(json.dumps(config))
        export(run, tmp_path / name)
        text = Path(tmp_path / name / "README.md").read_text()
        assert (f"base_model: {expected}\n" in text) == (expected is not None)
        assert ("base_model_relation: adapter" in text) == (expected is not None)
        assert config["backbone"]["sha256"] in text
        assert "license: unknown" in text
        assert "Unspecified" in text
