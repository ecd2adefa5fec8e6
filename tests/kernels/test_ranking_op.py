"""Ranks and top-k of embeddings, exact whatever the precision of a tile: both forms against float64."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from xmafast.kernels import ranks, ranks_both, ranks_of_scores, score_positives, topk
from xmafast.kernels.ranking import op, select, sweep, topk_of_scores

IMPLS = ["eager", "triton"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def problem(seed, dtype=torch.float32, most=60):
    g = torch.Generator().manual_seed(seed)
    n, m, d = (int(torch.randint(1, most, (), generator=g)) for _ in range(3))
    queries, candidates = (torch.randn(size, d, generator=g).to(dtype) for size in (n, m))
    return queries, candidates, torch.randint(0, m, (n,), generator=g)


def truth(queries, candidates, positives, groups=None):
    """(greater, ties) from the whole float64 matrix, and the matrix."""
    scores = queries.double() @ candidates.double().T
    own = scores.gather(1, positives[:, None])
    counts = positives[:, None] != torch.arange(len(candidates))
    if groups is not None:
        counts &= groups[0][:, None] != groups[1]
    return ((scores > own) & counts).sum(1), ((scores == own) & counts).sum(1), scores


def same(found, expected):
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ranks_equal_float64(dtype, impl):
    for seed in range(30):
        queries, candidates, positives = problem(seed, dtype)
        same(ranks(queries, candidates, positives, impl=impl), truth(queries, candidates, positives))


@pytest.mark.parametrize("impl", IMPLS)
def test_ranks_of_bfloat16_near_ties_equal_float64_on_a_thousand_problems(impl):
    g = torch.Generator().manual_seed(0)
    ties = 0
    for _ in range(1000):
        n, m = (int(torch.randint(1, 20, (), generator=g)) for _ in range(2))
        base = torch.randn(1, 64, generator=g)  # all candidates are almost one: they differ by a few units in the last place
        queries = torch.randn(n, 64, generator=g).bfloat16()
        candidates = (base + 0.01 * torch.randn(m, 64, generator=g)).bfloat16()
        candidates[torch.randint(0, m, (), generator=g)] = candidates[0]
        positives = torch.randint(0, m, (n,), generator=g)
        expected = truth(queries, candidates, positives)
        same(ranks(queries, candidates, positives, impl=impl), expected)
        ties += int(expected[1].sum())
    assert ties > 100


@pytest.mark.parametrize("impl", IMPLS)
def test_a_positive_never_beats_or_ties_with_itself(impl):
    """Its score in a tile may differ by an ulp from its score alone."""
    g = torch.Generator().manual_seed(1)
    queries = F.normalize(torch.randn(300, 384, generator=g), dim=-1)
    same(ranks(queries, queries, torch.arange(300), impl=impl), (torch.zeros(300).long(), torch.zeros(300).long()))


@pytest.mark.parametrize("impl", IMPLS)
def test_duplicates_of_the_positive_tie_and_do_not_beat_it(impl):
    g = torch.Generator().manual_seed(2)
    candidates = torch.randn(1, 50, generator=g).repeat(7, 1)
    same(ranks(torch.randn(5, 50, generator=g), candidates, torch.full((5,), 3), impl=impl), (torch.zeros(5).long(), torch.full((5,), 6)))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("both", [False, True])
def test_candidates_of_the_querys_group_are_left_out(impl, both):
    for seed in range(20):
        queries, candidates, positives = problem(seed)
        g = torch.Generator().manual_seed(seed)
        groups = tuple(torch.randint(0, 4, (len(t),), generator=g) for t in (queries, candidates))
        call = ranks_both if both else ranks
        found = call(queries, candidates, positives, group_ids=groups, impl=impl)
        same(found[0] if both else found, truth(queries, candidates, positives, groups))
        if both:
            scores = truth(queries, candidates, positives)[2]
            for video, (above, ties) in enumerate(zip(*found[1], strict=True)):
                own = scores[positives == video, video]
                sets = [(positives == v) & (groups[0] != groups[1][video]) for v in positives.unique() if v != video]
                best = torch.stack([scores[s, video].max() for s in sets if s.any()] or [torch.tensor(-torch.inf)])
                assert not len(own) or (above, ties) == ((best > own.max()).sum(), (best == own.max()).sum())


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_directions_from_one_sweep(dtype, impl):
    """Video to text, the texts of a video are one candidate with the best of their scores."""
    for seed in range(20):
        text, video, positives = problem(seed, dtype)
        t2v, v2t = ranks_both(text, video, positives, impl=impl)
        *expected, scores = truth(text, video, positives)
        same(t2v, expected)
        described = positives.unique()
        best = torch.stack([scores[positives == v].amax(0) for v in described])
        expected = ranks_of_scores(best.T[described], torch.arange(len(described)))
        same((v2t[0][described], v2t[1][described]), expected)
        rest = torch.ones(len(video), dtype=torch.bool).index_fill(0, described, False)
        assert (v2t[0][rest] == len(described)).all()  # a video without a text is last


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("grouped", [False, True])
def test_the_only_candidate_that_is_close_is_not_taken_for_the_positive(impl, grouped):
    """The same text twice, of two videos: a tie in the other direction, also where groups take the positives out of the tile."""
    text = torch.randn(1, 9, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    groups = (torch.arange(2), torch.arange(2)) if grouped else None
    _, v2t = ranks_both(text, torch.eye(9)[:2], group_ids=groups, impl=impl)
    same(v2t, (torch.zeros(2).long(), torch.ones(2).long()))
    video = torch.eye(9)[[3, 3]]
    same(ranks(text, video, torch.arange(2), group_ids=groups, impl=impl), (torch.zeros(2).long(), torch.ones(2).long()))


def test_the_diagonal_is_the_default_and_needs_a_square():
    text, video, _ = problem(3)
    n = min(len(text), len(video))
    pair = ranks_both(text[:n], video[:n])
    same(pair[0], ranks(text[:n], video[:n], torch.arange(n)))
    same(pair[1], ranks(video[:n], text[:n], torch.arange(n)))
    with pytest.raises(ValueError, match="not paired by their order"):
        ranks_both(text[:n], video[: n - 1])


@pytest.mark.parametrize("impl", IMPLS)
def test_shards_of_candidates_sum_to_the_whole(impl):
    queries, candidates, positives = problem(5)
    cuts = [0, len(candidates) // 3, len(candidates) // 2, len(candidates)]
    shards = [(start, candidates[start:stop]) for start, stop in pairwise(cuts)]
    own = sum(score_positives(queries, shard, positives, offset=start) for start, shard in shards)
    parts = [ranks(queries, shard, positives, offset=start, positive_scores=own, impl=impl) for start, shard in shards]
    same((sum(p[0] for p in parts), sum(p[1] for p in parts)), truth(queries, candidates, positives))
    pairs = [ranks_both(queries, shard, positives, offset=start, positive_scores=own, impl=impl) for start, shard in shards]
    t2v, v2t = ranks_both(queries, candidates, positives, impl=impl)
    same((sum(p[0][0] for p in pairs), sum(p[0][1] for p in pairs)), t2v)
    same((torch.cat([p[1][0] for p in pairs]), torch.cat([p[1][1] for p in pairs])), v2t)


@pytest.mark.parametrize("impl", IMPLS)
def test_nan_is_above_nothing_and_a_nan_positive_is_last(impl):
    queries, candidates = torch.eye(3), torch.tensor([[3.0, 3, 3], [1, 1, 1], [2, torch.nan, 2]])
    same(ranks(queries, candidates, torch.tensor([1, 1, 1]), impl=impl), (torch.tensor([1, 1, 1]), torch.zeros(3).long()))
    same(ranks(queries, candidates, torch.tensor([2, 2, 2]), impl=impl), (torch.full((3,), 2), torch.zeros(3).long()))
    _, v2t = ranks_both(queries, candidates, torch.tensor([0, 1, 2]), impl=impl)
    assert v2t[0].tolist() == [0, 0, 2]


@pytest.mark.parametrize("impl", IMPLS)
def test_infinite_scores_rank_as_numbers(impl):
    candidates = torch.tensor([[torch.inf], [-torch.inf], [torch.inf], [1.0]])
    greater, ties = ranks(torch.ones(4, 1), candidates, torch.arange(4), impl=impl)
    assert greater.tolist() == [0, 3, 0, 2]
    assert ties.tolist() == [1, 0, 1, 0]


def test_products_that_leave_the_range_of_float32_are_still_ranked():
    queries, candidates = torch.full((2, 2), 1e30), torch.tensor([[1e30, -1e30], [1e30, 1e30], [-1e30, -1e30], [2e30, 1e30]])
    same(ranks(queries, candidates, torch.tensor([0, 1])), (torch.tensor([2, 1]), torch.zeros(2).long()))
    assert topk(queries, candidates, 4)[1].tolist() == [[3, 1, 0, 2]] * 2


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 7, 1024])
def test_topk_equals_a_sort_of_the_float64_matrix(k, dtype, impl):
    for seed in range(20):
        queries, candidates, positives = problem(seed, dtype, most=100)
        expected = topk_of_scores(truth(queries, candidates, positives)[2], k)
        scores, index = topk(queries, candidates, k, impl=impl)
        assert torch.equal(index, expected[1])
        torch.testing.assert_close(scores.double(), expected[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("impl", IMPLS)
def test_ties_go_to_the_lower_index_and_nan_comes_last(impl):
    g = torch.Generator().manual_seed(0)
    candidates = torch.randn(5, 40, generator=g)[torch.randint(0, 5, (500,), generator=g)]  # five vectors, many times
    queries = torch.randn(9, 40, generator=g)
    candidates[77] = torch.nan
    expected = topk_of_scores(torch.stack([(queries[i].double() * candidates.double()).sum(1) for i in range(9)]), 300)
    assert torch.equal(topk(queries, candidates, 300, impl=impl)[1], expected[1])
    assert (topk(queries, candidates, 500, impl=impl)[1][:, -1] == 77).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_fewer_candidates_than_k(impl):
    scores, index = topk(torch.ones(2, 3), torch.ones(4, 3), 10, impl=impl)
    assert index.tolist() == [[0, 1, 2, 3]] * 2
    assert scores.tolist() == [[3.0] * 4] * 2


@pytest.mark.parametrize("impl", IMPLS)
def test_nothing_to_rank(impl):
    none = torch.zeros(0, dtype=torch.int64)
    assert ranks(torch.zeros(0, 8), torch.zeros(3, 8), none, impl=impl)[0].shape == (0,)
    t2v, v2t = ranks_both(torch.zeros(0, 8), torch.zeros(3, 8), none, impl=impl)
    assert t2v[0].shape == (0,)
    assert v2t[0].tolist() == [0, 0, 0]
    assert topk(torch.zeros(0, 8), torch.zeros(3, 8), 2, impl=impl)[0].shape == (0, 2)
    assert topk(torch.zeros(2, 8), torch.zeros(0, 8), 2, impl=impl)[0].shape == (2, 0)


def test_small_tiles_and_chunks_change_nothing(monkeypatch):
    queries, candidates, positives = problem(8, most=90)
    whole = ranks_both(queries, candidates, positives), topk(queries, candidates, 5)
    monkeypatch.setattr(sweep, "TILE", {"cpu": 40})
    monkeypatch.setattr(sweep, "ROWS", 3)
    monkeypatch.setattr(select, "CHUNK", {"cpu": 100})
    for a, b in zip(ranks_both(queries, candidates, positives), whole[0], strict=True):
        same(a, b)
    assert torch.equal(topk(queries, candidates, 5)[1], whole[1][1])


def test_rows_of_a_wider_tensor_and_mixed_dtypes():
    queries, candidates, positives = problem(4)
    wide = torch.full((len(queries), queries.shape[1] + 9), torch.nan)
    wide[:, 4:-5] = queries
    for impl in IMPLS:
        same(ranks(wide[:, 4:-5], candidates.bfloat16(), positives, impl=impl), truth(queries, candidates.bfloat16(), positives))
        same(ranks(queries.T.contiguous().T, candidates, positives, impl=impl), truth(queries, candidates, positives))


def test_a_list_that_runs_over_falls_back_to_the_sweep(monkeypatch):
    monkeypatch.setattr(op, "NEAR", 0)
    candidates = torch.ones(60, 4)  # all 60 x 60 pairs tie, and there is room for 960
    t2v, v2t = ranks_both(candidates, candidates, impl="triton")
    assert (t2v[1] == 59).all()
    assert (v2t[1] == 59).all()


def test_a_set_that_no_tile_holds_falls_back_to_the_sweep():
    text, video = torch.randn(400, 8, generator=torch.Generator().manual_seed(0)), torch.eye(8)[:2]
    positives = torch.tensor([0] * 300 + [1] * 100)
    for fused, eager in zip(ranks_both(text, video, positives, impl="triton"), ranks_both(text, video, positives), strict=True):
        same(fused, eager)


def test_tiles_cut_no_set_in_two():
    counts = torch.tensor([3, 100, 30, 1, 128, 127, 2, 50])
    sets = torch.arange(len(counts)).repeat_interleave(counts)
    fits, order = op.tile_order(sets)
    assert fits
    assert torch.equal(order[order >= 0].long(), torch.arange(len(sets)))
    tile_of = torch.full((len(sets),), -1)
    tile_of[order[order >= 0].long()] = (order >= 0).nonzero().squeeze(1) // 128
    assert all(len(tile_of[sets == s].unique()) == 1 for s in range(len(counts)))


def test_what_does_not_fit_is_refused():
    text, video = torch.zeros(3, 4), torch.zeros(5, 4)
    with pytest.raises(ValueError, match="lies outside the candidates 0 to 4"):
        ranks(text, video, torch.tensor([0, 1, 5]))
    with pytest.raises(ValueError, match="3 queries need 3 positives"):
        ranks(text, video, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"group_ids must be \(3,\) and \(5,\)"):
        ranks(text, video, torch.tensor([0, 1, 2]), group_ids=(torch.zeros(3), torch.zeros(3)))
    with pytest.raises(ValueError, match=r"queries \(N, D\) and candidates \(M, D\)"):
        ranks(text, torch.zeros(5, 6), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        topk(text, video, 0)


def test_the_ops_pass_opcheck():
    queries, candidates, positives = problem(2)
    place = op.indices(sweep.Positives(positives, positives.double(), None, None, torch.arange(len(queries))))
    n, m = torch.zeros(len(queries)), torch.zeros(len(candidates))
    opcheck(op._count_above, (queries, candidates, None, *place, n, n + 1, m, m + 1, 20))
    opcheck(op._count_above, (queries, candidates, None, place[0], None, None, None, n, n + 1, None, None, 20))
    opcheck(op._unit_maxima, (queries, candidates))
