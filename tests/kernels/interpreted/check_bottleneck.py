"""The adapter's Triton kernels under the interpreter, on the CPU: run by test_interpreted.py with TRITON_INTERPRET=1."""

import pytest
import torch

from xmafast.kernels.bottleneck import reference, triton

RAGGED = [(1, 16, 1, 0), (33, 40, 8, 16), (70, 96, 5, 96), (64, 64, 16, 8), (5, 130, 33, 1), (9, 64, 200, 32)]  # M, D, r, s


def problem(m, d, r, s, dtype):
    g = torch.Generator().manual_seed(m + d)

    def t(*shape):
        return (torch.randn(*shape, generator=g, dtype=torch.float64) * 0.5).to(dtype)

    return t(m, d), t(r, d), t(r), t(d - s, r), t(d - s), t(s, r), t(s)


def truth(x, wd, bd, wu, bu, ws, bs, residual=None, **options):
    doubles = [v.double() for v in (x, wd, bd, wu, bu, ws, bs)]
    return reference.adapter(*doubles, residual=None if residual is None else residual.double(), **options)


def tolerance(dtype):
    return {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", RAGGED)
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "relu", "none"])
def test_forward_and_backward_equal_the_reference(shape, dtype, activation):
    x, wd, bd, wu, bu, ws, bs = problem(*shape, dtype)
    residual = torch.randn_like(x)
    y, h = triton.adapter_forward(x, residual, wd, bd, wu, bu, ws, bs, activation, 0.5)
    expected = truth(x, wd, bd, wu, bu, ws, bs, residual, activation=activation, scale=0.5)
    torch.testing.assert_close(y.double(), expected, **tolerance(dtype))
    dy = torch.randn_like(x)
    for skip in (False, True):
        dx, dh = triton.adapter_backward(dy, h, wd, wu, ws, activation, 0.5, skip)
        dh_expected = 0.5 * (dy.double() @ torch.cat([wu, ws]).double()) * reference.slope(h.double(), activation)
        dx_expected = dh_expected @ wd.double() + (dy.double() if skip else 0)
        torch.testing.assert_close(dh.double(), dh_expected, **tolerance(dtype))
        torch.testing.assert_close(dx.double(), dx_expected, **tolerance(dtype))


def test_rows_that_are_a_slice_of_a_wider_tensor():
    x, *weights = problem(20, 32, 4, 8, torch.float32)
    wide = torch.full((20, 50), float("nan"))
    wide[:, 7:39] = x
    y, _ = triton.adapter_forward(wide[:, 7:39], wide[:, 7:39], *weights, "quick_gelu", 1.0)
    torch.testing.assert_close(y, reference.adapter(x, *weights), rtol=1e-5, atol=1e-5)


def test_no_rows():
    x, *weights = problem(0, 32, 4, 8, torch.float32)
    y, h = triton.adapter_forward(x, x, *weights, "quick_gelu", 1.0)
    assert y.shape == (0, 32)
    assert h.shape == (0, 4)


def test_the_bottleneck_is_rounded_as_eager_rounds_it():
    """In fp16 the kernel must stay as close to float64 as eager is: at most twice its error."""
    x, *weights = problem(64, 128, 16, 32, torch.float16)
    y, _ = triton.adapter_forward(x, x, *weights, "quick_gelu", 1.0)
    expected = truth(x, *weights)
    eager = reference.adapter(x, *weights)
    assert (y.double() - expected).abs().max() <= 2 * (eager.double() - expected).abs().max() + 1e-6


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Outputs start as NaN, so that an element that no program writes is seen."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
