"""The ranking kernels on a GPU: exactly the ranks and the order of float64."""

import pytest
import torch
import torch.nn.functional as F
from oracle import DTYPES, gpu
from test_ranking_op import same, truth

from xmafast.kernels import ranks, ranks_both, topk
from xmafast.kernels.ranking import reference, topk_of_scores, triton

pytestmark = gpu


def problem(n, m, d, dtype):
    g = torch.Generator("cuda").manual_seed(n)
    queries, candidates = (F.normalize(torch.randn(size, d, generator=g, device="cuda"), dim=-1).to(dtype) for size in (n, m))
    return queries, candidates, torch.randint(0, m, (n,), generator=g, device="cuda")


SHAPES = [(1, 1, 512), (333, 1000, 512), (4099, 777, 384), (1000, 3001, 200), (70, 5000, 1024)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("grouped", [False, True])
def test_ranks_of_both_directions_equal_float64(shape, dtype, grouped):
    queries, candidates, positives = problem(*shape, dtype)
    groups = tuple(torch.randint(0, 9, (size,), device="cuda") for size in shape[:2]) if grouped else None
    *expected, _ = truth(queries.cpu(), candidates.cpu(), positives.cpu(), groups and tuple(g.cpu() for g in groups))
    for found in (
        ranks(queries, candidates, positives, group_ids=groups, impl="triton"),
        ranks_both(queries, candidates, positives, group_ids=groups, impl="triton")[0],
    ):
        same([t.cpu() for t in found], expected)
    eager = ranks_both(queries.cpu(), candidates.cpu(), positives.cpu(), group_ids=groups and tuple(g.cpu() for g in groups))[1]
    fused = ranks_both(queries, candidates, positives, group_ids=groups, impl="triton")[1]
    same([t.cpu() for t in fused], eager)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 10, 1024])
@pytest.mark.parametrize("shape", SHAPES)
def test_topk_equals_a_sort_of_the_float64_matrix(shape, k, dtype):
    queries, candidates, positives = problem(*shape, dtype)
    candidates[-1] = candidates[0]
    expected = topk_of_scores(truth(queries.cpu(), candidates.cpu(), positives.cpu())[2], k)
    scores, index = topk(queries, candidates, k, impl="triton")
    assert torch.equal(index.cpu(), expected[1])
    torch.testing.assert_close(scores.double().cpu(), expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unit_maxima_of_a_wider_tensor_and_twice_the_same(dtype):
    queries, candidates, _ = problem(515, 999, 512, dtype)
    wide = torch.full((515, 1000), torch.nan, device="cuda", dtype=dtype)
    wide[:, 100:612] = queries
    made = triton.unit_maxima(wide[:, 100:612], candidates)
    assert torch.equal(made, triton.unit_maxima(queries, candidates))
    torch.testing.assert_close(made.double(), reference.unit_maxima(queries.double() @ candidates.double().T), rtol=1e-4, atol=1e-5)


def test_a_million_queries_need_no_matrix():
    queries, candidates, positives = problem(1_000_000, 10_000, 64, torch.bfloat16)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ranks(queries, candidates, positives, impl="triton")
    assert torch.cuda.max_memory_allocated() - before < 2**30  # the matrix would take 40 GB


def test_nothing_to_rank():
    none = torch.zeros(0, 64, device="cuda", dtype=torch.bfloat16)
    some = torch.zeros(3, 64, device="cuda", dtype=torch.bfloat16)
    assert ranks(none, some, torch.zeros(0, dtype=torch.int64, device="cuda"), impl="triton")[0].shape == (0,)
    assert topk(some, none, 3, impl="triton")[0].shape == (3, 0)
