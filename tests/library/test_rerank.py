"""Re-ranking against each paper's formula in plain numpy."""

import numpy as np
import pytest
import torch

from xmafast import ranks as ranks_module
from xmafast import rerank as rerank_module
from xmafast.cache import FrameCache
from xmafast.errors import UsageError
from xmafast.evaluation import evaluate
from xmafast.ranks import rank_matrix
from xmafast.rerank import METHODS, Bank, Cosines, Matrix, Settings, rerank
from xmafast.retriever import Retriever

HOW = Settings(temperature=0.1, beta=7.0, weight=0.6, neighbours=3)


def by_formula(name, s, bank):
    """Scores (Q, C) of queries, and of the bank's queries (B, C), re-ranked."""
    if name == "dsl":
        e = np.exp(s / HOW.temperature)
        return s * e / e.sum(0)
    if name == "is":
        e = np.exp(s / HOW.temperature)
        return e / e.sum(0)
    if name == "nnn":
        return s - HOW.weight * np.sort(bank, axis=0)[::-1][: HOW.neighbours].mean(0)
    active = set(bank.argmax(1))
    out = s.copy()
    for i, row in enumerate(s):
        if row.argmax() in active:
            out[i] = np.exp(HOW.beta * row) / np.exp(HOW.beta * bank).sum(0)
    return out


@pytest.fixture(params=[10, 2**22], ids=["in tiny parts", "at once"])
def parts(request, monkeypatch):
    """How many scores there are at once."""
    monkeypatch.setattr(rerank_module, "SCORES_AT_ONCE", request.param)
    monkeypatch.setattr(ranks_module, "SCORES_AT_ONCE", request.param)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("seed", range(8))
def test_ranks_are_those_of_the_papers_formula(name, seed):
    g = np.random.default_rng(seed)
    m = int(g.integers(2, 9))
    video_of = g.permutation(np.concatenate([np.arange(m), g.integers(0, m, int(g.integers(0, 9)) * (seed % 2))]))
    s, bank_texts, bank_videos = (g.uniform(-1, 1, shape) for shape in ((len(video_of), m), (6, m), (len(video_of), 5)))
    bank = Bank(Matrix(torch.from_numpy(bank_texts)), Matrix(torch.from_numpy(bank_videos)))
    found = rerank(name, Matrix(torch.from_numpy(s)), torch.from_numpy(video_of), HOW, bank)
    t2v = rank_matrix(by_formula(name, s, bank_texts), video_of)
    v2t = rank_matrix(by_formula(name, s.T, bank_videos.T).T, video_of)
    assert found.t2v.tolist() == t2v.t2v.tolist()
    assert found.v2t.tolist() == v2t.v2t.tolist()
    assert found.metrics()["v2t"] == pytest.approx(v2t.metrics()["v2t"])


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("header", ["mean", "text-conditioned"])
def test_scores_of_embeddings_are_formed_in_parts(demo_backbone, header, name):
    g = torch.Generator().manual_seed(0)
    text, frames, more = (torch.randn(shape, generator=g) for shape in ((9, 16), (7, 3, 16), (5, 3, 16)))
    frames[3] = frames[1]
    video_of = torch.tensor([0, 1, 2, 3, 4, 5, 6, 1, 1])
    retriever = Retriever(demo_backbone, None, header)

    def scores(t, f):
        return Cosines(retriever, t, f, torch.ones(len(f), 3, dtype=torch.bool))

    def whole(t, f):
        return Matrix(retriever.similarity(t.double(), f.double(), torch.ones(len(f), 3, dtype=torch.bool)))

    found, truth = (
        rerank(name, of(text, frames), video_of, HOW, Bank(of(text[2:5] + 1, frames), of(text, more))) for of in (scores, whole)
    )
    assert found.t2v.tolist() == truth.t2v.tolist()
    assert found.v2t.tolist() == truth.v2t.tolist()
    assert found.t2v[1] % 1 == 0.5, "a copy of a video ties with it"


@pytest.mark.parametrize("name", METHODS)
def test_nan_ranks_last_and_spoils_nothing_else(name):
    s = torch.eye(4, dtype=torch.float64)
    s[1] = torch.nan
    bank = Bank(Matrix(torch.eye(4, dtype=torch.float64) / 2), Matrix(torch.eye(4, dtype=torch.float64) / 2))
    found = rerank(name, Matrix(s), torch.arange(4), HOW, bank)
    assert found.t2v.tolist() == [1, 4, 1, 1]
    assert found.v2t[1] == 4
    assert found.v2t[[0, 2, 3]].tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", METHODS)
def test_scores_that_differ_by_rounding_alone_tie(name):
    s = torch.tensor([[0.9, 0.9, 0.1], [0.2, 0.2, 0.3], [0.3, 0.1, 0.8]], dtype=torch.float64)
    s[0, 1] *= 1 + 4e-16
    bank = Bank(Matrix(torch.full((2, 3), 0.5, dtype=torch.float64)), Matrix(torch.full((3, 2), 0.5, dtype=torch.float64)))
    s[1:, 1] = s[1:, 0]  # but for its last bits in the first row, video 1 is a copy of video 0
    assert rerank(name, Matrix(s), torch.arange(3), HOW, bank).t2v[0] == 1.5
    s[0, 1] = 0.9 + 1e-6
    assert rerank(name, Matrix(s), torch.arange(3), HOW, bank).t2v[0] == 2


def test_dual_softmax_takes_a_hub_down():
    s = np.array([[0.5, 0.6], [0.2, 0.7]])  # video 1 is everybody's best
    assert rank_matrix(s).t2v.tolist() == [2, 1]
    assert rerank("dsl", Matrix(torch.from_numpy(s)), torch.arange(2)).t2v.tolist() == [1, 1]


def test_reranked_metrics_stand_beside_the_plain_ones(demo_backbone, small_caches):
    model = Retriever(demo_backbone, None)
    plain = evaluate(model, small_caches / "test.h5")
    found = evaluate(model, small_caches / "test.h5", rerank_by=list(METHODS), bank=FrameCache(small_caches / "train.h5"))
    assert {key: value for key, value in found.items() if key != "rerank"} == plain
    assert list(found["rerank"]) == list(METHODS)
    for name in ("dsl", "is"):
        assert "whole query set" in found["rerank"][name]["uses"]
        assert found["rerank"][name]["temperature"] == 0.01
    for name in ("qbnorm", "nnn"):
        assert found["rerank"][name]["bank"]["videos"] == 24


def test_mistakes_are_named(demo_backbone, small_caches):
    model = Retriever(demo_backbone, None)
    with pytest.raises(UsageError, match="Did you mean 'dsl'"):
        evaluate(model, small_caches / "test.h5", rerank_by=["dsk"])
    with pytest.raises(UsageError, match="need a bank"):
        evaluate(model, small_caches / "test.h5", rerank_by=["nnn"])
    with pytest.raises(UsageError, match="temperature"):
        evaluate(model, small_caches / "test.h5", rerank_by=["dsl"], settings=Settings(temperature=0))
