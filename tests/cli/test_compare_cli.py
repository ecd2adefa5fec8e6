"""Evaluation's record, and what reads it: compare and report."""

import json
import shutil

import numpy as np
import pytest

from xmafast.cache import FrameCache
from xmafast.records import Record, key_of, record_path, recorded
from xmafast.retriever import Retriever
from xmafast.training import train


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory, small_caches):
    """Two runs of one step or two on the demo's first clips, and their caches."""
    workspace = tmp_path_factory.mktemp("workspace")
    shutil.copytree(small_caches, workspace / "caches" / "demo")
    for name, lr in (("a", 1e-3), ("b", 2e-2)):
        train(workspace / "caches" / "demo", workspace / "runs" / name, epochs=1, batch_size=16, lr=lr)
    return workspace


@pytest.fixture
def workspace(two_runs, monkeypatch):
    monkeypatch.setenv("XMAFAST_WORKSPACE", str(two_runs))
    return two_runs


def test_an_evaluation_leaves_its_record(call, workspace):
    code, out, err = call(
        "eval", "a", "--bootstrap", "50", "--rerank", "dsl", "--rerank", "nnn", "--set", "bank=8", "neighbours=2", "--json"
    )
    assert code == 0, err
    result = json.loads(out)
    assert set(result["rerank"]) == {"dsl", "nnn"}
    assert result["rerank"]["nnn"]["bank"]["videos"] == 8
    assert result["protocol"]["rerank"] == "none"
    record = json.loads((workspace / "runs" / "a" / "eval-test.json").read_text())
    assert record["metrics"]["adapted"]["t2v"] == result["t2v"]
    assert len(record["adapted"]["t2v"]) == len(record["captions"]) == result["queries"]
    assert record["protocol"]["words"]
    assert record["protocol"]["queries"] == "single"
    assert record["checkpoint_rule"].startswith("the epoch of highest R-sum")
    assert record["options"]["bottleneck"] == 8
    assert record["options"]["neighbours"] == 2
    code, out, _ = call("eval", "a", "--rerank", "dsl", "--bootstrap", "20")
    assert code == 0
    assert "adapted + dsl *" in " ".join(out.split())
    assert "not comparable" in out


def test_comparing_two_runs_encodes_nothing_twice(call, workspace, monkeypatch):
    for run in ("a", "b"):
        assert call("compare", run, run, "--bootstrap", "20")[0] == 0

    def never(*_, **__):
        raise AssertionError("encoded again")

    monkeypatch.setattr(Retriever, "encode_frames", never)
    monkeypatch.setattr(Retriever, "encode_text", never)
    code, out, err = call("compare", "a", "b", "--topk", "1", "3", "--bootstrap", "200", "--json")
    assert code == 0, err
    result = json.loads(out)
    one, two = result["runs"]
    assert result["difference"]["t2v"]["R@3"] == pytest.approx(two["t2v"]["R@3"] - one["t2v"]["R@3"])
    low, high = result["interval"]["t2v"]["R@1"]
    assert low <= result["difference"]["t2v"]["R@1"] <= high
    assert 0 < result["test"]["v2t"]["p"] <= 1
    code, out, _ = call("compare", "a", "b", "--bootstrap", "50")
    assert code == 0
    assert "difference" in out
    assert "R@1, text to video: p = " in out


def test_a_record_is_of_one_adapter_and_one_cache(workspace, tmp_path):
    run = tmp_path / "a"
    shutil.copytree(workspace / "runs" / "a", run)
    cache = FrameCache(workspace / "caches" / "demo" / "test.h5")
    first = recorded(run, cache)
    assert record_path(run, cache) == run / "eval-test.json"
    path = run / "eval-test.json"
    marked = json.loads(path.read_text()) | {"marked": True}
    path.write_text(json.dumps(marked))
    assert recorded(run, cache).data.get("marked"), "it is read again"
    shutil.copy(workspace / "runs" / "b" / "best" / "adapter_model.safetensors", run / "best")
    assert key_of(run, cache) != first.data["key"]
    again = recorded(run, cache)
    assert "marked" not in again.data
    path.write_text("damaged")
    assert recorded(run, cache).ranks().t2v.tolist() == again.ranks().t2v.tolist()


