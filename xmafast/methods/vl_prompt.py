"""VL-Prompt: deep prompts in vision and text, independent of each other, as the Cross-Modal Adapter's tables have it."""

from __future__ import annotations

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.methods.base import Context
from xmafast.methods.common.prompts import deep, near_zero
from xmafast.methods.vpt import VPT


class VLPrompt(VPT):
    """Parameters: ``vision`` and ``text`` (blocks, tokens, width)."""

    name = "vl-prompt"
    adapts = "tokens of every block of both encoders"
    paper = "VL-Prompt, a baseline of Jiang et al., arXiv 2211.09623"
    licence = "none published"

    def __init__(self, shape: Shape, tokens: int = 5) -> None:
        super().__init__(shape, tokens)
        self.text = near_zero(shape.text_depth, tokens, shape.text_width)

    def text_places(self, block: int, context: Context) -> Places:
        return deep(self.text[block], self.start)
