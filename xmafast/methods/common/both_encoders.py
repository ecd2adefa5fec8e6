"""Methods of the vision blocks that have sequential adapters in the text blocks: AdaptFormer, Convpass, ST-Adapter.

The text encoder has no patches and no frames: there each has, after the MLP, f + s W_u relu(W_d f), as in MV-Adapter's comparison
(arXiv 2301.07868, section 5.1). The sizes in that comparison come out with a LayerNorm in each adapter and trained CLIP biases: ``norm``
and ``train_biases``.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.kernels import adapter
from xmafast.methods.base import Context, Method, at_least_one
from xmafast.methods.common.tuned import Tuned, biases


class Bottleneck(nn.Module):
    """scale W_u relu(W_d LN(x)), the LayerNorm where asked."""

    def __init__(self, width: int, bottleneck: int, scale: float, norm: bool) -> None:
        super().__init__()
        self.norm: nn.LayerNorm | None = nn.LayerNorm(width) if norm else None
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        self.scale = scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def added(self, x: Tensor, residual: Tensor, impl: str) -> Tensor:
        """residual + scale A(x), in one pass where the kernel runs."""
        h = x if self.norm is None else self.norm(x)
        weights = (self.down.weight, self.down.bias, self.up.weight, self.up.bias)
        return adapter(h, *weights, activation="relu", scale=self.scale, residual=residual, impl=impl)

    def forward(self, x: Tensor) -> Tensor:
        update: Tensor = self.scale * self.up(F.relu(self.down(x if self.norm is None else self.norm(x))))
        return update


class BothEncoders(Method):
    """A method with modules of its own in the vision blocks and sequential adapters in the text blocks."""

    family = "adapter"
    default_header = "mean"
    default_lr = 1e-3

    def __init__(self, shape: Shape, vision: nn.ModuleList, text_bottleneck: int, scale: float, norm: bool, train_biases: bool) -> None:
        super().__init__()
        at_least_one("text_bottleneck", text_bottleneck)
        self.vision, self.scale, self.norm, self.train_biases = vision, scale, norm, train_biases
        self.text = nn.ModuleList(Bottleneck(shape.text_width, text_bottleneck, scale, norm) for _ in range(shape.text_depth))
        if train_biases:
            self.tuned = Tuned(shape.tensors, biases(shape.tensors))

    def text_places(self, block: int, context: Context) -> Places:
        own: Any = self.text[block]
        return Places(after_mlp=lambda y: own.added(y, y, context.impl), tokenwise=True)
