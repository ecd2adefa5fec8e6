"""The adapter's registered op: its CPU kernel, its gradients, its shapes, and what decides between the forms."""

import pytest
import torch
from test_bottleneck import tensors
from torch.autograd import gradcheck
from torch.library import opcheck

from xmafast.kernels import adapter
from xmafast.kernels.bottleneck import op
from xmafast.kernels.dispatch import use_triton


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "none"])
@pytest.mark.parametrize("own_residual", [False, True])
def test_the_ops_gradients_in_float64(activation, own_residual):
    inputs = tensors()
    residual = torch.randn_like(inputs[0]).requires_grad_()

    def run(residual, *weights):
        return adapter(*weights, activation=activation, scale=0.7, residual=residual if own_residual else None, impl="triton")

    assert gradcheck(run, (residual if own_residual else residual.detach(), *inputs))


@pytest.mark.parametrize("shared", [0, 5, 12])
def test_both_forms_agree_in_value_and_gradient(shared):
    inputs = tensors(shared=shared)
    weights = inputs[1:5] if shared == 0 else inputs[1:]
    x = inputs[0].detach().reshape(7, 1, 12).expand(7, 3, 12).requires_grad_()
    results = []
    for impl in ("eager", "triton"):
        y = adapter(x, *weights, impl=impl)
        results.append((y, torch.autograd.grad(y.square().sum(), [x, *weights])))
    torch.testing.assert_close(results[0], results[1])


def test_without_biases():
    x, wd, _, wu, _, ws, _ = tensors()
    torch.testing.assert_close(
        adapter(x, wd, None, wu, None, ws, None, impl="triton"), adapter(x, wd, None, wu, None, ws, None, impl="eager")
    )


def test_no_rows():
    x, *weights = tensors(rows=0)
    assert adapter(x, *weights, impl="triton").shape == (0, 12)


def test_the_op_passes_opcheck_and_compiles_in_one_graph():
    x, *weights = (t.detach().float().requires_grad_() for t in tensors())
    opcheck(op._forward, (x, None, *weights, "quick_gelu", 1.0))
    with torch.no_grad():
        h = torch.randn(7, 3)
        opcheck(op._backward, (x.detach(), h, weights[0].detach(), weights[2].detach(), weights[4].detach(), "gelu", 1.0, True))
    compiled = torch.compile(lambda *t: adapter(*t, impl="triton"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, *weights), adapter(x, *weights, impl="eager"))


def test_what_decides_between_the_forms():
    x = torch.zeros(1)
    assert not use_triton("auto", x, measured=True)  # a CPU tensor
    assert not use_triton("eager", x)
    assert use_triton("triton", x)
    with pytest.raises(ValueError, match="unknown impl 'cuda'"):
        use_triton("cuda", x)
    with pytest.raises(ValueError, match="one CUDA device, not on meta"):
        use_triton("triton", x.to("meta"))
