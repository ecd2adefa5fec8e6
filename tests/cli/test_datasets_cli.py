"""`xmafast datasets`, and every data set through cache, train and eval as a user types them."""

import json
import subprocess
import sys

import pytest
from published import PUBLISHED, msvd

from xmafast.datasets import DATASETS

FEW = ("--json", "--frames", "2", "--size", "96")


def test_datasets_lists_what_is_published_and_what_is_found(call, tmp_path):
    msvd(tmp_path / "datasets" / "msvd")
    next((tmp_path / "datasets" / "msvd" / "YouTubeClips").iterdir()).unlink()
    code, out, err = call("datasets", "--json")
    assert (code, err) == (0, "")
    rows = {row["name"]: row for row in json.loads(out)}
    assert list(rows) == list(DATASETS)
    found = {split["name"]: split for split in rows["msvd"]["splits"]}
    assert {name: (s["expected"], s["found"], s["captions"]) for name, s in found.items()} == {
        "train": (1200, 5, 15),
        "val": (100, 1, 3),
        "test": (670, 2, 6),
    }
    assert sum(split["files"] for split in found.values()) == 7
    assert [s["found"] for s in rows["lsmdc"]["splits"]] == [None] * 3
    assert "There is no folder" in rows["lsmdc"]["problem"]
    assert "✗ LSMDC16_annos_val.csv" in rows["lsmdc"]["tree"]
    assert [(s["expected"], s["found"], s["files"]) for s in rows["demo"]["splits"]] == [(450,) * 3, (150,) * 3]
    assert all({"home", "licence", "paper", "frames", "words", "queries", "v2t"} <= set(row) for row in rows.values())


def test_datasets_for_people(call, tmp_path):
    msvd(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "val_list.txt").unlink()
    code, out, _ = call("datasets", "msvd", "--root", "elsewhere")
    assert code == 0
    assert "✗ val_list.txt" in out
    assert "✓ test_list.txt" in out
    assert "1,200" in out
    code, out, _ = call("datasets")
    assert code == 0
    assert "25,991" in out
    assert call("datasets", "--root", "elsewhere")[0] == 2
    assert call("datasets", "msvdd")[0] == 2


def test_datasets_does_not_wait_for_torch(tmp_path):
    script = "import sys; from xmafast.cli import main\ntry: main(['datasets'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, cwd=tmp_path)


def test_caching_without_the_files_shows_the_tree(call, tmp_path):
    (tmp_path / "datasets" / "didemo").mkdir(parents=True)
    code, out, err = call("cache", "didemo")
    assert (code, out) == (1, "")
    assert "train_list.txt, which is not in datasets/didemo" in err
    assert "(5 more files are missing.)" in err
    assert err.count("✗") == 6


@pytest.mark.parametrize(
    "name", [name if name == "activitynet" else pytest.param(name, marks=pytest.mark.slow) for name in (*PUBLISHED, "msrvtt-7k")]
)
def test_cache_train_eval_from_the_published_layout(call, name, tmp_path):
    layout = name.partition("-")[0]
    expected = PUBLISHED[layout](tmp_path / "datasets" / layout)
    code, out, err = call("cache", name, *FEW)
    assert code == 0, err
    cached = json.loads(out)
    assert (cached["missing"], cached["failed"]) == (0, 0), err
    assert cached["done"] == sum(map(len, expected.values())) - 2 * (name == "msrvtt-7k")
    assert ("1 of the 4 videos in val_ids.json have no annotation" in err) == (name == "activitynet")
    code, out, err = call("train", "--backbone", "demo", "--epochs", "1", "--batch-size", "2", "--json")
    assert code == 0, err
    code, out, err = call("eval", "--json")
    assert code == 0, err
    result = json.loads(out)
    test = expected["test"]
    assert (result["queries"], result["candidates"]) == (sum(map(len, test.values())), len(test))
    assert result["protocol"]["dataset"] == name


def test_frames_default_to_the_protocols(call, tmp_path):
    from xmafast.cache import FrameCache

    for name, frames in (("flickr30k", 1), ("msvd", 12), ("didemo", 64)):
        PUBLISHED[name](tmp_path / "datasets" / name)
        assert call("cache", name, "--split", "val", "--size", "32")[0] == 0
        assert FrameCache(tmp_path / "caches" / name / "val.h5").attributes["frames"] == frames
