import numpy as np
import pytest
import torch

from xmafast.cache import FrameCache
from xmafast.errors import CacheError, DataError
from xmafast.evaluation import evaluate, rank_both, rank_matrix
from xmafast.metrics import bootstrap, metrics_of, rank_of
from xmafast.retriever import Retriever


def naive_rank(scores, positive):
    """1-based rank by definition: the mean of the best and the worst place among equals."""
    own = scores[positive]
    others = [s for j, s in enumerate(scores) if j != positive]
    best = 1 + sum(s > own for s in others)
    worst = best + sum(s == own for s in others)
    return (best + worst) / 2


@pytest.mark.parametrize("impl", ["eager", "triton"])
@pytest.mark.parametrize("header", ["mean", "text-conditioned"])
@pytest.mark.parametrize("seed", range(5))
def test_ranks_equal_the_definition_with_ties_and_several_captions(demo_backbone, seed, header, impl):
    g = np.random.default_rng(seed)
    m = int(g.integers(2, 12))
    video_of = np.concatenate([np.arange(m), g.integers(0, m, int(g.integers(0, 20)))])
    kinds = torch.from_numpy(g.normal(size=(4, 3, 16)))  # several videos are the same, and tie
    frames, text = kinds[g.integers(0, 4, m)].float(), torch.from_numpy(g.normal(size=(len(video_of), 16))).float()
    mask = torch.ones(m, 3, dtype=torch.bool)
    retriever = Retriever(demo_backbone, None, header, impl=impl)
    ranks = rank_both(retriever, text, frames, mask, torch.from_numpy(video_of))
    matrix = retriever.similarity(text.double(), frames.double(), mask).numpy().round(9)
    assert ranks.t2v.tolist() == [naive_rank(matrix[i], video_of[i]) for i in range(len(video_of))]
    grouped = np.stack([matrix[video_of == v].max(0) for v in range(m)])
    assert ranks.v2t.tolist() == [naive_rank(grouped[:, v], v) for v in range(m)]


def test_metrics_of_known_ranks():
    assert metrics_of(np.array([1, 2, 6, 20.0]), (1, 5, 10)) == {"R@1": 25.0, "R@5": 50.0, "R@10": 75.0, "MdR": 4.0, "MnR": 7.25}
    assert all(np.isnan(v) for v in metrics_of(np.array([])).values())


def test_a_constant_matrix_ranks_everything_in_the_middle():
    assert rank_matrix(np.ones((4, 4))).metrics((1, 5))["t2v"] == {"R@1": 0.0, "R@5": 100.0, "MdR": 2.5, "MnR": 2.5}


def test_a_nan_row_ranks_last():
    matrix = np.eye(3)
    matrix[1] = np.nan
    assert rank_matrix(matrix).t2v.tolist() == [1, 3, 1]


@pytest.mark.parametrize("shape", [(3, 4), (3,), (0, 0)])
def test_a_matrix_of_another_shape_is_refused(shape):
    with pytest.raises(DataError, match="must be square"):
        rank_matrix(np.zeros(shape))


def test_ties_are_half_counted():
    assert rank_of(np.array([0, 2]), np.array([0, 3])).tolist() == [1, 4.5]


def test_the_bootstrap_interval_holds_the_estimate_and_a_paired_one_is_narrower():
    g = np.random.default_rng(0)
    a = g.integers(1, 10, 400).astype(float)
    b = np.where(g.random(400) < 0.1, 1, a)
    low, high = bootstrap(b, [1], 2000)["R@1"]
    assert low < (b <= 1).mean() * 100 < high
    paired = bootstrap(b, [1], 2000, minus=a)["R@1"]
    assert paired[1] - paired[0] < high - low


def test_evaluating_a_cache(demo_backbone, small_caches, tmp_path):
    model = Retriever(demo_backbone, None)
    result = evaluate(model, small_caches / "test.h5", topk=(1, 3), bootstrap_samples=50)
    assert (result["queries"], result["candidates"], result["missing"], result["failed"]) == (12, 12, 0, 0)
    assert set(result["t2v"]) == {"R@1", "R@3", "MdR", "MnR"}
    assert result["t2v"]["R@3"] >= 50
    assert result["protocol"]["rerank"] == "none"
    assert set(result["interval"]) == {"t2v", "v2t", "R-sum"}
    assert set(result["interval"]["t2v"]) == set(result["t2v"])
    stored = evaluate(model, FrameCache(small_caches / "test.h5"), topk=(1, 3), store=tmp_path)
    assert stored["t2v"] == result["t2v"]
    assert len(list(tmp_path.iterdir())) == 1
    assert evaluate(model, FrameCache(small_caches / "test.h5"), topk=(1, 3), store=tmp_path)["v2t"] == result["v2t"]


def test_stored_embeddings_belong_to_one_model(demo_backbone, small_caches, tmp_path):
    cache = FrameCache(small_caches / "test.h5")
    model = Retriever(demo_backbone)
    evaluate(model, cache, store=tmp_path)
    with torch.no_grad():
        next(model.method.parameters()).add_(1)
    evaluate(model, cache, store=tmp_path)
    evaluate(Retriever(demo_backbone, None), cache, store=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_store_is_computed_again(demo_backbone, small_caches, tmp_path):
    model, cache = Retriever(demo_backbone, None), FrameCache(small_caches / "test.h5")
    first = evaluate(model, cache, store=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"damaged")
    assert evaluate(model, cache, store=tmp_path)["t2v"] == first["t2v"]


def test_a_cache_without_any_video_cannot_be_evaluated(demo_backbone, tmp_path):
    from xmafast.cache.frames import create

    create(tmp_path / "test.h5", ["a"], [("x",)], {"frames": 2, "size": 32})
    with pytest.raises(CacheError, match="no video that could be decoded"):
        evaluate(Retriever(demo_backbone, None), tmp_path / "test.h5")
