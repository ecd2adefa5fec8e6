"""The adapter-and-LayerNorm kernels on a GPU: no further from float64 than twice eager's own error in the same dtype."""

import pytest
import torch
from oracle import DTYPES, close_as_eager, gpu
from test_gpu_bottleneck import problem

from xmafast.kernels.bottleneck import adapter_norm, reference

pytestmark = gpu
SHAPES = [(1, 512, 8, 16), (1000, 768, 64, 16), (4099, 768, 16, 512), (333, 1024, 512, 8), (77, 192, 8, 192), (0, 768, 8, 0)]


def behind(x):
    """A stream, and a LayerNorm's weight and bias, for rows x."""
    stream, weight, bias = (torch.randn(shape, device="cuda", dtype=x.dtype) for shape in (x.shape, x.shape[1:], x.shape[1:]))
    return [t.requires_grad_() for t in (stream, weight, bias)]


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Outputs start as NaN, so that an element that no program writes is seen."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("own_residual", [False, True])
def test_forward_and_backward(shape, dtype, own_residual):
    x, *weights = problem(*shape, dtype)
    residual = torch.randn_like(x).requires_grad_()
    inputs = [x, *behind(x), *weights, *([residual] if own_residual else [])]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    dy = [torch.randn_like(x), torch.randn_like(x)]
    results = []
    for impl, tensors in (("triton", inputs), ("eager", inputs), ("truth", doubles)):
        call = reference.adapter_norm if impl == "truth" else adapter_norm
        options = ({} if impl == "truth" else {"impl": impl}) | ({"residual": tensors[-1]} if own_residual else {})
        y = call(*(tensors[:-1] if own_residual else tensors), **options)
        results.append([*y, *torch.autograd.grad(y, tensors, [d.to(y[0].dtype) for d in dy])])
    if shape[0]:
        for fused, eager, truth in zip(*results, strict=True):
            if truth.numel():
                close_as_eager(fused, eager, truth)


@pytest.mark.parametrize("read", ["stream_out", "normed"])
def test_one_result_read(read):
    x, *weights = problem(515, 768, 64, 16, torch.float32)
    inputs = [x, *behind(x), *weights]
    grads = []
    for tensors, call, options in (
        (inputs, adapter_norm, {"impl": "triton"}),
        (inputs, adapter_norm, {"impl": "eager"}),
        ([t.detach().double().requires_grad_() for t in inputs], reference.adapter_norm, {}),
    ):
        y = call(*tensors, **options)[read == "normed"]
        grads.append(torch.autograd.grad(y.square().sum(), tensors, allow_unused=True, materialize_grads=True))
    for fused, eager, truth in zip(*grads, strict=True):
        close_as_eager(fused, eager, truth)


@pytest.mark.parametrize("stream_dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_with_float32_weights(stream_dtype):
    x, *weights = problem(515, 768, 8, 16, torch.float32)
    stream, weight, bias = behind(x)
    rows = x.detach().bfloat16().requires_grad_()
    inputs = [rows, stream.detach().to(stream_dtype).requires_grad_(), weight, bias, *weights]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    dy = torch.randn_like(x)
    results = []
    for impl in ("triton", "eager"):
        with torch.autocast("cuda", torch.bfloat16):
            y = adapter_norm(*inputs, impl=impl)
        assert [t.dtype for t in y] == [stream_dtype] * 2
        results.append([*y, *torch.autograd.grad(y, inputs, [dy.to(stream_dtype)] * 2)])
    y = reference.adapter_norm(*doubles)
    results.append([*y, *torch.autograd.grad(y, doubles, [dy.to(stream_dtype).double()] * 2)])
    for fused, eager, truth in zip(*results, strict=True):
        close_as_eager(fused, eager, truth)


def test_rows_of_wider_tensors_and_twice_the_same():
    x, *weights = problem(515, 768, 64, 16, torch.bfloat16)
    stream, weight, bias = behind(x)
    wide = torch.full((2, 515, 1000), float("nan"), device="cuda", dtype=torch.bfloat16)
    wide[0, :, 100:868], wide[1, :, 7:775] = x.detach(), stream.detach()
    y = adapter_norm(wide[0, :, 100:868], wide[1, :, 7:775], weight, bias, *weights, impl="triton")
    again = adapter_norm(wide[0, :, 100:868], wide[1, :, 7:775], weight, bias, *weights, impl="triton")
    expected = adapter_norm(x, stream, weight, bias, *weights, impl="triton")
    for a, b, c in zip(y, again, expected, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
