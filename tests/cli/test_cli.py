"""The command line, as a user and as a script call it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xmafast.cache import FrameCache


@pytest.fixture
def demo_workspace(tmp_path, small_caches):
    (tmp_path / "caches").mkdir()
    (tmp_path / "caches" / "demo").symlink_to(small_caches)
    return tmp_path


def one_sentence(err):
    lines = [line for line in err.splitlines() if line.startswith("xmafast: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def test_cache_train_eval_search_work_one_after_another(call, demo_workspace):
    code, out, _ = call("train", "--epochs", "1", "--batch-size", "8", "--json")
    assert code == 0
    trained = json.loads(out)
    assert trained["trainable"] == 58_032
    assert 1 < trained["trainable_percent"] < 5

    code, out, err = call("eval", "--topk", "1", "5", "10", "--json")
    result = json.loads(out)
    assert set(result["t2v"]) == set(result["v2t"]) == {"R@1", "R@5", "R@10", "MdR", "MnR"}
    assert (result["queries"], result["candidates"]) == (12, 12)
    assert set(result["zero_shot"]) == {"t2v", "v2t", "R-sum"}
    assert "runs/demo-cross-modal-" in err
    for impl in ("eager", "triton"):
        assert json.loads(call("eval", "--impl", impl, "--json")[1])["t2v"].items() >= {k: result["t2v"][k] for k in ("R@1", "MdR")}.items()

    code, out, _ = call("eval", "--topk", "1", "3", "--bootstrap", "100")
    assert code == 0
    assert "zero-shot" in out
    assert "adapted" in out
    assert "R@3" in out
    assert "[" in out

    code, out, _ = call("search", "rainbow", "--topk", "2", "--html", "page.html", "--json")
    hits = json.loads(out)
    assert [hit["rank"] for hit in hits] == [1, 2]
    assert (demo_workspace / "page.html").read_text().startswith("<!doctype html>")


def test_captions_are_shown_as_they_are(call, clips):
    rows = [json.loads(line) for line in (clips / "captions.jsonl").read_text().splitlines()]
    for row in rows:
        row["captions"] = ["[bold]a [/x] :smile: [1]"]
    (clips / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert call("cache", "folder", "--root", clips, "--frames", "2", "--size", "32")[0] == 0
    code, out, err = call("search", "[/red] :smile:", "folder", "--backbone", "demo")
    assert code == 0, err
    assert "[bold]a [/x] :smile: [1]" in out
    assert "[/red] :smile:" in out


def test_help_shows_what_is_taken_by_default(call):
    assert "(default: datasets/NAME)" in call("cache", "--help")[1]


def test_search_without_a_run_says_that_the_backbone_is_frozen(call, demo_workspace):
    code, out, err = call("search", "rainbow")
    assert code == 0
    assert "rainbow" in out
    assert "the frozen demo" in err
    assert call("search", "rainbow", "demo", "--backbone", "demo", "--pretrained", "none", "--json")[0] == 0
    assert call("search", "rainbow", "--pretrained", "none")[0] == 2


def test_zero_shot_takes_the_caches_backbone(call, demo_workspace):
    code, out, _ = call("eval", "--zero-shot", "--json")
    assert code == 0
    assert json.loads(out)["protocol"]["backbone"] == "demo"


def test_topk_takes_several_values_and_leaves_the_argument(call, demo_workspace):
    for order in (
        ["--topk", "1", "7", "demo"],
        ["demo", "--topk", "1", "7"],
        ["--topk", "1", "--topk", "7", "demo"],
        ["--topk", "7", "1", "--", "demo"],
    ):
        code, out, err = call("eval", "--zero-shot", "--json", *order)
        assert code == 0, err
        assert set(json.loads(out)["t2v"]) == {"R@1", "R@7", "MdR", "MnR"}


def test_topk_refuses_nothing_words_and_zero(call):
    assert call("eval", "--topk")[0] == 2
    assert call("eval", "--topk", "1", "0")[0] == 2
    code, _, err = call("eval", "--topk", "five")
    assert code == 2
    assert "--topk" in err


def test_metrics_of_a_matrix_need_no_model(call, tmp_path):
    np.save(tmp_path / "sim.npy", np.eye(4))
    code, out, _ = call("eval", "--similarity", "sim.npy", "--topk", "1", "--json")
    assert code == 0
    assert json.loads(out)["t2v"] == {"R@1": 100.0, "MdR": 1.0, "MnR": 1.0}
    np.save(tmp_path / "wide.npy", np.ones((2, 3)))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("hello")
    for name, reason in (("absent", "no file"), ("wide", "must be square"), ("objects", "not a .npy array"), ("text", "not a .npy array")):
        code, out, err = call("eval", "--similarity", f"{name}.npy")
        assert code == 1
        assert reason in one_sentence(err)
        assert not out


def test_caching_a_folder_with_broken_videos_does_the_rest(call, clips, tmp_path):
    (clips / "text.mp4").write_text("not a video")
    with (clips / "captions.jsonl").open("a") as file:
        for name in ("text.mp4", "gone.mp4"):
            file.write(json.dumps({"video": name, "caption": "x", "split": "train"}) + "\n")
    code, out, err = call("cache", "folder", "--root", clips, "--frames", "2", "--size", "32", "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["done"], result["missing"], result["failed"]) == (6, 1, 1)
    assert "text.mp4: it is text, not a video" in err
    listing = (tmp_path / result["problems"]).read_text().splitlines()
    assert listing[0] == "split,id,status,reason"
    assert [line.split(",")[1:3] for line in listing[1:]] == [["gone.mp4", "missing"], ["text.mp4", "failed"]]
    assert call("cache", "folder", "--root", clips, "--frames", "2", "--size", "32", "--strict")[0] == 1


def test_a_folder_that_gets_captions_leaves_no_clip_twice(call, clips, tmp_path):
    (clips / "captions.jsonl").rename(tmp_path / "captions.jsonl")
    options = ("--root", clips, "--frames", "2", "--size", "32", "--json")
    assert json.loads(call("cache", "folder", *options)[1])["splits"] == ["videos"]
    (tmp_path / "captions.jsonl").rename(clips / "captions.jsonl")
    _, out, err = call("cache", "folder", *options)
    result = json.loads(out)
    assert (result["done"], result["present"]) == (0, 6)
    assert "Removed caches/folder/videos.h5" in err
    assert len(json.loads(call("search", "x", "folder", "--backbone", "demo", "--topk", "100", "--json")[1])) == 6
    (clips / "captions.jsonl").unlink()
    back = json.loads(call("cache", "folder", *options)[1])
    assert (back["done"], back["present"], back["splits"]) == (0, 6, ["videos"])
    assert [path.name for path in (tmp_path / "caches" / "folder").glob("*.h5")] == ["videos.h5"]


def test_caching_when_every_video_is_missing(call, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "captions.csv").write_text("video,caption,split\na.mp4,x,test\n")
    code, out, err = call("cache", "folder", "--root", "data", "--json")
    assert code == 1
    assert json.loads(out)["missing"] == 1
    assert "No video of folder could be cached" in one_sentence(err)


def test_the_real_msrvtt_sample(call, test_data, tmp_path):
    sample = test_data / "msrvtt-sample"
    code, out, err = call("cache", "msrvtt", "--split", "test", "--root", sample, "--size", "96", "--json")
    result = json.loads(out)
    assert (code, result["done"], result["missing"], result["failed"]) == (0, 5, 995, 0)
    assert len((tmp_path / result["problems"]).read_text().splitlines()) == 996
    code, out, err = call("eval", "--zero-shot", "--backbone", "demo", "--json")
    assert json.loads(out)["queries"] == 5
    code, out, err = call("train")
    assert code == 1
    assert f"put it at {sample}/MSRVTT_data.json" in one_sentence(err)
    assert "xmafast cache msrvtt --split train" in one_sentence(err)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["cache", "msrvt"], 2, "Did you mean 'msrvtt'"),
        (["cache", "msrvtt"], 1, "There is no folder datasets/msrvtt"),
        (["cache", "demo", "--split", "val"], 2, "demo has no val split"),
        (["cache", "demo", "--limit", "2", "--backbone", "RN50"], 2, "ResNet"),
        (["train", "--method", "cross-model"], 2, "Did you mean 'cross-modal'"),
        (["train"], 1, "make one with: xmafast cache demo"),
        (["train", "nowhere"], 1, "nowhere holds no cache"),
        (["eval"], 1, "make one with: xmafast train"),
        (["eval", "nowhere"], 1, "nowhere does not exist"),
        (["eval", "--backbone", "demo"], 2, "go with --zero-shot"),
        (["search", "x", "nowhere"], 1, "nowhere does not exist"),
        (["search", "x"], 1, "There is no cache"),
        (["methods", "--backbone", "ViT-B-23"], 2, "Did you mean 'ViT-B-32'"),
        (["methods", "--shared", "513"], 2, "between 0 and 512"),
    ],
)
def test_mistakes_get_one_clear_sentence(call, arguments, code, sentence):
    status, out, err = call(*arguments)
    assert status == code, err
    assert sentence in one_sentence(err)
    assert not out


def test_verify_finds_and_mends_a_damaged_row(call, tmp_path, small_caches):
    shutil.copytree(small_caches, tmp_path / "caches" / "demo")
    path = tmp_path / "caches" / "demo" / "test.h5"
    frames = FrameCache(path, writable=True).frames
    frames[2, 0, 5, 5] ^= 255
    frames.flush()
    code, out, _ = call("verify", "--json")
    found = {Path(row["cache"]).name: row for row in json.loads(out)}
    assert code == 1
    assert (found["test.h5"]["damaged"], found["train.h5"]["damaged"]) == ([FrameCache(path).ids[2]], [])
    code, out, _ = call("verify", "demo")
    assert code == 1
    assert "Next: xmafast verify --repair" in out
    code, out, _ = call("verify", "--repair", "--json")
    assert code == 0
    assert all(row["damaged"] == [] for row in json.loads(out))


def test_a_cache_that_is_not_hdf5(call, tmp_path):
    folder = tmp_path / "caches" / "demo"
    folder.mkdir(parents=True)
    (folder / "test.h5").write_text("hello")
    for arguments in (["eval", "--zero-shot"], ["train"], ["search", "x"]):
        code, _, err = call(*arguments)
        assert code == 1
        assert "test.h5 is not an HDF5 file" in one_sentence(err)


@pytest.mark.parametrize(
    "arguments", [["train", "--mehtod", "x"], ["cahce", "demo"], ["train", "--epochs", "many"], ["train", "--impl", "cuda"], ["cache"]]
)
def test_wrong_usage_ends_with_two(call, arguments):
    code, out, err = call(*arguments)
    assert code == 2
    assert "Traceback" not in err
    assert not out


def test_debug_shows_the_traceback(call):
    from xmafast.errors import UsageError

    with pytest.raises(UsageError):
        call("cache", "msrvt", "--debug")


def test_methods_as_json_gives_the_published_sizes(call):
    code, out, _ = call("methods", "--bottleneck", "16", "--shared", "512", "--json")
    assert code == 0
    (row,) = [row for row in json.loads(out) if row["name"] == "cross-modal"]
    assert row["trainable"] == 805_632
    assert row["share"] == pytest.approx(100 * 805_632 / 151_277_313)


def test_doctor_finds_what_this_machine_has(call):
    code, out, _ = call("doctor", "--json")
    assert code == 0
    findings = {row["name"]: row for row in json.loads(out)}
    assert findings["torch"]["state"] == "ok"
    assert findings["demo backbone"]["state"] == "ok"
    assert call("doctor")[0] == 0


def test_help_and_version_load_nothing_heavy():
    script = """
import sys
from xmafast.cli import main
from xmafast.cli.app import app
for arguments in (["--help"], ["--version"], *([info.name, "--help"] for info in app.registered_commands)):
    try:
        main(arguments)
    except SystemExit as stop:
        assert not stop.code
print("loaded:", *{"torch", "torchvision", "numpy", "h5py", "open_clip", "timm", "PIL", "decord", "av", "starlette"} & {*sys.modules})
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1].strip() == "loaded:"
