"""The loss's registered op: its CPU kernel, its gradients, its shapes, and that both forms agree."""

import pytest
import torch
import torch.nn.functional as F
from test_contrast import unit
from torch.autograd import gradcheck
from torch.library import opcheck

from xmafast.kernels import info_nce
from xmafast.kernels.contrast import chunked, op

CASES = [(6, 6, 0, False), (6, 6, 0, True), (4, 9, 3, False), (4, 9, 3, True), (1, 1, 0, True), (0, 3, 1, True)]  # N, M, offset, groups


def groups(n, m, offset):
    ids = torch.randint(m // 2 + 1, (m,), generator=torch.Generator().manual_seed(m))
    return ids[offset : offset + n], ids


def both_agree(inputs, learnt, **options):
    results = []
    for impl in ("eager", "triton"):
        loss = info_nce(*inputs, impl=impl, **options)
        results.append((loss, torch.autograd.grad(loss, learnt)))
    torch.testing.assert_close(results[0], results[1])


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunked, "TILE", 20)


@pytest.mark.parametrize(("n", "m", "offset", "grouped"), CASES)
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.usefixtures("small_chunks")
def test_both_forms_agree_in_value_and_gradient(n, m, offset, grouped, frozen):
    q, c = unit(n).requires_grad_(), unit(m, seed=1).requires_grad_()
    scale = 20.0 if frozen else torch.tensor(20.0, requires_grad=True)
    learnt = (q, c) if frozen else (q, c, scale)
    both_agree((q, c, scale), learnt, offset=offset, group_ids=groups(n, m, offset) if grouped else None)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_learnt_scale_keeps_its_shape_and_dtype(shape):
    q, c = unit(5, d=384).float().requires_grad_(), unit(5, d=384, seed=1).float().requires_grad_()
    scale = torch.full(shape, 100.0, dtype=torch.bfloat16, requires_grad=True)
    (grad,) = torch.autograd.grad(info_nce(q, c, scale, impl="triton"), scale)
    assert grad.shape == shape
    assert grad.dtype == torch.bfloat16


def test_columns_of_other_tensors():
    wide = unit(7, d=20).requires_grad_()
    both_agree((wide[:, 3:11], wide.T[:8].T, 20.0), wide)


def test_all_logits_near_minus_a_hundred():
    one = unit(1, d=64)
    q, c = (F.normalize(sign * one + 1e-2 * unit(70, d=64, seed=seed), dim=-1) for sign, seed in ((1, 2), (-1, 3)))
    expected = info_nce(q, c, 100.0, impl="eager")
    result = info_nce(q.float(), c.float(), 100.0, impl="triton")
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("impl", ["eager", "triton"])
def test_the_loss_is_float32_and_gradients_have_their_inputs_dtypes(dtype, impl):
    q, c = unit(5).to(dtype).requires_grad_(), unit(5, seed=1).to(dtype).requires_grad_()
    loss = info_nce(q, c, 10.0, impl=impl)
    assert loss.dtype == torch.float32
    assert [grad.dtype for grad in torch.autograd.grad(loss, (q, c))] == [dtype, dtype]
    assert abs(loss - info_nce(q.double(), c.double(), 10.0)) < (0.1 if impl == "eager" else 1e-5)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.usefixtures("small_chunks")
def test_the_ops_gradients_in_float64(grouped):
    q, c = unit(4).requires_grad_(), unit(9, seed=1).requires_grad_()
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    ids = groups(4, 9, 3) if grouped else None
    assert gradcheck(lambda *t: op.log_sum_exps(*t, group_ids=ids, offset=3, impl="triton"), (q, c, scale))


def test_shards_of_the_queries_merge_to_the_whole():
    q, c = unit(6).requires_grad_(), unit(6, seed=1).requires_grad_()
    scale = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    ids = groups(6, 6, 0)
    parts = [
        op.log_sum_exps(q[at : at + 2], c, scale, group_ids=(ids[0][at : at + 2], ids[1]), offset=at, impl="triton") for at in (0, 2, 4)
    ]
    rows, columns, positives = zip(*parts, strict=True)
    loss = (torch.cat(rows).mean() + torch.stack(columns).logsumexp(0).mean()) / 2 - torch.cat(positives).mean()
    whole = info_nce(q, c, scale, group_ids=ids)
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(torch.autograd.grad(loss, (q, c, scale)), torch.autograd.grad(whole, (q, c, scale)))


@pytest.mark.parametrize("impl", ["eager", "triton"])
def test_a_column_that_no_query_sees(impl):
    q, c = unit(2), unit(5, seed=1)
    same = torch.zeros(2, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)
    rows, columns, positives = op.log_sum_exps(q, c, 20.0, group_ids=same, offset=1, impl=impl)
    assert columns.isneginf().tolist() == [True, False, False, True, True]
    torch.testing.assert_close(rows, positives)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_ops_pass_opcheck(grouped):
    q, c = unit(4).float().requires_grad_(), unit(6, seed=1).float().requires_grad_()
    scale, ids = torch.tensor(20.0, requires_grad=True), groups(4, 6, 1) if grouped else (None, None)
    opcheck(op._forward, (q, c, scale, *ids, 1))
    q, c, scale = q.detach(), c.detach(), scale.detach()
    rows, columns, positives = op._forward(q, c, scale, *ids, 1)
    opcheck(op._backward, (torch.ones_like(rows), torch.ones_like(columns), -positives, q, c, scale, rows, columns, *ids, 1))


@pytest.mark.parametrize("impl", ["eager", "triton"])
def test_compiles_in_one_graph(impl):
    q, c = unit(4).float().requires_grad_(), unit(6, seed=1).float().requires_grad_()
    scale, ids = torch.tensor(20.0, requires_grad=True), groups(4, 6, 1)

    def run(*t):
        return info_nce(*t, group_ids=ids, offset=1, impl=impl)

    loss, expected = torch.compile(run, fullgraph=True, backend="aot_eager")(q, c, scale), info_nce(q, c, scale, group_ids=ids, offset=1)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, (q, c, scale)), torch.autograd.grad(expected, (q, c, scale)))
