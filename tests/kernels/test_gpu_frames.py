"""Frames to patches on a GPU: no further from float64 than twice eager's own error in the same dtype."""

import pytest
import torch
from oracle import DTYPES, close_as_eager, gpu

from xmafast.kernels.frames import patches

pytestmark = gpu
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def frames(*shape):
    return torch.randint(256, shape, generator=torch.Generator("cuda").manual_seed(0), dtype=torch.uint8, device="cuda")


def truth(x, patch):
    mean, std = (torch.tensor(t, dtype=torch.float64, device="cuda").view(1, 3, 1, 1) for t in (MEAN, STD))
    images = (x.permute(0, 3, 1, 2).double() / 255 - mean) / std
    images = images[..., : x.shape[1] // patch * patch, : x.shape[2] // patch * patch]
    return torch.nn.functional.unfold(images, patch, stride=patch).mT


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Outputs start as NaN, so that an element that no program writes is seen."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(12, 224, 224, 32), (5, 224, 224, 16), (3, 336, 336, 14), (2, 250, 233, 14), (7, 9, 5, 1), (2, 90, 130, 40)]
)
def test_patches(shape, dtype):
    *size, patch = shape
    x = frames(*size, 3)
    fused, eager = (patches(x, patch, MEAN, STD, dtype=dtype, impl=impl) for impl in ("triton", "eager"))
    close_as_eager(fused, eager, truth(x, patch))


def test_any_strides_no_frames_and_twice_the_same():
    wide = frames(2, 5, 240, 250, 3)
    x = wide[:, 3, 2:226, 1:225]
    y = patches(x, 32, MEAN, STD, impl="triton")
    assert torch.equal(y, patches(x.contiguous(), 32, MEAN, STD, impl="triton"))
    assert torch.equal(y, patches(x, 32, MEAN, STD, impl="triton"))
    assert patches(x[:0], 32, MEAN, STD, impl="triton").shape == (0, 49, 3072)
