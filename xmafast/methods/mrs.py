"""MRS-Adapter of PE-RSITR (Yuan et al., TGRS 2023).

    x <- x + MLP(LN x) + [U_m a; U a],   a = drop(relu(V_m x))

U of both encoders, and one set for all blocks. U_m and U start at zero. On widths of 768 and 512 with r = 64 and 64 shared channels:
161,088 parameters.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.errors import UsageError
from xmafast.methods.base import Context, Method, at_least_one


class MRS(Method):
    """Parameters: ``vision`` and ``text`` (down and up), ``shared`` (up). bottleneck: r; shared: channels that the shared part writes, the
    last ones.

    Raises UsageError for more shared channels than the narrower encoder has.
    """

    name = "mrs"
    family = "adapter"
    adapts = "beside the MLP of both encoders, partly shared, the same weights in every block"
    paper = "MRS-Adapter, Yuan et al., TGRS 2023 (PE-RSITR)"
    licence = "none given"
    default_header = "mean"
    default_lr = 1e-3

    def __init__(self, shape: Shape, bottleneck: int = 64, shared: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        at_least_one("bottleneck", bottleneck)
        narrow = min(shape.vision_width, shape.text_width)
        if not 1 <= shared < narrow:
            raise UsageError(f"--shared must lie between 1 and {narrow - 1}, below the narrower encoder's width, not {shared}.")
        self.bottleneck, self.shared_width, self.dropout = bottleneck, shared, nn.Dropout(dropout)

        def own(width: int) -> nn.ModuleDict:
            return nn.ModuleDict({"down": nn.Linear(width, bottleneck), "up": nn.Linear(bottleneck, width - shared)})

        self.vision, self.text, self.shared = own(shape.vision_width), own(shape.text_width), nn.Linear(bottleneck, shared)
        for linear in (self.vision["up"], self.text["up"], self.shared):
            nn.init.zeros_(linear.weight)  # type: ignore[arg-type]
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]

    def options(self) -> dict[str, Any]:
        return {"bottleneck": self.bottleneck, "shared": self.shared_width, "dropout": self.dropout.p}

    def vision_places(self, block: int, context: Context) -> Places:
        return self._places(self.vision)

    def text_places(self, block: int, context: Context) -> Places:
        return self._places(self.text)

    def _places(self, own: nn.ModuleDict) -> Places:
        def parallel_mlp(x: Tensor, h: Tensor) -> Tensor:
            a = self.dropout(F.relu(own["down"](x)))
            return torch.cat([own["up"](a), self.shared(a)], dim=-1)

        return Places(parallel_mlp=parallel_mlp, tokenwise=True)
