"""Training on the last blocks, from frames and from a token cache of them."""

import json

import numpy as np
import pytest
import torch
from support import demo_split

from xmafast.cache import FeatureCache, FrameCache, build_cache, build_features, feature_folder
from xmafast.cache.joined import JoinedFrames
from xmafast.errors import RunError, UsageError
from xmafast.evaluation import embed, evaluate
from xmafast.pretrained import load_backbone
from xmafast.retriever import Retriever, load
from xmafast.training import Recipe, Trainer, train
from xmafast.training.settings import settings_of_run
from xmafast.training.tokens import token_bytes, tokens_for, why_none

LAST = {"epochs": 2, "batch_size": 8, "at_blocks": "last:2"}


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("demo")


@pytest.fixture
def caches(small_caches, tmp_path):
    """The same frames where token caches may be put beside them."""
    folder = tmp_path / "caches"
    folder.mkdir()
    for file in small_caches.glob("*.h5"):
        (folder / file.name).symlink_to(file)
    return folder


@pytest.fixture(scope="module")
def tokens(small_caches, backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "train.h5"
    build_features(FrameCache(small_caches / "train.h5"), path, backbone, level="tokens", block=4)
    return path


def put(tokens, caches, backbone, block=4):
    """Where a training looks for them."""
    path = feature_folder(caches, backbone, "tokens", block) / "train.h5"
    path.parent.mkdir()
    path.symlink_to(tokens)
    return path


def losses(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return np.array([row["loss"] for row in rows if "step" in row])


def curve(backbone, cache, tokens, steps, **recipe):
    torch.manual_seed(0)
    model = Retriever(backbone, at_blocks="last:2", frames=cache.shape[1])
    trainer = Trainer(model, cache, cache.rows, Recipe(epochs=steps, batch_size=12, lr=1e-3, **recipe), tokens=tokens)
    return np.array([step.loss for step, _ in zip(trainer.run(), range(steps), strict=False)])


@pytest.mark.parametrize(
    ("steps", "train_frames"), [(4, 0), (4, 2), pytest.param(50, 0, marks=pytest.mark.slow), pytest.param(50, 3, marks=pytest.mark.slow)]
)
def test_loss_curves_of_cached_and_uncached_agree_within_fp16_rounding(backbone, small_caches, tokens, steps, train_frames):
    cache = FrameCache(small_caches / "train.h5")
    plain = curve(backbone, cache, None, steps, train_frames=train_frames)
    cached = curve(backbone, cache, FeatureCache(tokens), steps, train_frames=train_frames)
    assert len(plain) == len(cached) == steps
    assert not np.array_equal(plain, cached)
    np.testing.assert_allclose(cached, plain, rtol=5e-3, atol=2e-3)


def test_videos_cut_from_the_training_set_are_validated_from_their_tokens(backbone, caches, tokens, tmp_path, monkeypatch):
    put(tokens, caches, backbone)
    read, real = [], FrameCache.read
    monkeypatch.setattr(FrameCache, "read", lambda cache, *given: read.append(1) or real(cache, *given))
    cached = train(caches / "train.h5", tmp_path / "cached", backbone=backbone, **LAST)
    assert not read  # neither a step nor a validation has run the blocks below
    plain = train(caches / "train.h5", tmp_path / "plain", backbone=backbone, cache_tokens=False, **LAST)
    assert read
    assert plain.metrics["validation"]["t2v"].keys() == cached.metrics["validation"]["t2v"].keys()
    frames = FrameCache(caches / "train.h5")
    pair = [embed(cached.retriever, frames, frames.rows[:3], tokens=given).frames for given in (None, FeatureCache(tokens))]
    torch.testing.assert_close(*pair, rtol=1e-2, atol=1e-2)
    assert not torch.equal(*pair)


def test_a_token_cache_is_made_where_it_is_wanted_and_taken_where_it_is(backbone, caches, tmp_path):
    told = []
    first = train(caches, tmp_path / "a", backbone=backbone, cache_tokens=True, tell=told.append, **LAST)
    path = feature_folder(caches, backbone, "tokens", 4) / "train.h5"
    assert FeatureCache(path).attributes["block"] == 4
    assert [sentence.split(" ")[0] for sentence in told] == ["Making", "Training"]
    again = train(caches, tmp_path / "b", backbone=backbone, tell=told.append, **LAST)
    assert told[-1].startswith(f"Training from the token cache {path}: 2 vision blocks")
    weights = [(trained.folder / "last" / "adapter_model.safetensors").read_bytes() for trained in (first, again)]
    assert weights[0] == weights[1]
    config = json.loads((again.folder / "config.json").read_text())
    assert (config["at_blocks"], config["token_cache"]) == ("last:2", True)
    plain = train(caches, tmp_path / "c", backbone=backbone, cache_tokens=False, **LAST)
    assert not json.loads((plain.folder / "config.json").read_text())["token_cache"]
    np.testing.assert_allclose(losses(again.folder), losses(plain.folder), rtol=5e-3, atol=2e-3)


def test_without_one_the_command_and_its_size_are_told(backbone, caches, tmp_path):
    told = []
    train(caches, tmp_path / "run", backbone=backbone, tell=told.append, **{**LAST, "epochs": 1})
    frames, model = FrameCache(caches / "train.h5"), Retriever(backbone, at_blocks="last:2")
    assert token_bytes(model, frames) == 2 * 24 * 4 * 37 * 192
    assert len(told) == 1
    assert "take 1.4 MB: train with --cache-tokens, or first xmafast cache demo --split train" in told[0]
    assert f"--out {caches} --level tokens --block 4 --backbone demo" in told[0]


@pytest.mark.parametrize("change", ["block", "weights", "frames"])
def test_a_token_cache_that_does_not_fit_is_left(backbone, caches, tokens, change):
    model, frames = Retriever(backbone, at_blocks="last:2"), FrameCache(caches / "train.h5")
    put(tokens, caches, backbone)
    assert tokens_for(model, frames, None) is not None
    if change == "block":
        model = Retriever(backbone, at_blocks="last:3")
    elif change == "weights":
        model = Retriever(load_backbone("demo", "none"), at_blocks="last:2")
    else:
        frames.checksum = frames.checksum + np.uint64(1)
    assert tokens_for(model, frames, None) is None
    assert tokens_for(model, frames, False) is None


def test_a_token_cache_of_other_weights_under_its_name_is_left(caches, tokens):
    other = load_backbone("demo", "none")
    put(tokens, caches, other)
    assert tokens_for(Retriever(other, at_blocks="last:2"), FrameCache(caches / "train.h5"), None) is None


def test_where_there_can_be_no_token_cache_it_is_refused_with_the_reason(backbone, caches, tmp_path):
    for options, reason in (
        ({}, "unless --blocks last:K"),
        ({"at_blocks": "last:2", "patch_drop": 0.5}, "patch-drop leaves other patches"),
    ):
        with pytest.raises(UsageError, match=f"--cache-tokens has nothing to make: .*{reason}"):
            train(caches, tmp_path / "run", backbone=backbone, cache_tokens=True, epochs=1, **options)
    frames = FrameCache(caches / "train.h5")
    assert "of one data set" in str(why_none(Retriever(backbone, at_blocks="last:2"), JoinedFrames([frames])))


class Killed(Exception):
    pass


def killed_after(step):
    def report(taken, validation):
        if taken.step == step and validation is None:
            raise Killed

    return report


@pytest.mark.parametrize("cached", [True, False])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(backbone, caches, tokens, tmp_path, cached):
    if cached:
        put(tokens, caches, backbone)
    whole = train(caches, tmp_path / "whole", backbone=backbone, **LAST)
    with pytest.raises(Killed):
        train(caches, tmp_path / "run", backbone=backbone, save_every="1", report=killed_after(4), **LAST)
    if not cached:  # one that has come meanwhile changes nothing
        put(tokens, caches, backbone)
    resumed = train(out=tmp_path / "run", resume=True)
    for part in ("last", "best"):
        weights = [(trained.folder / part / "adapter_model.safetensors").read_bytes() for trained in (whole, resumed)]
        assert weights[0] == weights[1]
    assert np.array_equal(losses(whole.folder), losses(resumed.folder))


def test_a_run_whose_token_cache_is_gone_is_not_gone_on_with(backbone, caches, tokens, tmp_path):
    path = put(tokens, caches, backbone)
    with pytest.raises(Killed):
        train(caches, tmp_path / "run", backbone=backbone, report=killed_after(1), **LAST)
    path.unlink()
    with pytest.raises(RunError, match="begun on a token cache that is not there any more; make it again: xmafast cache demo"):
        train(out=tmp_path / "run", resume=True)
    for option, was in (
        ({"at_blocks": "last:1"}, "at blocks last:2, not last:1"),
        ({"cache_tokens": False}, "token cache True, not False"),
    ):
        with pytest.raises(UsageError, match=f"was begun with {was}"):
            train(out=tmp_path / "run", resume=True, **option)


def test_evaluation_needs_no_token_cache(backbone, caches, tokens, tmp_path):
    path = put(tokens, caches, backbone)
    trained = train(caches, tmp_path / "run", backbone=backbone, **{**LAST, "epochs": 1})
    path.unlink()
    loaded = load(trained.folder, backbone)
    assert loaded.at_blocks == "last:2"
    assert loaded.text_prefix is None
    assert evaluate(loaded, caches / "test.h5")["t2v"] == evaluate(trained.retriever, caches / "test.h5")["t2v"]


def test_a_run_on_the_last_blocks_can_begin_another(backbone, caches, tmp_path):
    first = train(caches, tmp_path / "a", backbone=backbone, **{**LAST, "epochs": 1})
    second = train(caches, tmp_path / "b", backbone=backbone, init=first.folder, epochs=1, batch_size=8)
    assert second.retriever.at_blocks == "last:2"
    assert settings_of_run(json.loads((second.folder / "config.json").read_text()), second.folder).at_blocks == "last:2"


def test_a_method_with_an_option_called_blocks_keeps_it(backbone, tmp_path):
    build_cache(demo_split("train", 4), tmp_path / "train.h5", frames=1, sampling="uniform", size=32, workers=1)
    trained = train(
        tmp_path, tmp_path / "run", backbone=backbone, method="lora", plugs=[("disco", {"vision_blocks": 1, "text_blocks": 1})], **LAST
    )
    again = load(trained.folder, backbone)
    assert again.config()["plugs"] == [("disco", dict(again.method.parts["disco"].options()))]
    model = Retriever(backbone, "stream", at_blocks="last:2", blocks=1)
    assert (model.at_blocks, model.method.blocks, len(model.method.vision)) == ("last:2", 1, 1)
