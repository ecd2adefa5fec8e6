"""The loss's Triton kernels under the interpreter, on the CPU: run by test_interpreted.py with TRITON_INTERPRET=1."""

import pytest
import torch
import torch.nn.functional as F

from xmafast.kernels.contrast import chunked, triton

RAGGED = [(1, 1, 16, 0), (33, 40, 24, 0), (70, 70, 384, 0), (5, 300, 200, 290), (130, 140, 40, 10)]  # N, M, D, offset


def problem(n, m, d, offset, dtype, grouped=False):
    g = torch.Generator().manual_seed(n + m)
    c = torch.randn(m, d, generator=g)
    q = c[offset : offset + n] + torch.randn(n, d, generator=g)
    ids = torch.randint(1 << 40, (1 + m // 3,), generator=g)[torch.randint(1 + m // 3, (m,), generator=g)] if grouped else None
    groups = (None, None) if ids is None else (ids[offset : offset + n].clone(), ids)
    return F.normalize(q, dim=-1).to(dtype), F.normalize(c, dim=-1).to(dtype), torch.tensor(30.0), *groups, offset


def double(*inputs):
    return [v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in inputs]


def check(inputs):
    """Forward and backward against float64; the gradient at a cosine is rounded to the inputs' dtype, and so is a product's sum."""
    n, m, dtype = inputs[0].shape[0], inputs[1].shape[0], inputs[0].dtype
    results, expected = triton.forward(*inputs), chunked.forward(*double(*inputs))
    for result, truth in zip(results, expected, strict=True):
        torch.testing.assert_close(result.double(), truth, rtol=1e-6, atol=1e-5)
    g = torch.Generator().manual_seed(0)
    grads = [torch.randn(size, generator=g) / size for size in (n, m, n)]
    gradients = triton.backward(*grads, *inputs[:3], *results[:2], *inputs[3:])
    expected = chunked.backward(*double(*grads, *inputs[:3]), *expected[:2], *inputs[3:])
    for result, truth, own in zip(gradients, expected, (dtype, dtype, torch.float32), strict=True):
        assert result.dtype == own
        relative = 1e-5 if own == torch.float32 else 2e-3
        torch.testing.assert_close(result.double(), truth, rtol=relative, atol=relative * (truth.abs().max().item() + 1e-3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", RAGGED)
@pytest.mark.parametrize("grouped", [False, True])
def test_forward_and_backward_equal_the_reference(shape, dtype, grouped):
    check(problem(*shape, dtype, grouped))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_several_chunks_of_rows_and_several_tiles_a_program(dtype, monkeypatch):
    monkeypatch.setattr(triton, "CHUNK_BYTES", 1)
    monkeypatch.setattr(triton, "PROGRAMS", 1)
    check(problem(150, 290, 32, 100, dtype, grouped=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_padding_does_not_win_over_logits_near_minus_a_hundred(dtype):
    g = torch.Generator().manual_seed(0)
    one = F.normalize(torch.randn(1, 64, generator=g), dim=-1)
    q, c = one + 1e-2 * torch.randn(70, 64, generator=g), -one + 1e-2 * torch.randn(70, 64, generator=g)
    check((F.normalize(q, dim=-1).to(dtype), F.normalize(c, dim=-1).to(dtype), torch.tensor(100.0), None, None, 0))


def test_columns_that_no_query_sees():
    q, c, scale, _, _, _ = problem(3, 9, 16, 4, torch.float32)
    groups = torch.zeros(3, dtype=torch.int64), torch.zeros(9, dtype=torch.int64)
    check((q, c, scale, *groups, 4))
    assert triton.forward(q, c, scale, *groups, 4)[1].isneginf().sum() == 6


@pytest.mark.parametrize("factor", [0.0, -20.0])
def test_a_scale_of_zero_or_less(factor):
    q, c, _, *rest = problem(33, 40, 24, 0, torch.float32)
    check((q, c, torch.tensor(factor), *rest))


def test_rows_of_a_wider_tensor_and_of_a_transposed_one():
    q, c, *rest = problem(20, 30, 40, 5, torch.float32)
    wide = torch.full((20, 50), float("nan"))
    wide[:, 7:47] = q
    check((wide[:, 7:47], c.T.contiguous().T, *rest))


def test_no_queries():
    q, c, scale = torch.zeros(0, 8), torch.zeros(3, 8), torch.tensor(1.0)
    rows, columns, positives = triton.forward(q, c, scale, None, None, 0)
    assert rows.shape == positives.shape == (0,)
    assert columns.isneginf().all()
    dq, dc, d_scale = triton.backward(rows, torch.zeros(3), positives, q, c, scale, rows, columns, None, None, 0)
    assert dq.shape == (0, 8)
    assert not dc.any()
    assert d_scale == 0


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Outputs start as NaN, so that an element that no program writes is seen."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
