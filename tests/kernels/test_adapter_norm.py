"""The adapter with a LayerNorm behind it: the formula, and the registered op's value, gradients, dtypes and shapes."""

import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNorm
from test_bottleneck import tensors
from torch.autograd import gradcheck
from torch.library import opcheck

from xmafast.kernels.bottleneck import adapter, adapter_norm, norm

FORMS = ["eager", "triton"]


def problem(dtype=torch.float64, **sizes):
    """x, stream, norm_weight, norm_bias and the adapter's weights: what adapter_norm takes, in its order."""
    x, *weights = (t.detach().to(dtype).requires_grad_() for t in tensors(**sizes))
    g = torch.Generator().manual_seed(1)
    stream, weight, bias = (torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for shape in (x.shape, (12,), (12,)))
    return [x, *(t.requires_grad_() for t in (stream, weight, bias)), *weights]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eager_is_the_unfused_path_to_the_bit(dtype):
    x, stream, weight, bias, *weights = problem(dtype)
    residual = torch.randn_like(x)
    stream_out, normed = adapter_norm(x, stream, weight, bias, *weights, eps=1e-3, scale=0.5, residual=residual, impl="eager")
    expected = stream + adapter(x, *weights, scale=0.5, residual=residual, impl="eager")
    assert torch.equal(stream_out, expected)
    assert torch.equal(normed, F.layer_norm(expected, (12,), weight, bias, 1e-3))


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "none"])
@pytest.mark.parametrize("own_residual", [False, True])
def test_gradients_in_float64(activation, own_residual, impl):
    inputs = problem()
    residual = torch.randn_like(inputs[0]).requires_grad_(own_residual)

    def run(residual, *inputs):
        return adapter_norm(*inputs, activation=activation, scale=0.7, residual=residual if own_residual else None, impl=impl)

    assert gradcheck(run, (residual, *inputs))


@pytest.mark.parametrize("read", ["stream_out", "normed"])
@pytest.mark.parametrize("own_residual", [False, True])
def test_gradients_where_only_one_result_is_read(read, own_residual):
    inputs = problem()
    residual = torch.randn_like(inputs[0]).requires_grad_()
    results = []
    for impl in FORMS:
        y = adapter_norm(*inputs, residual=residual if own_residual else None, impl=impl)[read == "normed"]
        results.append(torch.autograd.grad(y.sin().sum(), [*inputs, residual], allow_unused=True, materialize_grads=True))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("shared", [0, 5, 12])
def test_both_forms_agree_on_rows_of_any_layout(shared):
    x, stream, *others = problem(shared=shared)
    others = others[:6] if shared == 0 else others
    x = x.detach().reshape(7, 1, 12).expand(7, 3, 12).requires_grad_()
    stream = torch.randn(3, 7, 20, dtype=torch.float64).transpose(0, 1)[..., 4:16].requires_grad_()
    residual = torch.randn(7, 12, 3, dtype=torch.float64).mT.requires_grad_()
    results = []
    for impl in FORMS:
        a, b = adapter_norm(x, stream, *others, residual=residual, impl=impl)
        loss = (a.square() * b).sum()
        results.append((a, b, torch.autograd.grad(loss, [x, stream, residual, *others])))
    torch.testing.assert_close(results[0], results[1])


def test_a_frozen_norm_gets_no_gradient():
    x, stream, weight, bias, *weights = problem()
    stream_out, normed = adapter_norm(x, stream, weight.detach(), bias.detach(), *weights, impl="triton")
    (stream_out * normed).sum().backward()
    assert x.grad is not None
    assert stream.grad is not None
    assert weight.grad is None
    assert bias.grad is None


@pytest.mark.parametrize("stream_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("residual_dtype", [None, torch.float32, torch.bfloat16])
def test_dtypes_under_autocast_are_eagers(stream_dtype, residual_dtype):
    x, stream, weight, bias, *weights = problem(torch.float32)
    x = x.detach().bfloat16().requires_grad_()
    stream = stream.detach().to(stream_dtype).requires_grad_()
    residual = None if residual_dtype is None else torch.randn(7, 12).to(residual_dtype).requires_grad_()
    leaves = [t for t in (x, stream, residual, weight, bias, *weights) if t is not None]
    results = []
    for impl in FORMS:
        with torch.autocast("cpu", torch.bfloat16):
            y = adapter_norm(x, stream, weight, bias, *weights, residual=residual, impl=impl)
        grads = torch.autograd.grad([t.float().square().sum() for t in y], leaves)
        results.append([*y, *grads])
        assert [g.dtype for g in grads] == [leaf.dtype for leaf in leaves]
    for eager, fused in zip(*results, strict=True):
        assert fused.dtype == eager.dtype
        assert (fused - eager).abs().max() <= 0.03 * eager.abs().max()  # a few roundings to bf16, whose epsilon is 0.008


def test_the_norm_is_that_of_open_clip_in_its_dtype():
    x, stream, _, _, *weights = problem(torch.float32)
    block_norm = LayerNorm(12)
    with torch.autocast("cpu", torch.bfloat16):
        stream_out, normed = adapter_norm(x.bfloat16(), stream.bfloat16(), block_norm.weight, block_norm.bias, *weights, impl="triton")
        expected = block_norm(stream_out)
    assert normed.dtype == expected.dtype
    torch.testing.assert_close(normed, expected)


def test_no_rows():
    for y in adapter_norm(*problem(rows=0), impl="triton"):
        assert y.shape == (0, 12)


def test_the_op_passes_opcheck_and_compiles_in_one_graph():
    inputs = problem(torch.float32)
    x, stream, weight, bias, *weights = inputs
    residual = torch.randn(7, 12, requires_grad=True)
    opcheck(norm._forward, (x, None, stream, weight, bias, *weights, "quick_gelu", 1.0, 1e-5))
    opcheck(norm._forward, (x, residual, stream.detach().bfloat16(), weight, bias, *weights, "relu", 0.5, 1e-5))
    with torch.no_grad():
        h, mean, rstd, down, own, shared = torch.randn(7, 3), torch.randn(7), torch.rand(7), *(t.detach() for t in weights[::2])
        saved = (stream.detach(), mean, rstd, weight.detach(), h, down, own, shared)
        opcheck(norm._backward, (torch.randn(7, 12), torch.randn(7, 12), *saved, "gelu", 1.0, True))
        opcheck(norm._backward, (None, torch.randn(7, 12), *saved, "gelu", 1.0, False))
    compiled = torch.compile(lambda *t: adapter_norm(*t, impl="triton"), fullgraph=True, backend="aot_eager")
    results = []
    for y in (compiled(*inputs), adapter_norm(*inputs, impl="eager")):
        results.append((y, torch.autograd.grad(sum(t.sin().sum() for t in y), inputs)))
    torch.testing.assert_close(results[0], results[1])


def test_a_stream_or_residual_of_another_shape_is_refused():
    x, stream, *others = problem()
    with pytest.raises(ValueError, match=r"stream is \(1, 12\), and x is \(7, 12\)"):
        adapter_norm(x, stream[:1], *others)
    with pytest.raises(ValueError, match=r"residual is \(12,\), and x is \(7, 12\)"):
        adapter_norm(x, stream, *others, residual=stream[0])
    with pytest.raises(ValueError, match=r"residual is \(12,\), and x is \(7, 12\)"):
        adapter(x, *others[2:], residual=stream[0])
