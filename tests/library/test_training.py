import json

import numpy as np
import pytest
import torch
from support import demo_split

from xmafast.cache import build_cache
from xmafast.errors import CacheError, RunError, UsageError
from xmafast.pretrained import load_backbone
from xmafast.retriever import load
from xmafast.training import loop, schedule, train, training_split
from xmafast.training.data import Plan

FAST = {"epochs": 2, "batch_size": 8, "seed": 0}


@pytest.fixture(scope="module")
def run(small_caches, tmp_path_factory):
    reports = []

    def report(step, validation):
        reports.append((step, validation))

    trained = train(small_caches, tmp_path_factory.mktemp("runs") / "a", report=report, **FAST)
    return trained, reports


def test_a_run_folder_holds_what_was_trained_and_how(run):
    trained, reports = run
    folder = trained.folder
    assert {p.name for p in folder.iterdir()} == {"best", "last", "config.json", "metrics.json", "log.jsonl"}
    for part in ("best", "last"):
        assert {p.name for p in (folder / part).iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    config, metrics = (json.loads((folder / name).read_text()) for name in ("config.json", "metrics.json"))
    assert config["recipe"]["lr"] == 5e-3
    assert config["recipe"]["train_frames"] == 4
    assert metrics["checkpoint_rule"].startswith("the epoch of highest R-sum")
    assert metrics["best_epoch"] == max(metrics["epochs"], key=lambda e: e["r_sum"])["epoch"]
    steps = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "step" in row] == list(range(1, 7))
    step, validation = reports[-1]
    assert step.step == step.steps == 6
    assert validation["t2v"]["R@10"] == 100


def test_the_loss_falls_and_only_the_adapter_moves(run):
    trained, reports = run
    assert reports[-1][0].loss < reports[0][0].loss
    assert trained.retriever.backbone.fingerprint == load_backbone("demo").fingerprint


def test_what_is_returned_is_the_best_epoch(run):
    trained, _ = run
    best = load(trained.folder, trained.retriever.backbone)
    for a, b in zip(best.method.parameters(), trained.retriever.method.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(run, small_caches, tmp_path):
    def weights(folder):
        return (folder / "last" / "adapter_model.safetensors").read_bytes()

    again = train(small_caches, tmp_path / "b", **FAST)
    other = train(small_caches, tmp_path / "c", **{**FAST, "seed": 1})
    assert weights(run[0].folder) == weights(again.folder) != weights(other.folder)


def test_validation_is_cut_from_train_alike_for_every_run(small_caches):
    cache, rows, val_cache, val_rows = training_split([small_caches])
    assert val_cache is cache
    assert len(val_rows) == 3
    assert len(rows) == 21
    assert not set(rows) & set(val_rows)
    assert np.array_equal(training_split([small_caches])[3], val_rows)


def test_a_val_split_of_the_cache_is_used(tmp_path):
    options = {"frames": 1, "sampling": "uniform", "size": 32, "workers": 1}
    build_cache(demo_split("train", 4), tmp_path / "train.h5", **options)
    build_cache(demo_split("test", 2), tmp_path / "val.h5", **options)
    from dataclasses import replace

    build_cache(replace(demo_split("test", 2), name="val"), tmp_path / "c" / "val.h5", **options)
    (tmp_path / "val.h5").unlink()
    (tmp_path / "c" / "val.h5").rename(tmp_path / "val.h5")
    _, rows, val_cache, val_rows = training_split([tmp_path])
    assert val_cache.path.name == "val.h5"
    assert (len(rows), len(val_rows)) == (4, 2)


def test_too_few_videos_to_train_on(tmp_path):
    build_cache(demo_split("train", 2), tmp_path / "train.h5", frames=1, sampling="uniform", size=32, workers=1)
    with pytest.raises(CacheError, match="at least 2 and 1 are needed"):
        train(tmp_path, tmp_path / "run")


def test_a_cache_without_a_train_split(small_caches, tmp_path):
    with pytest.raises(CacheError, match="has no train split"):
        train(small_caches / "test.h5", tmp_path / "run")


def test_a_run_is_never_overwritten(run, small_caches):
    with pytest.raises(UsageError, match="exists already"):
        train(small_caches, run[0].folder, **FAST)


@pytest.mark.parametrize("option", [{"epochs": 0}, {"batch_size": 1}, {"lr": 0.0}, {"lr": float("nan")}])
def test_impossible_recipes_are_refused(small_caches, tmp_path, option):
    with pytest.raises(UsageError, match="must be"):
        train(small_caches, tmp_path / "run", **option)


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_videos(small_caches, tmp_path, monkeypatch):
    real, calls = loop.batch_loss, []

    def breaks(*args):
        calls.append(1)
        return real(*args) * (float("nan") if len(calls) == 4 else 1)

    monkeypatch.setattr(loop, "batch_loss", breaks)
    with pytest.raises(RunError, match=r"became nan .* in step 4 of 6, on the videos .*--lr 0\.\d+"):
        train(small_caches, tmp_path / "run", **FAST)
    assert load(tmp_path / "run" / "last").trainable == 58_032


def test_an_epoch_draws_one_caption_a_video_or_goes_through_every_pair(small_caches):
    cache, rows, *_ = training_split([small_caches])
    one = [pair for draw in Plan(cache, rows, 8).draws(1) for pair in draw.pairs]
    assert sorted(row for row, _ in one) == sorted(rows)
    pairs = [(int(row), i) for row in rows for i in range(len(cache.captions[row]))]
    cache.attributes["captions_per_epoch"] = "all"
    batches = [draw.pairs for draw in Plan(cache, rows, 5).draws(1)]
    assert sorted(pair for batch in batches for pair in batch) == sorted(pairs)
    assert all(len(batch) >= 2 for batch in batches)


def test_theschedule_warms_up_and_decays_without_a_jump():
    values = [schedule(step, 100) for step in range(100)]
    assert values[0] > 0
    assert max(values) == values[9] == values[10] == 1.0
    assert values[-1] < 0.001
    assert np.abs(np.diff(values)).max() <= 0.1 + 1e-9
