"""ST-Adapter (Pan et al., NeurIPS 2022, arXiv 2206.13559).

    x + W_u C(W_d x)

of the patches at the beginning of each block, with a depth-wise convolution C over three frames. C starts at zero, so that it starts as the
frozen model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.methods.base import Context, at_least_one
from xmafast.methods.common.both_encoders import BothEncoders


class TemporalSite(nn.Module):
    """W_u C(W_d x) with C over a frame and its neighbours, each channel on its own; frames of padding count as zero."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        self.weight, self.bias = nn.Parameter(torch.zeros(bottleneck, 3)), nn.Parameter(torch.zeros(bottleneck))
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, frames: int, mask: Tensor | None) -> Tensor:
        """x (B F, P, D) -> the same shape."""
        d = self.down(x).view(-1, frames, x.shape[1], self.weight.shape[0])
        if mask is not None:
            d = d * mask[..., None, None].to(d.dtype)
        none = torch.zeros_like(d[:, :1])
        before, after = torch.cat([none, d[:, :-1]], 1), torch.cat([d[:, 1:], none], 1)
        c = before * self.weight[:, 0] + d * self.weight[:, 1] + after * self.weight[:, 2] + self.bias
        update: Tensor = self.up(c).view(x.shape)
        return update


class STAdapter(BothEncoders):
    """bottleneck: channels of the vision adapters; text_bottleneck and norm: of the text's. Tokens before the patches are not adapted."""

    name = "st-adapter"
    fixed_tokens = True
    needs_grid = True
    adapts = "before each block, over neighbouring frames (vision); after the MLP (text)"
    paper = "ST-Adapter, Pan et al., NeurIPS 2022, arXiv 2206.13559"
    licence = "MIT"

    def __init__(
        self,
        shape: Shape,
        bottleneck: int = 384,
        text_bottleneck: int = 128,
        scale: float = 0.1,
        norm: bool = True,
        train_biases: bool = False,
    ) -> None:
        at_least_one("bottleneck", bottleneck)
        vision = nn.ModuleList(TemporalSite(shape.vision_width, bottleneck) for _ in range(shape.vision_depth))
        super().__init__(shape, vision, text_bottleneck, scale, norm, train_biases)
        self.bottleneck, self.text_bottleneck, self.prefix = bottleneck, text_bottleneck, shape.prefix

    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("bottleneck", "text_bottleneck", "scale", "norm", "train_biases")}

    def vision_places(self, block: int, context: Context) -> Places:
        own: Any = self.vision[block]

        def before(x: Tensor) -> Tensor:
            patches = x[:, self.prefix :]
            return torch.cat([x[:, : self.prefix], patches + own(patches, context.frames, context.mask).to(x.dtype)], dim=1)

        return Places(before=before)
