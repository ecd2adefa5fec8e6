"""UniAdapter (Lu et al., ICLR 2024, arXiv 2302.06605).

    x <- x + MLP(LN x) + s U_m relu(V LN_m(x) + v)

V (r, D) of both encoders, U_m and LN_m of each. The narrower encoder meets the first columns of V. U_m starts at zero, which the released
code means to do and undoes. Its cross-encoder, query residual and frame-aware attention have no place in a dual encoder.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.methods.base import Context, Method, at_least_one, pair_blocks


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
        at_least_one("bottleneck", bottleneck)
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
