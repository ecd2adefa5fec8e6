"""The adapter's kernels on a GPU: no further from float64 than twice eager's own error in the same dtype."""

import pytest
import torch
from oracle import DTYPES, close_as_eager, gpu

from xmafast.kernels import adapter
from xmafast.kernels.bottleneck import reference

pytestmark = gpu


def problem(m, d, r, s, dtype):
    g = torch.Generator("cuda").manual_seed(m)

    def t(*shape, scale):
        return (torch.randn(*shape, generator=g, device="cuda") * scale).to(dtype).requires_grad_()

    down, up = d**-0.5, r**-0.5
    return (
        t(m, d, scale=1),
        t(r, d, scale=down),
        t(r, scale=0.1),
        t(d - s, r, scale=up),
        t(d - s, scale=0.1),
        t(s, r, scale=up),
        t(s, scale=0.1),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 512, 8, 16), (1000, 768, 64, 16), (4099, 768, 16, 512), (333, 1024, 512, 8), (77, 192, 8, 192), (0, 768, 8, 0)]
)
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "relu", "none"])
def test_adapter_forward_and_backward(shape, dtype, activation):
    inputs = problem(*shape, dtype)
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    dy = torch.randn_like(inputs[0])
    results = []
    for impl, tensors in (("triton", inputs), ("eager", inputs), ("truth", doubles)):
        call = reference.adapter if impl == "truth" else adapter
        y = call(*tensors, activation=activation, **({} if impl == "truth" else {"impl": impl}))
        results.append([y, *torch.autograd.grad(y, tensors, dy.to(y.dtype))])
    if shape[0]:
        for fused, eager, truth in zip(*results, strict=True):
            if truth.numel():
                close_as_eager(fused, eager, truth)


def test_adapter_on_rows_of_a_wider_tensor_and_twice_the_same():
    x, *weights = problem(515, 768, 64, 16, torch.bfloat16)
    wide = torch.full((515, 1000), float("nan"), device="cuda", dtype=torch.bfloat16)
    wide[:, 100:868] = x.detach()
    y = adapter(wide[:, 100:868], *weights, impl="triton")
    assert torch.equal(y, adapter(x, *weights, impl="triton"))
    assert torch.equal(y, adapter(wide[:, 100:868], *weights, impl="triton"))
