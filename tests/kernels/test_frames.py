"""Cached frames to patches: equal to normalising and to what a ViT's first convolution reads."""

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from xmafast.kernels.frames import op, patches

MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
FORMS = ["eager", "triton"]


def frames(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def normalised(x):
    """(B, H, W, 3) bytes -> (B, 3, H, W), as a backbone normalises."""
    mean, std = (torch.tensor(t).view(1, 3, 1, 1) for t in (MEAN, STD))
    return (x.permute(0, 3, 1, 2).float().div_(255) - mean) / std


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("patch", [1, 4, 14, 16])
def test_the_numbers_are_those_of_normalising_to_the_bit(patch, impl):
    x = frames(3, 45, 50, 3)
    whole = normalised(x)[..., : 45 // patch * patch, : 50 // patch * patch]
    expected = F.unfold(whole, patch, stride=patch).mT
    y = patches(x, patch, MEAN, STD, impl=impl)
    assert torch.equal(y, expected)
    assert y.is_contiguous()


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_once(dtype, impl):
    x = frames(2, 32, 32, 3)
    assert torch.equal(patches(x, 16, MEAN, STD, dtype=dtype, impl=impl), patches(x, 16, MEAN, STD).to(dtype))


@pytest.mark.parametrize("size", [224, 250])
@pytest.mark.parametrize("impl", FORMS)
def test_the_product_is_the_first_convolution_of_a_vit(size, impl):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = open_clip.transformer.VisionTransformer(
            224, 32, width=64, layers=1, heads=1, mlp_ratio=1, output_dim=8
        ).conv1.requires_grad_(False)
    x = frames(2, size, size, 3)
    y = patches(x, 32, MEAN, STD, impl=impl) @ conv.weight.flatten(1).T
    torch.testing.assert_close(y, conv(normalised(x)).flatten(2).mT, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", FORMS)
def test_any_strides_and_any_form_of_mean(impl):
    wide = frames(2, 5, 40, 44, 3)
    x = wide[:, 3, 2:34, 1:33].flip(0)
    y = patches(x, 8, MEAN, STD, impl=impl)
    planes = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    buffers = [torch.tensor(t, dtype=torch.float64).view(1, 3, 1, 1) for t in (MEAN, STD)]
    assert torch.equal(y, patches(x.contiguous(), 8, *buffers, impl=impl))
    assert torch.equal(y, patches(planes, 8, list(MEAN), list(STD), impl=impl))


@pytest.mark.parametrize("impl", FORMS)
def test_no_frames(impl):
    assert patches(frames(0, 32, 48, 3), 16, MEAN, STD, impl=impl).shape == (0, 6, 768)


def test_the_op_passes_opcheck_and_compiles_in_one_graph():
    x, mean, std = frames(2, 30, 33, 3), torch.tensor(MEAN), torch.tensor(STD)
    for dtype in (torch.float32, torch.bfloat16):
        opcheck(op._patches, (x, 8, mean, std, dtype))
    opcheck(op._patches, (x[:, ::2], 8, mean, std, torch.float16))
    compiled = torch.compile(lambda x, *t: patches(x, 8, *t, impl="triton"), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, mean, std), patches(x, 8, mean, std, impl="eager"))


@pytest.mark.parametrize(
    ("shape", "patch", "message"),
    [
        ((2, 8, 8, 4), 4, r"frames must be \(B, H, W, 3\), not \(2, 8, 8, 4\)"),
        ((8, 8, 3), 4, r"frames must be \(B, H, W, 3\), not \(8, 8, 3\)"),
        ((2, 16, 8, 3), 9, "a patch of 9 does not fit frames of 16 x 8"),
        ((2, 16, 8, 3), 0, "a patch of 0 does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(shape, patch, message):
    with pytest.raises(ValueError, match=message):
        patches(frames(*shape), patch, MEAN, STD)


def test_what_is_no_byte_no_colour_or_no_such_dtype_is_refused():
    x = frames(2, 8, 8, 3)
    with pytest.raises(ValueError, match="frames must be uint8, not float32"):
        patches(x.float(), 4, MEAN, STD)
    with pytest.raises(ValueError, match="must have 3 elements, not 1 and 3"):
        patches(x, 4, [0.5], STD)
    with pytest.raises(ValueError, match=r"dtype must be one of float32, bfloat16, float16, not torch\.float64"):
        patches(x, 4, MEAN, STD, dtype=torch.float64)
