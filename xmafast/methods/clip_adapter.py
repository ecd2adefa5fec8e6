"""CLIP-Adapter (Gao et al., IJCV 2024, arXiv 2110.04544).

    f' = a ReLU(W2 ReLU(W1 f)) + (1 - a) f,  W1 (D / reduction, D), W2 (D, D / reduction), no biases

Nothing is normalised before, and the last ReLU makes what is added non-negative. With reduction 4, a tower of width 512 has 131,072
parameters. The paper writes it for both towers, the released code has the vision tower's alone (``towers``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.errors import UsageError, unknown
from xmafast.methods.common.on_features import FeatureMethod

TOWERS = ("both", "vision", "text")


class Bottleneck(nn.Module):
    """a ReLU(W2 ReLU(W1 f)) + (1 - a) f, as PyTorch starts two linear maps: (..., D) -> (..., D)."""

    def __init__(self, width: int, hidden: int, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.down = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(hidden, width, bias=False)

    def forward(self, f: Tensor) -> Tensor:
        return self.ratio * torch.relu(self.up(torch.relu(self.down(f)))) + (1 - self.ratio) * f


class CLIPAdapter(FeatureMethod):
    """Parameters: ``vision`` and ``text``, ``down`` and ``up`` each.

    reduction: how many times narrower than the embedding the hidden layer is. ratio: a, from 0 (the frozen model) to 1. towers: both,
    vision or text. Raises UsageError outside these.
    """

    name = "clip-adapter"
    adapts = "final embeddings, a bottleneck mixed with what it read"
    paper = "CLIP-Adapter, Gao et al., IJCV 2024, arXiv 2110.04544"

    def __init__(self, shape: Shape, reduction: int = 4, ratio: float = 0.2, towers: str = "both") -> None:
        super().__init__()
        if not 1 <= reduction <= shape.embed_dim:
            raise UsageError(f"reduction must lie between 1 and {shape.embed_dim}, the width of the embeddings, not {reduction}.")
        if not 0 <= ratio <= 1:
            raise UsageError(f"ratio must lie between 0, the frozen model, and 1, not {ratio}.")
        if towers not in TOWERS:
            raise unknown("towers", towers, TOWERS)
        self.reduction, self.ratio, self.towers = reduction, ratio, towers

        def own(tower: str) -> Bottleneck | None:
            return Bottleneck(shape.embed_dim, shape.embed_dim // reduction, ratio) if towers in ("both", tower) else None

        self.vision, self.text = own("vision"), own("text")

    def options(self) -> dict[str, Any]:
        return {"reduction": self.reduction, "ratio": self.ratio, "towers": self.towers}

    def on_frames(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        return frames if self.vision is None else self.vision(frames)

    def on_text(self, text: Tensor) -> Tensor:
        return text if self.text is None else self.text(text)
