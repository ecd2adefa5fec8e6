"""Hard negatives: who they are, which batches they make, and that a run with them can be resumed."""

import hashlib
import os
import signal
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from support import demo_split

from xmafast.cache import FeatureCache, FrameCache, build_cache, build_features
from xmafast.cache.joined import JoinedFrames
from xmafast.errors import UsageError
from xmafast.frozen_embeddings import FrozenEmbeddings
from xmafast.retriever import Retriever
from xmafast.training import Interrupted, Recipe, Trainer, loop, train
from xmafast.training.data import Plan
from xmafast.training.negatives import by_row, hard_negatives

SMALL = {"epochs": 3, "batch_size": 4, "bottleneck": 4, "shared": 2, "hard_negatives": 2, "lr": 0.02}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Forty clips of two frames, more than are embedded at once."""
    path = tmp_path_factory.mktemp("cache") / "train.h5"
    build_cache(demo_split("train", 40), path, frames=2, sampling="uniform", size=32, workers=2)
    return path


@pytest.fixture(scope="module")
def cache(path):
    return FrameCache(path)


@torch.no_grad()
def expected(model, cache, rows, count):
    """By the definition, a row at a time."""
    video = [model.encode_frames(*cache.read(np.array([row]))).double().mean(1) for row in rows]
    video = torch.nn.functional.normalize(torch.cat(video), dim=-1)
    found = []
    for row in rows:
        text = torch.nn.functional.normalize(model.encode_text([cache.captions[row][0]]).double(), dim=-1)
        order = [rows[i] for i in (video @ text[0]).argsort(descending=True).tolist()]
        found.append([other for other in order if not {*cache.captions[other]} & {*cache.captions[row]}][:count])
    return np.array(found)


def test_they_are_the_videos_nearest_to_the_caption_but_for_its_own(demo_backbone, cache):
    model = Retriever(demo_backbone, header="mean").eval()
    rows = cache.rows[2:37]
    assert np.array_equal(hard_negatives(model, cache, rows, 3), expected(model, cache, rows, 3))


def test_videos_that_share_a_caption_are_none(demo_backbone, path):
    cache = FrameCache(path)
    model = Retriever(demo_backbone, header="mean").eval()
    first, second = hard_negatives(model, cache, cache.rows, 2)[0]
    cache.captions = [*cache.captions]
    cache.captions[first] = ("another", cache.captions[0][0])
    assert hard_negatives(model, cache, cache.rows, 1)[0].tolist() == [second]


def test_where_there_are_fewer_the_rest_is_empty(demo_backbone, cache):
    found = hard_negatives(Retriever(demo_backbone), cache, cache.rows[:3], 5)
    assert found.shape == (3, 5)
    assert (found[:, 2:] == -1).all()
    assert all({*row[:2]} == {*cache.rows[:3]} - {own} for own, row in zip(cache.rows, found, strict=False))
    assert by_row(cache.rows[:3], found)[int(cache.rows[0])] == found[0, :2].tolist()


def test_cached_tokens_and_frozen_embeddings_find_the_same(demo_backbone, cache, tmp_path):
    last = Retriever(demo_backbone, header="mean", at_blocks="last:2")
    build_features(cache, tmp_path / "tokens.h5", demo_backbone, level="tokens", block=last.adapted.first_vision)
    tokens = FeatureCache(tmp_path / "tokens.h5")
    assert np.array_equal(hard_negatives(last, cache, cache.rows, 2, tokens=tokens), expected(last, cache, cache.rows, 2))
    alone = Retriever(demo_backbone, "clip-adapter", "mean")
    frozen = FrozenEmbeddings(alone, cache)
    assert np.array_equal(hard_negatives(alone, cache, cache.rows, 2, frozen=frozen), hard_negatives(alone, cache, cache.rows, 2))


def test_each_data_set_has_its_own(demo_backbone, path):
    other = FrameCache(path)
    other.attributes = {**other.attributes, "dataset": "other"}
    joined = JoinedFrames([FrameCache(path), other])
    found = hard_negatives(Retriever(demo_backbone), joined, joined.rows, 2)
    half = len(found) // 2
    assert np.array_equal(found[half:], found[:half] + half)


# batches


def test_an_epoch_has_the_same_pairs_and_those_that_are_near_side_by_side(cache):
    rows = cache.rows
    near = {int(row): [int(rows[i ^ 1])] for i, row in enumerate(rows)}
    plain = [draw.pairs for draw in Plan(cache, rows, 12, seed=3).draws(1)]
    hard = [draw.pairs for draw in Plan(cache, rows, 12, seed=3, nearest=lambda epoch: near).draws(1)]
    assert sorted(chain(*plain)) == sorted(chain(*hard))
    assert [len(pairs) for pairs in hard] == [len(pairs) for pairs in plain] == [12, 12, 12, 4]
    assert hard[0][0] == plain[0][0]
    assert all({row for row, _ in pairs} == {near[row][0] for row, _ in pairs} for pairs in hard)
    assert not any({row for row, _ in pairs} == {near[row][0] for row, _ in pairs} for pairs in plain)


def test_of_a_video_with_many_captions_one_follows_into_a_batch(cache):
    every = FrameCache(cache.path)
    every.captions = [(f"{i} a", f"{i} b", f"{i} c") for i in range(len(every.ids))]
    every.attributes = {**every.attributes, "captions_per_epoch": "all"}
    rows, near = every.rows[:8], {int(row): [int(other) for other in every.rows[:8] if other != row] for row in every.rows[:8]}
    batches = [draw.pairs for draw in Plan(every, rows, 4, nearest=lambda epoch: near).draws(1)]
    assert Counter(chain(*batches)) == Counter((int(row), i) for row in rows for i in range(3))
    assert len({row for row, _ in batches[0]}) == 4


def test_they_are_sought_anew_with_the_weights_of_each_epoch(demo_backbone, cache, monkeypatch):
    torch.manual_seed(0)
    model, seen = Retriever(demo_backbone, bottleneck=4, shared=2), []

    def found(retriever, *given, **named):
        seen.append(torch.cat([p.detach().flatten() for p in retriever.trained.values()]).clone())
        return hard_negatives(retriever, *given, **named)

    monkeypatch.setattr(loop, "hard_negatives", found)
    trainer = Trainer(model, cache, cache.rows[:9], Recipe(3, 4, lr=0.02, hard_negatives=2))
    weights = [torch.cat([p.detach().flatten() for p in model.trained.values()]).clone()]
    for step in trainer.run():
        if step.ends_epoch:
            weights.append(torch.cat([p.detach().flatten() for p in model.trained.values()]).clone())
    assert len(seen) == 3
    assert all(torch.equal(then, now) for then, now in zip(weights, seen, strict=False))
    assert not torch.equal(seen[0], seen[1])


# runs


def weights(run):
    return [hashlib.sha256((run / part / "adapter_model.safetensors").read_bytes()).hexdigest() for part in ("best", "last")]


@pytest.mark.parametrize("stops", [(1, 2, 4, 6), (3,)])
def test_a_run_that_is_stopped_ends_with_the_same_weights(demo_backbone, tmp_path, stops):
    build_cache(demo_split("train", 9), tmp_path / "train.h5", frames=2, sampling="uniform", size=32, workers=1)
    given = {"cache": tmp_path / "train.h5", "backbone": demo_backbone, **SMALL}
    whole = train(out=tmp_path / "whole", **given)

    def stop_at(last):
        def report(step, validation):
            if step.step == last and validation is None:
                os.kill(os.getpid(), signal.SIGTERM)

        return report

    for i, stop in enumerate(stops):
        with pytest.raises(Interrupted, match=f"after step {stop} of 6"):
            train(out=tmp_path / "run", report=stop_at(stop), **({"backbone": demo_backbone, "resume": True} if i else given))
    train(out=tmp_path / "run", backbone=demo_backbone, resume=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    random = train(out=tmp_path / "random", **{**given, "hard_negatives": 0})
    assert weights(random.folder) != weights(whole.folder)


def test_a_number_below_zero_is_refused():
    with pytest.raises(UsageError, match="--hard-negatives must be at least 0, not -1"):
        Recipe(hard_negatives=-1).check()
