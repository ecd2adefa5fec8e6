"""CM3T's multi-head adapter (Agrawal et al., WACV 2025), reconstructed from its name, as neither formula nor code could be had.

    y <- y + s concat_h U_h quick_gelu(V_h y_h)

after the MLP, each of H heads from its slice of the channels to its slice. U_h starts at zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.errors import UsageError
from xmafast.methods.base import Context, Method, at_least_one, quick_gelu


class Heads(nn.Module):
    """``down`` (H, r / H, D / H) and ``up`` (H, D / H, r / H) with their biases: y (.., D) -> (.., D)."""

    def __init__(self, width: int, bottleneck: int, heads: int) -> None:
        super().__init__()
        d, r = width // heads, bottleneck // heads
        self.down_weight, self.down_bias = nn.Parameter(torch.randn(heads, r, d) * d**-0.5), nn.Parameter(torch.zeros(heads, r))
        self.up_weight, self.up_bias = nn.Parameter(torch.zeros(heads, d, r)), nn.Parameter(torch.zeros(heads, d))

    def forward(self, y: Tensor) -> Tensor:
        z = quick_gelu(torch.einsum("...hd,hrd->...hr", y.unflatten(-1, (len(self.down_weight), -1)), self.down_weight) + self.down_bias)
        return (torch.einsum("...hr,hdr->...hd", z, self.up_weight) + self.up_bias).flatten(-2)


class MultiHeadAdapter(Method):
    """Parameters: ``vision.BLOCK`` and ``text.BLOCK``. bottleneck: of all heads together.

    Raises UsageError where the heads do not divide it or a width.
    """

    name = "multi-head"
    family = "adapter"
    adapts = "after the MLP of both encoders, in heads"
    paper = "CM3T, Agrawal et al., WACV 2025"
    licence = "none published"
    default_header = "mean"
    default_lr = 1e-3

    def __init__(self, shape: Shape, bottleneck: int = 64, heads: int = 8, scale: float = 0.1) -> None:
        super().__init__()
        at_least_one("bottleneck", bottleneck)
        at_least_one("heads", heads)
        for what, size in (("--bottleneck", bottleneck), ("the image tower's width", shape.vision_width), ("the text's", shape.text_width)):
            if size % heads:
                raise UsageError(f"heads must divide {what}, {size}; {heads} do not.")
        self.bottleneck, self.heads, self.scale = bottleneck, heads, scale
        self.vision = nn.ModuleList(Heads(shape.vision_width, bottleneck, heads) for _ in range(shape.vision_depth))
        self.text = nn.ModuleList(Heads(shape.text_width, bottleneck, heads) for _ in range(shape.text_depth))

    def options(self) -> dict[str, Any]:
        return {"bottleneck": self.bottleneck, "heads": self.heads, "scale": self.scale}

    def vision_places(self, block: int, context: Context) -> Places:
        return Places(after_mlp=lambda y: y + self.scale * self.vision[block](y).to(y.dtype), tokenwise=True)

    def text_places(self, block: int, context: Context) -> Places:
        return Places(after_mlp=lambda y: y + self.scale * self.text[block](y).to(y.dtype), tokenwise=True)
