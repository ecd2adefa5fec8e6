"""The ranking kernels under the interpreter, on the CPU: run by test_interpreted.py with TRITON_INTERPRET=1."""

import pytest
import torch

from xmafast.kernels.ranking import op, reference, triton
from xmafast.kernels.ranking.scores import InnerProducts
from xmafast.kernels.ranking.sweep import Positives, sweep

RAGGED = [(1, 1, 8), (33, 17, 48), (100, 70, 96), (150, 257, 200), (130, 129, 384)]  # N, M, D
CASES = ["plain", "groups", "sets", "sets and groups"]


def problem(n, m, d, dtype, case):
    g = torch.Generator().manual_seed(n + m)
    queries, candidates = (torch.randn(size, d, generator=g).to(dtype) for size in (n, m))
    positives = torch.randint(0, m, (n,), generator=g).sort().values if "sets" in case else torch.arange(n) % m
    groups = tuple(torch.randint(0, 6, (size,), generator=g) for size in (n, m)) if "groups" in case else None
    return queries, candidates, positives, groups


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", RAGGED)
@pytest.mark.parametrize("case", CASES)
def test_counts_and_lists_equal_the_naive_twin(shape, dtype, case):
    queries, candidates, positives, groups = problem(*shape, dtype, case)
    n, m, d = shape
    sets = positives.unique(return_inverse=True)[1] if "sets" in case else torch.arange(n)
    g = torch.Generator().manual_seed(1)
    low_n, low_m = (torch.randn(size, generator=g) * d**0.5 for size in (n, m))
    bands = (low_n, low_n + 0.3 * d**0.5, low_m, low_m + 0.3 * d**0.5)
    fits, order = op.tile_order(sets)
    assert fits
    place = op.indices(Positives(positives, torch.zeros(n), None, groups, sets))
    made = triton.count_above(queries, candidates, order, *place[:2], None if groups is None else place[2:], bands, n * m)
    expected = reference.count_above(queries.float() @ candidates.float().T, *place, *bands, n * m)
    for counts, twin in zip((made[0], made[1], made[3]), (expected[0], expected[1], expected[3]), strict=True):
        assert torch.equal(counts, twin)
    found = int(made[3])
    assert torch.equal(made[2][:found].sort().values, expected[2][:found])
    assert n < 10 or set((made[2][:found] % 4).tolist()) == {1, 2, 3}  # either direction alone, and both, were tried


def test_one_direction_alone():
    queries, candidates, positives, _ = problem(70, 90, 64, torch.float32, "plain")
    low = torch.zeros(70)
    made = triton.count_above(queries, candidates, None, positives, None, None, (low, low + 1), 5)
    expected = reference.count_above(queries @ candidates.T, positives, None, None, None, low, low + 1, None, None, 5)
    assert torch.equal(made[0], expected[0])
    assert made[3] > 5  # past its capacity the list only counts, so that its caller knows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", RAGGED)
def test_unit_maxima_equal_the_naive_twin(shape, dtype):
    queries, candidates, _, _ = problem(*shape, dtype, "plain")
    queries[0, 0] = float("nan")
    expected = reference.unit_maxima(queries.float() @ candidates.float().T)
    torch.testing.assert_close(triton.unit_maxima(queries, candidates), expected, rtol=1e-5, atol=1e-4)


def test_rows_that_are_a_slice_of_a_wider_tensor():
    queries, candidates, _, _ = problem(40, 50, 32, torch.float32, "plain")
    wide = torch.full((40, 50), float("nan"))
    wide[:, 7:39] = queries
    torch.testing.assert_close(triton.unit_maxima(wide[:, 7:39], candidates), triton.unit_maxima(queries, candidates))


def test_no_queries_and_no_candidates():
    assert triton.unit_maxima(torch.zeros(0, 8), torch.zeros(3, 8)).shape == (0, 1)
    assert triton.unit_maxima(torch.zeros(3, 8), torch.zeros(0, 8)).shape == (3, 0)


def test_infinite_and_nan_scores_are_close_or_counted_as_eager_counts_them(monkeypatch):
    queries, candidates, positives, _ = problem(40, 50, 16, torch.float32, "plain")
    candidates[3, 0], candidates[4, 1], queries[5, 2] = torch.inf, torch.nan, -torch.inf
    monkeypatch.setattr(
        op, "_count_above", lambda q, c, o, p, s, _, __, *bands: triton.count_above(q, c, o, p, s, None, bands[:4], bands[4])
    )
    scores = InnerProducts(queries, candidates)
    place = Positives(positives, op.own_scores(scores, positives), None, None, positives.unique(return_inverse=True)[1])
    for fused, eager in zip(sweep(scores, place, op._count), sweep(scores, place), strict=True):
        assert torch.equal(fused[0], eager[0])
        assert torch.equal(fused[1], eager[1])


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Outputs start as NaN, so that an element that no program writes is seen."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(-7 if k.get("dtype") == torch.int64 else float("nan")))
