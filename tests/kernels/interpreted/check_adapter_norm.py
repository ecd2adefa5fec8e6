"""The adapter-and-LayerNorm kernels under the interpreter, on the CPU: run by test_interpreted.py with TRITON_INTERPRET=1."""

import pytest
import torch
import torch.nn.functional as F
from check_bottleneck import RAGGED, poison, problem, tolerance, truth

from xmafast.kernels.bottleneck import reference, triton

__all__ = ["poison"]  # a fixture, at work here too


def behind(x, offset=0.0, dtype=None):
    """A stream of x's shape, and a LayerNorm's weight and bias."""
    g = torch.Generator().manual_seed(x.shape[0])
    stream, weight, bias = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in (x.shape, x.shape[1:], x.shape[1:]))
    return (stream + offset).to(dtype or x.dtype), weight.to(x.dtype), bias.to(x.dtype)


def check(forward, x, residual, stream, weight, bias, weights, activation, scale, allowed):
    """The saved statistics and both results against float64, each step from the kernel's own rounded input."""
    stream_out, normed, h, mean, rstd = forward
    expected = stream.double() + truth(x, *weights, residual, activation=activation, scale=scale)
    torch.testing.assert_close(stream_out.double(), expected, **allowed)
    torch.testing.assert_close(h.double(), F.linear(x.double(), weights[0].double(), weights[1].double()), **allowed)
    rows = stream_out.double()
    torch.testing.assert_close(mean.double(), rows.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rstd.double(), (rows.var(1, correction=0) + 1e-5).rsqrt(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(normed.double(), F.layer_norm(rows, rows.shape[1:], weight.double(), bias.double()), **allowed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", RAGGED)
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "relu", "none"])
def test_forward_and_backward_equal_the_reference(shape, dtype, activation):
    x, *weights = problem(*shape, dtype)
    wd, _, wu, _, ws, _ = weights
    residual = torch.randn_like(x)
    stream, weight, bias = behind(x)
    forward = triton.adapter_norm_forward(x, residual, stream, weight, bias, *weights, activation, 0.5, 1e-5, dtype)
    check(forward, x, residual, stream, weight, bias, weights, activation, 0.5, tolerance(dtype))

    stream_out, _, h, mean, rstd = forward
    d_stream_out, d_normed = torch.randn_like(x), torch.randn_like(x)
    rows = stream_out.double().requires_grad_()
    normed = F.layer_norm(rows, rows.shape[1:], weight.double(), bias.double())
    (through,) = torch.autograd.grad(normed, rows, d_normed.double())
    for given, skip in ((d_stream_out, True), (d_stream_out, False), (None, True)):
        g, dx, dh = triton.adapter_norm_backward(given, d_normed, stream_out, mean, rstd, weight, h, wd, wu, ws, activation, 0.5, skip)
        torch.testing.assert_close(g.double(), through if given is None else through + given.double(), **tolerance(dtype))
        dh_expected = 0.5 * (g.double() @ torch.cat([wu, ws]).double()) * reference.slope(h.double(), activation)
        torch.testing.assert_close(dh.double(), dh_expected, **tolerance(dtype))
        torch.testing.assert_close(dx.double(), dh.double() @ wd.double() + (g.double() if skip else 0), **tolerance(dtype))


def test_float32_stream_over_half_products():
    x, *weights = problem(33, 40, 8, 16, torch.float16)
    wd, _, wu, _, ws, _ = weights
    stream, weight, bias = behind(x, dtype=torch.float32)
    forward = triton.adapter_norm_forward(x, x, stream, weight.float(), bias.float(), *weights, "quick_gelu", 1.0, 1e-5, torch.float32)
    stream_out, normed, h, mean, rstd = forward
    assert stream_out.dtype == normed.dtype == torch.float32
    assert h.dtype == torch.float16
    check(forward, x, None, stream, weight, bias, weights, "quick_gelu", 1.0, {"rtol": 2e-3, "atol": 2e-3})
    d = torch.randn_like(stream_out)
    g, dx, dh = triton.adapter_norm_backward(d, d, stream_out, mean, rstd, weight.float(), h, wd, wu, ws, "quick_gelu", 1.0, True)
    assert (g.dtype, dx.dtype, dh.dtype) == (torch.float32, torch.float16, torch.float16)
    torch.testing.assert_close(dx.double(), dh.double() @ wd.double() + g.double(), **tolerance(torch.float16))


@pytest.mark.parametrize("width", [40, 64, 130])
def test_the_variance_of_rows_far_from_zero(width):
    """A mean of 1,000 and a deviation of 1: a difference of sums of squares would keep no digit of it in float32."""
    x, *weights = problem(20, width, 4, 8, torch.float32)
    stream, weight, bias = behind(x, offset=1000.0)
    stream_out, normed, _, _, rstd = triton.adapter_norm_forward(x, x, stream, weight, bias, *weights, "none", 1.0, 1e-5, torch.float32)
    rows = stream_out.double()
    torch.testing.assert_close(rstd.double(), (rows.var(1, correction=0) + 1e-5).rsqrt(), rtol=1e-4, atol=0)
    truth = F.layer_norm(rows, (width,), weight.double(), bias.double())
    torch.testing.assert_close(normed.double(), truth, rtol=1e-3, atol=1e-3)


def test_rows_that_are_slices_of_wider_tensors():
    x, *weights = problem(20, 32, 4, 8, torch.float32)
    stream, weight, bias = behind(x)
    views = [torch.full((20, width), float("nan"))[:, 7:39] for width in (50, 60, 70)]  # a stride for each
    for view, rows in zip(views, (x, stream, stream), strict=True):
        view.copy_(rows)
    options = ("quick_gelu", 1.0, 1e-5, torch.float32)
    results = triton.adapter_norm_forward(*views, weight, bias, *weights, *options)
    expected = triton.adapter_norm_forward(x, stream, stream, weight, bias, *weights, *options)
    for a, b in zip(results, expected, strict=True):
        assert torch.equal(a, b)
    stream_out, _, h, mean, rstd = results
    wd, _, wu, _, ws, _ = weights
    saved = (stream_out, mean, rstd, weight, h, wd, wu, ws, "quick_gelu", 1.0, True)
    for a, b in zip(triton.adapter_norm_backward(views[0], views[2], *saved), triton.adapter_norm_backward(x, stream, *saved), strict=True):
        assert torch.equal(a, b)


def test_no_rows():
    x, *weights = problem(0, 32, 4, 8, torch.float32)
    stream, weight, bias = behind(x)
    results = triton.adapter_norm_forward(x, x, stream, weight, bias, *weights, "quick_gelu", 1.0, 1e-5, torch.float32)
    assert [tuple(t.shape) for t in results] == [(0, 32), (0, 32), (0, 4), (0,), (0,)]


def test_no_further_from_float64_than_twice_eagers_error():
    x, *weights = problem(64, 128, 16, 32, torch.float16)
    stream, weight, bias = behind(x)
    fused = triton.adapter_norm_forward(x, x, stream, weight, bias, *weights, "quick_gelu", 1.0, 1e-5, torch.float16)[:2]
    eager = reference.adapter_norm(x, stream, weight, bias, *weights)
    exact = reference.adapter_norm(*(t.double() for t in (x, stream, weight, bias, *weights)))
    for a, b, true in zip(fused, eager, exact, strict=True):
        assert (a.double() - true).abs().max() <= 2 * (b.double() - true).abs().max() + 1e-6
