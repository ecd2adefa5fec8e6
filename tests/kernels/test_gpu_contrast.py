"""The loss's kernels on a GPU: no further from float64 than twice eager's own error in the same dtype."""

import pytest
import torch
import torch.nn.functional as F
from oracle import DTYPES, close_as_eager, gpu

from xmafast.kernels import info_nce
from xmafast.kernels.contrast import op

pytestmark = gpu

SHAPES = [(70, 70, 384, 0), (300, 1100, 200, 500), (1000, 1000, 768, 0), (2049, 3001, 512, 17)]  # N, M, D, offset


def problem(n, m, d, offset, dtype, grouped=False):
    """Positives that hardly stand out: where a softmax is saturated, eager's gradient of zero is exact by luck."""
    g = torch.Generator("cuda").manual_seed(n + m)
    c = torch.randn(m, d, generator=g, device="cuda")
    q = c[offset : offset + n] + 8 * torch.randn(n, d, generator=g, device="cuda")
    tensors = [F.normalize(t, dim=-1).to(dtype).requires_grad_() for t in (q, c)]
    ids = torch.randint(1 + m // 3, (m,), generator=g, device="cuda") if grouped else None
    options = {"offset": offset, "group_ids": None if ids is None else (ids[offset : offset + n], ids)}
    return [*tensors, torch.tensor(100.0, device="cuda", requires_grad=True)], options


def doubles(tensors):
    return [t.detach().double().requires_grad_() for t in tensors]


def close(fused, eager, truth):
    """float32 products are three of TF32, which tensor cores truncate as they add: a few 1e-6 of a cosine, times the scale of 100.

    Plain TF32 would be off by 0.05.
    """
    if fused.dtype == eager.dtype == torch.float32:
        torch.testing.assert_close(fused.double(), truth, rtol=0, atol=1e-3 * min(1, truth.abs().max().item() + 1e-6))
    else:
        close_as_eager(fused, eager, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("grouped", [False, True])
def test_log_sum_exps_and_gradients(shape, dtype, grouped):
    tensors, options = problem(*shape, dtype, grouped)
    results = []
    for impl, inputs in (("triton", tensors), ("eager", tensors), ("eager", doubles(tensors))):
        parts = op.log_sum_exps(*inputs, impl=impl, **options)
        loss = info_nce(*inputs, impl=impl, **options)
        results.append(([*parts, *torch.autograd.grad(loss, inputs[:2], retain_graph=True)], loss, torch.autograd.grad(loss, inputs[2])[0]))
    for fused, eager, truth in zip(*(result[0] for result in results), strict=True):
        close(fused, eager, truth)
    for fused, truth in zip(results[0][1:], results[2][1:], strict=True):  # one number each, at which eager may be exact by luck
        torch.testing.assert_close(fused.double(), truth.double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_element_is_written_also_in_several_chunks(dtype, monkeypatch):
    from xmafast.kernels.contrast import triton

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    (q, c, scale), options = problem(515, 700, 200, 100, dtype, grouped=True)
    q, c, scale, groups = q.detach(), c.detach(), scale.detach(), options["group_ids"]
    rows, columns, positives = triton.forward(q, c, scale, *groups, 100)
    grads = torch.ones_like(rows), torch.ones_like(columns), -2 * torch.ones_like(positives)
    whole = triton.backward(*grads, q, c, scale, rows, columns, *groups, 100)
    monkeypatch.setattr(triton, "CHUNK_BYTES", 1)
    chunks = triton.backward(*grads, q, c, scale, rows, columns, *groups, 100)
    for one, other in zip(whole, chunks, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2 * one.abs().max().item())


def test_rows_of_a_wider_tensor_and_twice_the_same():
    (q, c, scale), options = problem(515, 700, 768, 100, torch.bfloat16, grouped=True)
    wide = torch.full((515, 1000), float("nan"), device="cuda", dtype=torch.bfloat16)
    wide[:, 100:868] = q.detach()
    results = []
    for queries, candidates in ((q, c), (q, c), (wide[:, 100:868].requires_grad_(), c), (q, c.detach().T.contiguous().T.requires_grad_())):
        loss = info_nce(queries, candidates, scale, impl="triton", **options)
        results.append((loss, *torch.autograd.grad(loss, (queries, candidates, scale))))
    for other in results[2:]:
        torch.testing.assert_close(other, results[0])
    assert all(torch.equal(one, two) for one, two in zip(results[0], results[1], strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_of_one(dtype):
    (q, c, scale), options = problem(1, 1, 512, 0, dtype, grouped=True)
    loss = info_nce(q, c, scale, impl="triton", **options)
    for value in (loss, *torch.autograd.grad(loss, (q, c, scale))):
        assert value.abs().max() < 1e-4  # a logit's rounding


def test_an_empty_batch():
    (q, c, scale), _ = problem(0, 5, 512, 0, torch.bfloat16)
    loss = info_nce(q, c, scale, impl="triton")
    assert loss == 0
    assert not any(grad.any() for grad in torch.autograd.grad(loss, (q, c, scale)))


def test_all_logits_near_minus_a_hundred():
    g = torch.Generator("cuda").manual_seed(0)
    one, noise = torch.randn(1, 64, generator=g, device="cuda"), torch.randn(2, 70, 64, generator=g, device="cuda")
    q, c = F.normalize(one + 1e-2 * noise[0], dim=-1), F.normalize(-one + 1e-2 * noise[1], dim=-1)
    torch.testing.assert_close(info_nce(q, c, 100.0, impl="triton").double(), info_nce(q.double(), c.double(), 100.0), rtol=1e-3, atol=0)
