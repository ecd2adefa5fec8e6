"""`xmafast cache` with codec, shards and levels, and `merge`, as a user types them."""

import json

import pytest

FEW = ("--limit", "4", "--size", "96", "--frames", "2", "--json")


def run(call, *arguments):
    code, out, err = call(*arguments)
    assert code == 0, err
    return json.loads(out)


def test_shards_are_read_as_one_and_merged(call, tmp_path):
    run(call, "cache", "demo", *FEW)
    whole = run(call, "eval", "--zero-shot", "caches/demo", "--json")
    for i in (1, 2):
        assert run(call, "cache", "demo", *FEW, "--out", "s", "--shard", f"{i}/2")["done"] == 4
        if i == 1:
            code, _, err = call("eval", "--zero-shot", "s")
            assert code == 1
            assert "1 of 2 shards" in err
            assert "--shard 2/2" in err
    assert run(call, "eval", "--zero-shot", "s", "--json")["t2v"] == whole["t2v"]
    assert len(json.loads(call("search", "heart", "s", "--topk", "3", "--json")[1])) == 3
    trained = run(call, "train", "s", "--epochs", "1", "--batch-size", "2", "--out", "runs/s", "--json")
    assert trained["run"] == "runs/s"
    merged = run(call, "merge", "s", "--json")
    assert [(m["cache"], m["rows"], m["done"], m["shards"]) for m in merged] == [("s/test.h5", 4, 4, 2), ("s/train.h5", 4, 4, 2)]
    assert not list((tmp_path / "s").glob("*shard*"))
    assert run(call, "eval", "--zero-shot", "s", "--json")["t2v"] == whole["t2v"]
    assert [v["intact"] for v in run(call, "verify", "s", "--json")] == [4, 4]
    code, _, err = call("merge", "s")
    assert code == 0
    assert "no shards" in err


def test_a_jpeg_cache_trains_and_evaluates(call, tmp_path):
    run(call, "cache", "demo", *FEW, "--codec", "jpeg")
    assert run(call, "train", "--epochs", "1", "--batch-size", "2", "--out", "runs/j", "--json")["run"] == "runs/j"
    assert run(call, "eval", "runs/j", "--json")["queries"] == 4
    code, _, err = call("cache", "demo", *FEW)
    assert code == 1
    assert "codec jpeg" in err
    html = tmp_path / "page.html"
    assert call("search", "heart", "runs/j", "--html", html)[0] == 0
    assert html.read_text().count("data:image/jpeg") >= 4


def test_embeddings_are_made_from_frames_that_are_made_first(call, tmp_path):
    made = run(call, "cache", "demo", *FEW, "--level", "embeddings")
    assert (made["done"], made["level"], made["splits"]) == (8, "embeddings", ["test", "train"])
    place = tmp_path / made["cache"]
    assert sorted(p.name for p in place.glob("*.h5")) == ["test.h5", "train.h5"]
    again = run(call, "cache", "demo", *FEW, "--level", "embeddings")
    assert (again["done"], again["present"]) == (0, 8)
    assert run(call, "eval", "--zero-shot", "caches/demo", "--json")["queries"] == 4
    assert not (tmp_path / "caches" / "demo" / "embeddings").exists()  # nothing was computed a second time
    assert [v["intact"] for v in run(call, "verify", "caches/demo", "--json")] == [4, 4, 4, 4]


def test_tokens_at_a_block_are_made_from_frames_without_the_videos(call, tmp_path):
    run(call, "cache", "demo", *FEW, "--split", "test")
    tokens = run(call, "cache", "demo", "--root", "nowhere", "--split", "test", "--level", "tokens", "--block", "4", "--json")
    assert tokens["done"] == 4
    assert "tokens-4-demo-" in tokens["cache"]
    for i in (1, 2):
        run(call, "cache", "demo", "--split", "test", "--level", "tokens", "--block", "3", "--shard", f"{i}/2", "--json")
    assert [m["done"] for m in run(call, "merge", "caches/demo", "--json")] == [4]


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("--level", "tokens"), 2, "needs --block from 1 to 5"),
        (("--level", "embeddings", "--block", "2"), 2, "goes with --level tokens"),
        (("--block", "2"), 2, "--level tokens or embeddings"),
        (("--pretrained", "none"), 2, "--level tokens or embeddings"),
        (("--shard", "3"), 2, "I/N"),
        (("--shard", "0/2"), 2, "I from 1 to N"),
        (("--codec", "png"), 2, "jpeg"),
        (("--level", "embeddings", "--backbone", "ViT-B-33"), 2, "ViT-B-32"),
    ],
)
def test_options_that_do_not_fit_get_one_sentence(call, arguments, code, reason):
    run(call, "cache", "demo", *FEW, "--split", "test")
    found, _, err = call("cache", "demo", "--split", "test", *arguments)
    assert found == code
    assert reason in err
    assert "Traceback" not in err
