"""Metrics against their definitions, written out in plain Python."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from xmafast.comparison import compare
from xmafast.errors import DataError
from xmafast.kernels.ranking.scores import InnerProducts
from xmafast.metrics import intervals, precision_and_gain, sign_flips
from xmafast.ranks import Ranks, caption_counts, rank_both, rank_matrix
from xmafast.retriever import Retriever

PROBLEMS, PARTS = 2000, 8


def isnan(x):
    return x != x


def best_and_worst(scores, positive):
    """Places of a positive among scores, first and last among equals; NaN is above nothing, and last as a positive."""
    own = scores[positive]
    if isnan(own):
        return len(scores), len(scores)
    above = sum(s > own for s in scores)
    return above + 1, above + sum(s == own for s in scores)


def average_precision_and_gain(scores, positives):
    """The mean of both, with the positives first and last among equals, from the whole order."""

    def order(positive_first):
        def key(i):
            lost = isnan(scores[i])
            # a positive that is no number is last of all, whatever else is no number
            return (2 if lost and i in positives else 1 if lost else 0, 0 if lost else -scores[i], (i in positives) != positive_first)

        return sorted(range(len(scores)), key=key)

    values = []
    for first in (True, False):
        places = [place for place, i in enumerate(order(first), 1) if i in positives]
        precision = sum(Fraction(j, place) for j, place in enumerate(places, 1)) / len(places)
        gain = sum(1 / math.log2(1 + place) for place in places)
        values.append((float(precision), gain / sum(1 / math.log2(1 + j) for j in range(1, len(places) + 1))))
    return tuple(sum(v) / 2 for v in zip(*values, strict=True))


def oracle(matrix, video_of, topk):
    texts = len(matrix)
    sides = {"t2v": [sum(best_and_worst(matrix[i], video_of[i])) / 2 for i in range(texts)], "v2t": []}
    captioned = sorted(set(video_of))
    precision, gain = [], []
    for v in captioned:
        numbers = {u: [matrix[i][v] for i in range(texts) if video_of[i] == u and not isnan(matrix[i][v])] for u in captioned}
        best = [max(numbers[u]) if numbers[u] else float("nan") for u in captioned]
        sides["v2t"].append(sum(best_and_worst(best, captioned.index(v))) / 2)
        ap, ndcg = average_precision_and_gain([matrix[i][v] for i in range(texts)], {i for i in range(texts) if video_of[i] == v})
        precision.append(ap)
        gain.append(ndcg)
    found = {}
    for side, ranks in sides.items():
        n, ordered = len(ranks), sorted(ranks)
        found[side] = {f"R@{k}": 100 * sum(r <= k for r in ranks) / n for k in topk}
        found[side] |= {"MdR": (ordered[(n - 1) // 2] + ordered[n // 2]) / 2, "MnR": sum(ranks) / n}
    if len(captioned) < texts:
        found["v2t"] |= {"mAP": 100 * sum(precision) / len(captioned), "nDCG": 100 * sum(gain) / len(captioned)}
    return found, sides


def problem(seed):
    """Ties by few distinct values or by copies, several captions or none, NaN rows, columns and single scores, infinities."""
    g = np.random.default_rng(seed)
    videos = int(g.integers(1, 9))
    captioned = g.permutation(videos)[: int(g.integers(1, videos + 1))]
    video_of = g.permutation(np.concatenate([captioned, g.choice(captioned, int(g.integers(0, 9)) * int(g.integers(0, 2)))]))
    shape = (len(video_of), videos)
    matrix = g.integers(0, 4, shape) / 4 if g.random() < 0.5 else g.normal(size=shape)
    if g.random() < 0.3:
        matrix[int(g.integers(shape[0]))] = np.nan
    if g.random() < 0.2:
        matrix[:, int(g.integers(shape[1]))] = np.nan
    if g.random() < 0.3:
        matrix[g.random(shape) < 0.15] = np.nan
    if g.random() < 0.1:
        matrix[g.random(shape) < 0.2] = -np.inf
    if g.random() < 0.1:
        matrix[g.random(shape) < 0.1] = np.inf
    return matrix, video_of


def same(ours, truth):
    assert ours.keys() == truth.keys()
    for side in truth:
        assert ours[side].keys() == truth[side].keys()
        for name, value in truth[side].items():
            assert ours[side][name] == pytest.approx(value, rel=1e-12, abs=1e-12), (side, name)


@pytest.mark.parametrize("part", range(PARTS))
def test_metrics_of_a_matrix_are_those_of_the_definition(part):
    for seed in range(part, PROBLEMS, PARTS):
        matrix, video_of = problem(seed)
        ranks = rank_matrix(matrix, video_of)
        truth, sides = oracle(matrix.tolist(), video_of.tolist(), (1, 2, 5))
        assert (ranks.t2v.tolist(), ranks.v2t.tolist()) == (sides["t2v"], sides["v2t"]), seed
        same(ranks.metrics((1, 2, 5)), truth)


@pytest.mark.parametrize("header", ["mean", "text-conditioned"])
@pytest.mark.parametrize("seed", range(12))
def test_metrics_of_embeddings_are_those_of_the_definition(demo_backbone, seed, header):
    g = np.random.default_rng(seed)
    m = int(g.integers(2, 9))
    video_of = g.permutation(np.concatenate([g.integers(0, m, int(g.integers(1, 20))), [0]]))
    kinds = g.normal(size=(4, 3, 8))
    frames, text = torch.from_numpy(kinds[g.integers(0, 4, m)]), torch.from_numpy(g.normal(size=(5, 8))[g.integers(0, 5, len(video_of))])
    if seed % 3 == 0:
        text[int(g.integers(len(text)))] = torch.nan
    if seed % 4 == 0:
        frames[int(g.integers(m))] = torch.nan
    mask = torch.ones(m, 3, dtype=torch.bool)
    retriever = Retriever(demo_backbone, None, header, impl="eager")
    ranks = rank_both(retriever, text.float(), frames.float(), mask, torch.from_numpy(video_of))
    matrix = retriever.similarity(text, frames, mask).numpy().round(9)  # what differs by rounding alone is equal
    truth, sides = oracle(matrix.tolist(), video_of.tolist(), (1, 5))
    assert (ranks.t2v.tolist(), ranks.v2t.tolist()) == (sides["t2v"], sides["v2t"])
    same(ranks.metrics((1, 5)), truth)


def test_captions_that_float32_cannot_tell_apart_are_told_apart():
    text = torch.zeros(40, 8)
    text[:, 0], text[:, 1] = 1, 2.0**-12 * torch.arange(40)
    video = torch.zeros(2, 8)
    video[:, 0], video[:, 1] = 1, 2.0**-20  # scores are 1 + i 2^-32
    video_of = torch.arange(40) % 2
    greater, ties, query = caption_counts(InnerProducts(text, video), video_of)
    order = video_of.argsort(stable=True)
    assert greater.tolist() == (39 - order).tolist()
    assert ties.tolist() == [0] * 40
    assert query.tolist() == [0] * 20 + [1] * 20


def test_captions_closer_than_a_float32_products_error_are_in_float64s_order():
    g = torch.Generator().manual_seed(0)
    text = torch.randn(1, 512, generator=g) + 1e-6 * torch.randn(200, 512, generator=g)
    video, video_of = torch.randn(4, 512, generator=g), torch.arange(200) % 4
    greater, ties, _ = caption_counts(InnerProducts(text, video), video_of)
    scores, order = text.double() @ video.double().T, video_of.argsort(stable=True)
    truth = [int((scores[:, video_of[i]] > scores[i, video_of[i]]).sum()) for i in order]
    assert (greater.tolist(), ties.sum()) == (truth, 0)


def test_average_precision_and_gain_by_hand():
    precision, gain = precision_and_gain(np.array([0, 2, 1]), np.zeros(3, int), np.array([0, 0, 1]), 4)
    assert precision == pytest.approx([(1 / 1 + 2 / 3) / 2, 1 / 2])
    assert gain == pytest.approx([(1 + 1 / 2) / (1 + 1 / math.log2(3)), 1 / math.log2(3)])


def test_intervals_draw_the_queries_of_a_video_together():
    g = np.random.default_rng(0)
    video_of = np.repeat(np.arange(40), 10)
    alike = Ranks(np.repeat(g.integers(1, 3, 40), 10).astype(float), np.ones(40), video_of)  # a video's captions succeed or fail together
    low, high = alike.intervals([1], 500)["t2v"]["R@1"]
    alone = Ranks(alike.t2v, np.ones(400)).intervals([1], 500)["t2v"]["R@1"]
    assert high - low > 2 * (alone[1] - alone[0])


def test_intervals_of_every_metric_hold_the_estimate(demo_backbone):
    g = np.random.default_rng(1)
    video_of = np.concatenate([np.arange(30), g.integers(0, 30, 60)])
    ranks = rank_matrix(g.normal(size=(90, 30)) + 2 * (video_of[:, None] == np.arange(30)), video_of)
    found, values = ranks.intervals([1, 5], 400), ranks.metrics([1, 5])
    assert set(found) == {"t2v", "v2t", "R-sum"}
    for side in ("t2v", "v2t"):
        assert set(found[side]) == set(values[side])
        for name, (low, high) in found[side].items():
            assert low <= values[side][name] <= high, (side, name)
    for side, value in ranks.r_sum.items():
        low, high = found["R-sum"][side]
        assert low <= value <= high


@pytest.mark.parametrize("queries", [21, 6])
def test_a_median_of_drawn_queries_is_the_median_of_their_ranks(queries):
    g = np.random.default_rng(2)
    ranks = Ranks(g.integers(1, 50, queries) / 1.0, np.ones(queries))
    draws = np.random.default_rng(0).integers(0, queries, (100, queries))
    truth = np.percentile(np.median(ranks.t2v[draws], axis=1), [2.5, 97.5])
    assert intervals(ranks.sides([1]), 100)["t2v"]["MdR"] == pytest.approx(list(truth))


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 1), (12, 9), (30, 10)])
def test_the_sign_test_of_single_queries_is_mcnemars(better, worse):
    n = better + worse
    exact = min(1.0, 2 * sum(math.comb(n, i) for i in range(min(better, worse) + 1)) / 2**n)
    first = np.array([False] * better + [True] * worse + [True] * 7)
    second = np.array([True] * better + [False] * worse + [True] * 7)
    assert sign_flips(first, second, np.arange(len(first))) == pytest.approx(exact)


def test_the_sign_test_of_videos_is_that_of_all_signs():
    g = np.random.default_rng(3)
    video = np.sort(g.integers(0, 9, 40))
    first, second = g.random(40) < 0.4, g.random(40) < 0.7
    sums = np.bincount(video, weights=second.astype(float) - first, minlength=9)
    signs = 1 - 2 * ((np.arange(2**9)[:, None] >> np.arange(9)) & 1)
    assert sign_flips(first, second, video) == pytest.approx(np.mean(np.abs(signs @ sums) >= abs(sums.sum())))


def test_the_sign_test_finds_a_difference_as_often_as_it_says():
    g = np.random.default_rng(4)
    p = [sign_flips(g.random(60) < 0.5, g.random(60) < 0.5, np.arange(60)) for _ in range(400)]
    assert np.mean(np.array(p) <= 0.05) <= 0.08
    assert sign_flips(g.random(200) < 0.3, g.random(200) < 0.7, np.arange(200)) < 1e-6


def test_comparing_a_model_with_itself_and_with_other_queries():
    ranks = Ranks(np.array([1.0, 2, 1]), np.array([1.0, 1, 2]), np.arange(3))
    found = compare(ranks, ranks, (1, 5), 50)
    assert all(value == 0 for side in found["difference"].values() for value in side.values())
    assert all(ends == [0, 0] for side in found["interval"].values() for ends in side.values())
    assert found["test"]["t2v"] == {"metric": "R@1", "p": 1.0, "better": 0, "worse": 0, "name": "McNemar, exact"}
    with pytest.raises(DataError, match="other queries"):
        compare(ranks, Ranks(ranks.t2v, ranks.v2t, np.array([0, 1, 1])))


def pairs_without_ties(seed=0, videos=30, captions=1):
    g = torch.Generator().manual_seed(seed)
    video = torch.nn.functional.normalize(torch.randn(videos, 16, generator=g, dtype=torch.float64), dim=-1)
    own = torch.arange(videos * captions) % videos
    text = video[own] + 0.4 * torch.randn(videos * captions, 16, generator=g, dtype=torch.float64)
    return torch.nn.functional.normalize(text, dim=-1), video, own


def test_one_positive_gives_open_clips_numbers():
    train = pytest.importorskip("open_clip_train.train", reason="open_clip's own metric is not installed")
    text, video, _ = pairs_without_ties()
    theirs, found = train.get_clip_metrics(video, text, torch.tensor(1.0)), rank_matrix((text @ video.T).numpy()).metrics()
    for side, name in (("t2v", "text_to_image"), ("v2t", "image_to_text")):
        for k in (1, 5, 10):
            assert found[side][f"R@{k}"] == pytest.approx(100 * theirs[f"{name}_R@{k}"])
        assert found[side]["MnR"] == pytest.approx(theirs[f"{name}_mean_rank"])
        assert math.floor(found[side]["MdR"]) == theirs[f"{name}_median_rank"], "open_clip rounds a median between two ranks down"


@pytest.mark.parametrize("captions", [1, 4])
def test_recall_precision_and_gain_are_torchmetrics(captions):
    retrieval = pytest.importorskip("torchmetrics.retrieval", reason="torchmetrics (the bench extra) is not installed")
    text, video, own = pairs_without_ties(captions=captions)
    ranks = rank_matrix((text @ video.T).numpy(), own.numpy())

    def theirs(kind, scores, positive):
        return 100 * float(kind(scores.flatten(), positive.flatten(), indexes=torch.arange(len(scores)).repeat_interleave(scores.shape[1])))

    positive = own[:, None] == torch.arange(len(video))
    for k in (1, 5):
        assert ranks.metrics((k,))["t2v"][f"R@{k}"] == pytest.approx(theirs(retrieval.RetrievalRecall(top_k=k), text @ video.T, positive))
    if captions > 1:
        for name, kind in (("mAP", retrieval.RetrievalMAP()), ("nDCG", retrieval.RetrievalNormalizedDCG())):
            assert ranks.metrics()["v2t"][name] == pytest.approx(theirs(kind, video @ text.T, positive.T), rel=1e-5)
