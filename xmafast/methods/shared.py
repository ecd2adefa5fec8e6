"""Adapters beside the MLP that share weights between encoders or blocks, and one made of small heads.

uniadapter:  x <- x + MLP(LN x) + s U_m relu(V LN_m(x) + v), V (r, D) of both encoders, U_m and LN_m of each (Lu et al., ICLR 2024, arXiv
             2302.06605). The narrower encoder meets the first columns of V. U_m starts at zero, which the released code means to do and
             undoes. Its cross-encoder, query residual and frame-aware attention have no place in a dual encoder.
mrs:         x <- x + MLP(LN x) + [U_m a; U a], a = drop(relu(V_m x)), U of both encoders, and one set for all blocks (Yuan et al., T-GRS
             2023). U_m and U start at zero. On widths of 768 and 512 with r = 64 and 64 shared channels: 161,088 parameters.
multi-head:  y <- y + s concat_h U_h quick_gelu(V_h y_h) after the MLP, each of H heads from its slice of the channels to its slice: CM3T's
             multi-head adapter (Agrawal et al., WACV 2025), reconstructed from its name, as neither formula nor code could be had.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.errors import UsageError
from xmafast.methods.base import Context, Method, pair_blocks, quick_gelu


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"{'--' if name == 'bottleneck' else ''}{name} must be at least 1, not {value}.")


class Own(nn.Module):
    """One encoder's LayerNorm and up-projection of one block."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)


class UniAdapter(Method):
    """Parameters: ``vision.BLOCK`` and ``text.BLOCK`` (LayerNorm and up), ``shared.K`` (down) of the K-th pair of blocks, and ``alone.K``,
    the down-projections of blocks without a partner. bottleneck: r.
    """

    name = "uniadapter"
    family = "adapter"
    adapts = "beside the MLP of both encoders, the down-projection shared"
    paper = "UniAdapter, Lu et al., ICLR 2024, arXiv 2302.06605"
    licence = "BSD-3-Clause"
    default_header = "mean"
    default_lr = 1e-3

    def __init__(self, shape: Shape, bottleneck: int = 64, scale: float = 0.1) -> None:
        super().__init__()
        _at_least_one("bottleneck", bottleneck)
        self.bottleneck, self.scale = bottleneck, scale
        pairs = pair_blocks(shape.vision_depth, shape.text_depth)
        self._vision_pair, self._text_pair = ({blocks[i]: k for k, blocks in enumerate(pairs)} for i in (0, 1))
        lone = [(shape.vision_width, b, True) for b in range(shape.vision_depth) if b not in self._vision_pair]
        lone += [(shape.text_width, b, False) for b in range(shape.text_depth) if b not in self._text_pair]
        self._alone = {(vision, b): k for k, (_, b, vision) in enumerate(lone)}
        wide = max(shape.vision_width, shape.text_width)
        self.shared = nn.ModuleList(self._down(wide) for _ in pairs)
        self.alone = nn.ModuleList(self._down(width) for width, _, _ in lone)
        self.vision = nn.ModuleList(Own(shape.vision_width, bottleneck) for _ in range(shape.vision_depth))
        self.text = nn.ModuleList(Own(shape.text_width, bottleneck) for _ in range(shape.text_depth))

    def _down(self, width: int) -> nn.Linear:
        down = nn.Linear(width, self.bottleneck)
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(down.bias)
        return down

    def options(self) -> dict[str, Any]:
        return {"bottleneck": self.bottleneck, "scale": self.scale}

    def vision_places(self, block: int, context: Context) -> Places:
        return self._places(self.vision[block], self._vision_pair, (True, block))

    def text_places(self, block: int, context: Context) -> Places:
        return self._places(self.text[block], self._text_pair, (False, block))

    def _places(self, own: Any, pair: dict[int, int], where: tuple[bool, int]) -> Places:
        down: Any = self.shared[pair[where[1]]] if where[1] in pair else self.alone[self._alone[where]]

        def parallel_mlp(x: Tensor, h: Tensor) -> Tensor:
            n = own.norm(x)
            update: Tensor = self.scale * own.up(F.relu(F.linear(n, down.weight[:, : n.shape[-1]], down.bias)))
            return update

        return Places(parallel_mlp=parallel_mlp, tokenwise=True)


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
        _at_least_one("bottleneck", bottleneck)
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
        _at_least_one("bottleneck", bottleneck)
        _at_least_one("heads", heads)
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
