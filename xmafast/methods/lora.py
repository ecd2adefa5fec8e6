"""Low-rank updates of the attention's query, key and value projections, in every block of both encoders.

    W x + s B A x,   A (r, D), B (., r); A kaiming-uniform, B zero, so that each starts as the frozen model

One A for q, k and v together, B (3D, r), s = 1, r = 8: the base of TempMe and DiscoVLA (Hu et al., ICLR 2022, arXiv 2106.09685).

``Retriever.merge`` adds the updates to copies of the projections: then it costs what the frozen model costs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.errors import UsageError
from xmafast.methods.base import Context, Method, at_least_one

# open_clip's own blocks, timm's with one projection, timm's with three
_PROJECTIONS = (("attn.in_proj_weight",), ("attn.qkv.weight",), ("attn.q_proj.weight", "attn.k_proj.weight", "attn.v_proj.weight"))


def update(x: Tensor, down: Tensor, up: Tensor, groups: int) -> Tensor:
    """B A x, of each group: x (.., D), down (G r, D), up (3D, r) -> (.., 3D)."""
    pieces = zip(F.linear(x, down).chunk(groups, dim=-1), up.chunk(groups), strict=True)
    return torch.cat([F.linear(z, own) for z, own in pieces], dim=-1)


def product(down: Tensor, up: Tensor, groups: int) -> Tensor:
    """B A, of each group below the other: (3D, D)."""
    return torch.cat([b @ a for b, a in zip(up.chunk(groups), down.chunk(groups), strict=True)])


class LowRank(nn.Module):
    """Of one block: ``down`` (G r, D) and ``up`` (3D, r); each of the G groups updates 3 / G of the three projections."""

    def __init__(self, width: int, rank: int, groups: int) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.empty(groups * rank, width)), nn.Parameter(torch.zeros(3 * width, rank))
        self.groups = groups
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(.., D) -> (.., 3D)."""
        return update(x, self.down, self.up, self.groups)

    def product(self) -> Tensor:
        """B A, (3D, D)."""
        return product(self.down, self.up, self.groups)


class LoRA(Method):
    """Parameters: ``vision.BLOCK`` and ``text.BLOCK``, each ``down`` and ``up``. rank: r; scale: s. Raises UsageError below a rank of 1."""

    name = "lora"
    family = "low-rank"
    adapts = "query, key and value of every block of both encoders; can be merged"
    paper = "LoRA, Hu et al., ICLR 2022, arXiv 2106.09685"
    licence = "MIT"
    default_header = "mean"
    default_lr = 6e-4  # TempMe's and DiscoVLA's
    groups = 1

    def __init__(self, shape: Shape, rank: int = 8, scale: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        at_least_one("rank", rank)
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout must lie between 0 and 1, not {dropout}.")
        self.rank, self.scale, self.folded = rank, scale, False
        self.dropout = nn.Dropout(dropout)
        self.vision = nn.ModuleList(self._module(shape.vision_width) for _ in range(shape.vision_depth))
        self.text = nn.ModuleList(self._module(shape.text_width) for _ in range(shape.text_depth))
        self._names = [(i, _names(shape.tensors, True, i)) for i in range(shape.vision_depth)]
        self._text_names = [(i, _names(shape.tensors, False, i)) for i in range(shape.text_depth)]

    def _module(self, width: int) -> nn.Module:
        return LowRank(width, self.rank, self.groups)

    def options(self) -> dict[str, Any]:
        return {"rank": self.rank, "scale": self.scale, "dropout": self.dropout.p}

    def vision_places(self, block: int, context: Context) -> Places:
        return self._places(self.vision[block])

    def text_places(self, block: int, context: Context) -> Places:
        return self._places(self.text[block])

    def unfold(self) -> None:
        self.folded = False

    def _places(self, own: nn.Module) -> Places:
        if self.folded:
            return Places()
        return Places(qkv=lambda h, qkv: qkv + self.scale * own(self.dropout(h)).to(qkv.dtype))

    def fold(self, own: Mapping[str, Tensor], patch: float = 1.0) -> dict[str, Tensor]:
        """``W + patch s B A`` for each projection."""
        self.folded = True
        result: dict[str, Tensor] = {}
        for modules, names in ((self.vision, self._names), (self.text, self._text_names)):
            for block, keys in names:
                module: Any = modules[block]
                update = (patch * self.scale * module.product()).chunk(len(keys))
                result |= {key: own[key] + part.to(own[key]) for key, part in zip(keys, update, strict=True)}
        return result


def _names(tensors: Mapping[str, Any], vision: bool, block: int) -> tuple[str, ...]:
    """The projections of a block, as the backbone names them; empty for a shape without names."""
    start = r"visual\..*" if vision else r"(text\.)?"
    for ends in _PROJECTIONS:
        found = [
            name
            for end in ends
            for name in tensors
            if re.fullmatch(rf"{start}(transformer\.resblocks|blocks)\.{block}\.{re.escape(end)}", name)
        ]
        if len(found) == len(ends):
            return tuple(found)
    return ()
