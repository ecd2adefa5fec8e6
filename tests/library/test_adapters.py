"""AdaptFormer, Convpass, ST-Adapter: their formulas written out a second time, in float64."""

from dataclasses import replace

import pytest
import torch

from xmafast.backbone import Shape
from xmafast.errors import UsageError
from xmafast.methods import build_method
from xmafast.methods.base import Context

SMALL = Shape(24, 2, 16, 2, 16, 1000)
PREFIXES = pytest.mark.parametrize("prefix", [0, 1, 3], ids=["no class token", "a class token", "registers"])
CLOSE = {"rtol": 1e-6, "atol": 1e-9}


def random(name, prefix=1, **options):
    torch.manual_seed(0)
    method = build_method(name, replace(SMALL, prefix=prefix), bottleneck=6, **options).double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return method


def tokens(b=4, p=9, d=24, prefix=1):
    return torch.randn(b, prefix + p, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gelu(x):
    return x / (1 + torch.exp(-1.702 * x))


def norm(x, layer):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias


def mlp(x, b):
    h = x if b.norm is None else norm(x, b.norm)
    return 0.1 * (torch.relu(h @ b.down.weight.T + b.down.bias) @ b.up.weight.T + b.up.bias)


@pytest.mark.parametrize("normed", [False, True])
def test_adaptformer(normed):
    x, y = tokens(), tokens(p=4)
    parallel, sequential = (random("adaptformer", form=form, norm=normed) for form in ("parallel", "sequential"))
    found = parallel.vision_places(1, Context(2)).parallel_mlp(x, torch.zeros_like(x))  # the residual stream is what it reads
    torch.testing.assert_close(found, mlp(x, parallel.vision[1]), **CLOSE)
    found = sequential.vision_places(1, Context(2)).after_mlp(y)
    torch.testing.assert_close(found, y + mlp(y, sequential.vision[1]), **CLOSE)
    words = tokens(d=16)
    found = parallel.text_places(0, Context()).after_mlp(words)
    torch.testing.assert_close(found, words + mlp(words, parallel.text[0]), **CLOSE)


def convolved(image, conv, depthwise):
    """A 3 x 3 convolution with padding, (C, H, W), pixel by pixel."""
    c, height, width = image.shape
    out = conv.bias.detach().clone()[:, None, None].expand(c, height, width).clone()
    for i in range(height):
        for j in range(width):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < height and 0 <= j + dj < width:
                        pixel, kernel = image[:, i + di, j + dj], conv.weight[:, :, di + 1, dj + 1]
                        out[:, i, j] += kernel[:, 0] * pixel if depthwise else kernel @ pixel
    return out


@PREFIXES
@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("normed", [False, True])
def test_convpass(depthwise, normed, prefix):
    method = random("convpass", prefix, depthwise=depthwise, norm=normed)
    x, h = tokens(prefix=prefix), tokens(prefix=prefix).flip(0)
    places = method.vision_places(1, Context(2))
    for site, found in (("attention", places.parallel_attention(x, h)), ("mlp", places.parallel_mlp(x, h))):
        s = method.vision[1][site]
        read = norm(x, s.norm) if normed else h
        d = gelu(read @ s.down.weight.T + s.down.bias)
        expected = torch.empty_like(x)
        for b in range(len(x)):
            patches = convolved(d[b, prefix:].T.reshape(6, 3, 3), s.conv, depthwise).reshape(6, 9).T
            alone = [convolved(d[b, i].reshape(6, 1, 1), s.conv, depthwise).reshape(1, 6) for i in range(prefix)]
            expected[b] = 0.1 * (gelu(torch.cat([*alone, patches])) @ s.up.weight.T + s.up.bias)
        torch.testing.assert_close(found, expected.detach(), **CLOSE)


@PREFIXES
def test_st_adapter_looks_at_neighbouring_real_frames_and_leaves_what_stands_before_the_patches(prefix):
    method, x = random("st-adapter", prefix), tokens(b=6, prefix=prefix)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    found = method.vision_places(1, Context(3, mask)).before(x)
    s = method.vision[1]
    d = (x[:, prefix:] @ s.down.weight.T + s.down.bias).reshape(2, 3, 9, 6)
    expected = x.clone()
    for b in range(2):
        for f in range(3):
            c = s.bias.expand(9, 6).clone()
            for step, k in ((-1, 0), (0, 1), (1, 2)):
                if 0 <= f + step < 3 and mask[b, f + step]:
                    c += s.weight[:, k] * d[b, f + step]
            expected[3 * b + f, prefix:] += c @ s.up.weight.T + s.up.bias
    torch.testing.assert_close(found, expected, **CLOSE)
    assert torch.equal(found[:, :prefix], x[:, :prefix])
    alone = method.vision_places(1, Context(1)).before(x[:1])  # an image is a video of one frame
    assert alone.shape == (1, prefix + 9, 24)


def test_frames_of_padding_never_reach_real_ones():
    method, x = random("st-adapter"), tokens(b=3)
    mask = torch.tensor([[True, True, False]])
    other = x.clone()
    other[2] = 99.0
    a, b = (method.vision_places(0, Context(3, mask)).before(y)[:2] for y in (x, other))
    assert torch.equal(a, b)


def test_sizes_and_forms_that_do_not_exist_are_refused():
    for name, options, reason in (
        ("adaptformer", {"form": "serial"}, "form"),
        ("adaptformer", {"bottleneck": 0}, "at least 1"),
        ("convpass", {"text_bottleneck": 0}, "at least 1"),
        ("vpt", {"tokens": 0}, "at least 1"),
        ("full", {"freeze": 3}, "between 0 and 2"),
        ("projection", {"bottleneck": 3}, "no option 'bottleneck'"),
    ):
        with pytest.raises(UsageError, match=reason):
            build_method(name, SMALL, **options)
