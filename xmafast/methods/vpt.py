"""VPT, deep: prompts in every vision block (Jia et al., ECCV 2022, arXiv 2203.12119)."""

from __future__ import annotations

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.methods.base import Context
from xmafast.methods.common.prompts import Prompts, deep, near_zero


class VPT(Prompts):
    """Parameters: ``vision`` (blocks, tokens, width)."""

    name = "vpt"
    adapts = "tokens of every vision block"
    paper = "VPT-deep, Jia et al., ECCV 2022, arXiv 2203.12119"
    licence = "CC-BY-NC-4.0"

    def __init__(self, shape: Shape, tokens: int = 5) -> None:
        super().__init__(shape, tokens)
        self.vision = near_zero(shape.vision_depth, tokens, shape.vision_width)

    def vision_places(self, block: int, context: Context) -> Places:
        return deep(self.vision[block], self.prefix)
