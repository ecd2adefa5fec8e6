"""Convpass (Jie and Deng, arXiv 2207.07039).

    s W_u g(C(g(W_d h)))

beside attention and MLP, on their LayerNormed input h, with a 3 x 3 convolution C over the patches as an image and over each token before
them, as the class token, as an image of one pixel, g = quick_gelu. W_u starts at zero, so that it starts as the frozen model.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.methods.base import Context, at_least_one, quick_gelu
from xmafast.methods.common.both_encoders import BothEncoders


class ConvSite(nn.Module):
    """W_u g(C(g(W_d LN(x)))) over the tokens of images (B, prefix + P, D)."""

    def __init__(self, width: int, bottleneck: int, depthwise: bool, norm: bool, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.norm: nn.LayerNorm | None = nn.LayerNorm(width) if norm else None
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        self.conv = nn.Conv2d(bottleneck, bottleneck, 3, padding=1, groups=bottleneck if depthwise else 1)
        nn.init.xavier_uniform_(self.down.weight)
        for tensor in (self.down.bias, self.conv.weight, self.conv.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)  # type: ignore[arg-type]
        with torch.no_grad():  # the convolution starts as the identity
            self.conv.weight[:, :, 1, 1] = 1.0 if depthwise else torch.eye(bottleneck)

    def forward(self, x: Tensor) -> Tensor:
        d = quick_gelu(self.down(x if self.norm is None else self.norm(x)))
        b, tokens, r = d.shape
        side = math.isqrt(tokens - self.prefix)
        c = self.conv(d[:, self.prefix :].transpose(1, 2).reshape(b, r, side, side)).flatten(2).transpose(1, 2)
        if self.prefix:
            alone = self.conv(d[:, : self.prefix].reshape(-1, r, 1, 1)).view(b, self.prefix, r)
            c = torch.cat([alone, c], dim=1)
        update: Tensor = self.up(quick_gelu(c))
        return update


class Convpass(BothEncoders):
    """depthwise: one filter a channel. norm: a LayerNorm in each adapter, which then reads the residual stream itself.

    The comparison's size fits bottleneck 64, text_bottleneck 128, depthwise, norm and train_biases; the original has none of these.
    """

    name = "convpass"
    fixed_tokens = True
    needs_grid = True
    adapts = "beside attention and MLP, over neighbouring patches (vision); after the MLP (text)"
    paper = "Convpass, Jie and Deng, arXiv 2207.07039"
    licence = "MIT"

    def __init__(
        self,
        shape: Shape,
        bottleneck: int = 8,
        text_bottleneck: int = 64,
        scale: float = 0.1,
        depthwise: bool = False,
        norm: bool = False,
        train_biases: bool = False,
    ) -> None:
        at_least_one("bottleneck", bottleneck)
        vision = nn.ModuleList(
            nn.ModuleDict({site: ConvSite(shape.vision_width, bottleneck, depthwise, norm, shape.prefix) for site in ("attention", "mlp")})
            for _ in range(shape.vision_depth)
        )
        super().__init__(shape, vision, text_bottleneck, scale, norm, train_biases)
        self.bottleneck, self.text_bottleneck, self.depthwise = bottleneck, text_bottleneck, depthwise

    def options(self) -> dict[str, Any]:
        names = ("bottleneck", "text_bottleneck", "scale", "depthwise", "norm", "train_biases")
        return {name: getattr(self, name) for name in names}

    def vision_places(self, block: int, context: Context) -> Places:
        own: Any = self.vision[block]

        def beside(site: str) -> Any:
            return lambda x, h: self.scale * own[site](x if self.norm else h)

        return Places(parallel_attention=beside("attention"), parallel_mlp=beside("mlp"))
