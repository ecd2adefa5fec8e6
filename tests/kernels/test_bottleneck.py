import pytest
import torch
from torch.autograd import gradcheck

from xmafast.kernels import adapter


def tensors(width=12, bottleneck=3, shared=5, rows=7, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    shapes = [
        (rows, width),
        (bottleneck, width),
        (bottleneck,),
        (width - shared, bottleneck),
        (width - shared,),
        (shared, bottleneck),
        (shared,),
    ]
    return [torch.randn(s, generator=g, dtype=dtype).requires_grad_() for s in shapes]


def test_equals_the_formula_written_out():
    x, wd, bd, wu, bu, ws, bs = tensors()
    z = x @ wd.T + bd
    z = z * torch.sigmoid(1.702 * z)
    expected = x + torch.cat([z @ wu.T + bu, z @ ws.T + bs], -1)
    torch.testing.assert_close(adapter(x, wd, bd, wu, bu, ws, bs), expected, rtol=0, atol=1e-12)


def test_the_shared_part_writes_the_last_channels():
    x, wd, bd, wu, bu, ws, bs = tensors()
    before = adapter(x, wd, bd, wu, bu, ws, bs)
    after = adapter(x, wd, bd, wu, bu, ws + 1, bs)
    changed = (before != after).any(0)
    assert not changed[:7].any()
    assert changed[7:].all()


def test_a_residual_of_its_own_and_a_scale():
    x, wd, bd, wu, bu, ws, bs = tensors()
    base = torch.randn_like(x)
    delta = adapter(x, wd, bd, wu, bu, ws, bs) - x
    torch.testing.assert_close(adapter(x, wd, bd, wu, bu, ws, bs, scale=0.1, residual=base), base + 0.1 * delta)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "none"])
def test_gradients_in_float64(activation):
    assert gradcheck(lambda *t: adapter(*t, activation=activation), tensors())


def test_up_projections_that_do_not_fill_the_width_are_refused():
    x, wd, bd, wu, bu, *_ = tensors()
    with pytest.raises(ValueError, match="write 7 channels, and x has 12"):
        adapter(x, wd, bd, wu, bu)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="quick_gelu"):
        adapter(*tensors(), activation="swish")
