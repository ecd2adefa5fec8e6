"""CLIP-LoRA (Zanella and Ben Ayed, CVPR workshops 2024, arXiv 2405.18541).

    W x + s B A x,   an A (r, D) and a B (D, r) for each of query, key and value

s = alpha / sqrt(r), r = 2, dropout 0.25 on x; its code divides by the root, its paper by r. Otherwise as ``lora``.
"""

from __future__ import annotations

import math
from typing import Any

from xmafast.backbone import Shape
from xmafast.methods.lora import LoRA


class CLIPLoRA(LoRA):
    """rank: r; alpha: of the scale alpha / sqrt(r)."""

    name = "clip-lora"
    paper = "CLIP-LoRA, Zanella and Ben Ayed, CVPR workshops 2024, arXiv 2405.18541"
    licence = "none given"
    default_lr = 2e-4
    groups = 3

    def __init__(self, shape: Shape, rank: int = 2, alpha: float = 1.0, dropout: float = 0.25) -> None:
        super().__init__(shape, rank, alpha / math.sqrt(max(1, rank)), dropout)
        self.alpha = alpha

    def options(self) -> dict[str, Any]:
        return {"rank": self.rank, "alpha": self.alpha, "dropout": self.dropout.p}
