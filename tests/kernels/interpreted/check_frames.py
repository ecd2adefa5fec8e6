"""The kernel from frames to patches under the interpreter, on the CPU: run by test_interpreted.py with TRITON_INTERPRET=1."""

import pytest
import torch
from check_bottleneck import poison

from xmafast.kernels.frames import reference, triton

__all__ = ["poison"]  # a fixture, at work here too
MEAN, STD = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
SHAPES = [(1, 14, 14, 14), (3, 45, 61, 14), (2, 64, 48, 16), (2, 70, 33, 32), (2, 9, 7, 1), (1, 50, 100, 40)]  # B, H, W, patch


def frames(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference(shape, dtype):
    *size, patch = shape
    x = frames(*size, 3)
    y = triton.patches(x, patch, MEAN, STD, dtype)
    assert y.dtype == dtype
    # one rounding in another place: an ulp of a value up to 2.7
    epsilon = torch.finfo(dtype).eps
    torch.testing.assert_close(y, reference.patches(x, patch, MEAN, STD, dtype), rtol=2 * epsilon, atol=1e-6)


def test_any_strides():
    wide = frames(2, 5, 40, 44, 3)
    x = wide[:, 3, 2:34, 1:33]
    y = triton.patches(x, 8, MEAN, STD, torch.float32)
    assert torch.equal(y, triton.patches(x.contiguous(), 8, MEAN, STD, torch.float32))
    planes = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(y, triton.patches(planes, 8, MEAN, STD, torch.float32))


def test_no_frames():
    assert triton.patches(frames(0, 32, 48, 3), 16, MEAN, STD, torch.float32).shape == (0, 6, 768)


def test_every_byte_is_as_close_to_float64_as_eager():
    x = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    fused, eager = (f(x, 16, MEAN, STD, torch.float32).double() for f in (triton.patches, reference.patches))
    truth = ((x.double() / 255 - MEAN.double()) / STD.double()).permute(0, 3, 1, 2).reshape(1, 1, 768)
    assert (fused - truth).abs().max() <= 2 * (eager - truth).abs().max()