def test_a_records_ranks_are_those_of_the_evaluation(workspace):
    cache = FrameCache(workspace / "caches" / "demo" / "test.h5")
    record = recorded(workspace / "runs" / "a", cache)
    ranks = record.ranks()
    again = Record(record.run, json.loads(record_path(record.run, cache).read_text()))
    metrics = again.data["metrics"]["adapted"]
    assert again.ranks().metrics() == ranks.metrics() == {side: metrics[side] for side in ("t2v", "v2t")}
    best = np.array(record.found("t2v"))
    assert best.shape == (len(ranks.t2v), 3)
    assert ((best[:, 0] == ranks.video_of) == (ranks.t2v == 1)).all()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["compare", "a", "nowhere"], 1, "nowhere does not exist"),
        (["eval", "a", "--rerank", "dls"], 2, "Did you mean 'dsl'"),
        (["eval", "a", "--set", "beta=1"], 2, "--set is for re-ranking"),
        (["eval", "a", "--rerank", "dsl", "--set", "tempreature=1"], 2, "Did you mean 'temperature'"),
        (["eval", "a", "--rerank", "dsl", "--set", "temperature=hot"], 2, "number above 0"),
        (["eval", "a", "--rerank", "nnn", "--set", "neighbours=1.5"], 2, "whole number above 0"),
        (["eval", "--similarity", "x.npy", "--rerank", "qbnorm"], 2, "a bank of training queries"),
    ],
)
def test_mistakes_get_one_clear_sentence(call, workspace, arguments, code, sentence):
    status, out, err = call(*arguments)
    assert status == code, err
    assert sentence in err
    assert "Traceback" not in err
    assert not out


def test_runs_on_other_queries_are_not_compared(call, workspace, tmp_path):
    run = tmp_path / "c"
    shutil.copytree(workspace / "runs" / "a", run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"cache": str(workspace / "caches" / "demo" / "train.h5")}))
    code, _, err = call("compare", "a", run)
    assert code == 1
    assert "other videos or captions" in err
    assert call("compare", "a", run, "--cache", "demo", "--bootstrap", "10")[0] == 0


def test_rerank_of_a_matrix_takes_cosines_or_logits(call, tmp_path):
    g = np.random.default_rng(0)
    cosines = np.clip(g.normal(size=(20, 20)) / 10 + 0.2 * np.eye(20), -1, 1)
    for name, matrix in (("cosines", cosines), ("logits", 100 * cosines)):
        np.save(tmp_path / f"{name}.npy", matrix)
    results = {}
    for name in ("cosines", "logits"):
        code, out, err = call("eval", "--similarity", f"{name}.npy", "--rerank", "dsl", "--rerank", "is", "--bootstrap", "50", "--json")
        assert code == 0
        assert ("taken as logits" in err) == (name == "logits")
        results[name] = json.loads(out)
    assert results["logits"]["rerank"]["dsl"]["t2v"] == results["cosines"]["rerank"]["dsl"]["t2v"]
    assert results["logits"]["t2v"] == results["cosines"]["t2v"]
    assert results["logits"]["rerank"]["is"]["temperature"] == 1
    assert set(results["logits"]["interval"]["v2t"]) == {"R@1", "R@5", "R@10", "MdR", "MnR"}


def test_a_report_is_one_page_about_several_runs(call, workspace, tmp_path):
    code, out, err = call("report", "a", "b", "--out", tmp_path / "pages" / "two.html", "--bootstrap", "20", "--worst", "2", "--json")
    assert code == 0, err
    result = json.loads(out)
    page = (tmp_path / "pages" / "two.html").read_text(encoding="utf-8")
    assert len(page.encode()) == result["bytes"]
    assert page.startswith("<!doctype html>")
    assert "Training loss" in page
    code, out, _ = call("report", "--bootstrap", "0", "--worst", "0")
    assert code == 0
    assert (workspace / "report.html").is_file()
    assert "report.html" in out
