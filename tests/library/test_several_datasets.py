"""One adapter trained on several data sets, and one that reads another stream of the videos."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import demo_split

from xmafast import load, train, write_stream
from xmafast.cache import FrameCache, build_cache
from xmafast.errors import CacheError, UsageError
from xmafast.evaluation import rank_cache
from xmafast.records import evaluate_run, recorded
from xmafast.training import training_split
from xmafast.training.data import Plan

FAST = {"epochs": 2, "batch_size": 4, "train_frames": 2, "lr": 5e-3}


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """Ten clips of one data set and seven of another, which goes through every caption."""
    folder = tmp_path_factory.mktemp("several")
    every = demo_split("train", 17)
    for name, videos, captions in (("first", every.videos[:10], "one"), ("second", every.videos[10:], "all")):
        split = replace(every, dataset=name, videos=videos, captions_per_epoch=captions)
        build_cache(split, folder / name / "train.h5", frames=3, size=96, workers=1)
    return [folder / "first", folder / "second"]


def test_each_batch_is_of_one_data_set_and_an_epoch_has_all_of_both(caches):
    split = training_split(caches)
    plan = Plan(split.cache, split.rows, 4)
    draws = list(plan.draws(1))
    of = [set(split.cache.part_of(draw.rows).tolist()) for draw in draws]
    assert all(len(parts) == 1 for parts in of)
    assert set().union(*of) == {0, 1}
    assert len(draws) == plan.steps_per_epoch
    pairs = sorted(pair for draw in draws for pair in draw.pairs)
    second = [(int(row), i) for row in split.rows if split.cache.part_of(row) for i in range(len(split.cache.captions[row]))]
    assert [pair for pair in pairs if split.cache.part_of(pair[0])] == second
    assert sorted(row for row, _ in pairs if not split.cache.part_of(row)) == [row for row in split.rows if not split.cache.part_of(row)]


def test_one_inventory_is_trained_on_both_and_each_gets_its_own_routing(caches, tmp_path):
    trained = train(caches, tmp_path / "run", method="routed", skills=2, heads=2, **FAST)
    assert trained.retriever.datasets == ["first", "second"]
    m = trained.metrics
    assert set(m["validation_by_dataset"]) == {"first", "second"}
    mean = np.mean([one["t2v"]["R@5"] for one in m["validation_by_dataset"].values()])
    assert m["validation"]["t2v"]["R@5"] == pytest.approx(mean)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["cache"] == [str(path) for path in caches]
    again = load(tmp_path / "run")
    routes = again.method.vision[0].route
    assert not torch.equal(routes[:, 0], routes[:, 1])
    again.dataset = "second"
    cache = FrameCache(caches[1] / "train.h5")
    expected, plain = rank_cache(again, cache), rank_cache(again.collapsed(), cache)
    assert np.array_equal(expected.t2v, plain.t2v)


def test_a_stream_is_read_in_training_and_its_file_is_part_of_the_run(caches, tmp_path):
    ids = FrameCache(caches[0] / "train.h5").ids
    generator = np.random.default_rng(0)
    stream = write_stream(tmp_path / "speech.h5", {name: generator.standard_normal((3, 8)) for name in ids[:8]})
    trained = train(caches[0], tmp_path / "run", method="stream", bottleneck=8, blocks=1, stream=stream, **FAST)
    assert trained.retriever.method.stream_width == 8
    assert trained.retriever.method.vision[0].up.weight.abs().sum() > 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["stream"] == str(stream)
    assert config["stream_sha256"] == trained.retriever.stream.fingerprint


@pytest.mark.parametrize(
    ("method", "features", "reason"),
    [
        ("stream", None, "--stream FILE"),
        ("cross-modal", {"x": np.ones((1, 4))}, "--plug stream"),
        ("stream", {"x": np.ones((1, 4))}, "by its id"),
    ],
)
def test_a_stream_that_nothing_reads_and_a_missing_one_are_refused(caches, tmp_path, method, features, reason):
    stream = write_stream(tmp_path / "speech.h5", features) if features else None
    with pytest.raises(UsageError, match=reason):
        train(caches[0], tmp_path / "run", method=method, stream=stream, **FAST)


def test_an_evaluation_takes_the_routing_of_its_data_set_and_the_stream_of_the_training(caches, tmp_path):
    cache = FrameCache(caches[1] / "train.h5")
    train(caches, tmp_path / "routed", method="routed", skills=2, heads=2, **FAST | {"epochs": 1})
    record = evaluate_run(tmp_path / "routed", cache)[0]
    assert record.data["protocol"]["routed_to"] == "second"
    cache.attributes["dataset"] = "a third"
    assert evaluate_run(tmp_path / "routed", cache)[0].data["protocol"]["routed_to"] == "the mean of all"
    stream = write_stream(tmp_path / "speech.h5", {name: np.ones((1, 8)) for name in cache.ids})
    train(caches[1], tmp_path / "run", method="stream", bottleneck=8, blocks=1, stream=stream, **FAST | {"epochs": 1})
    record = evaluate_run(tmp_path / "run", cache)[0]
    assert record.data["options"]["stream"] == str(stream)
    assert recorded(tmp_path / "run", cache).data["key"] == record.data["key"]
    stream.unlink()
    with pytest.raises(CacheError, match="--stream"):
        evaluate_run(tmp_path / "run", cache)
