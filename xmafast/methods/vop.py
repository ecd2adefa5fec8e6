"""VoP, the basic form (Huang et al., CVPR 2023, arXiv 2211.12764).

``vision_tokens`` in every vision block, and in every text block ``text_tokens`` after the start of the text and as many before its end:
122,880 parameters on B/32 and B/16. The released code reads a text's embedding beside its end; here it is the end's.
"""

from __future__ import annotations

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.methods.base import Context
from xmafast.methods.common.prompts import RetrievalPrompts, around, deep, near_zero


class VoP(RetrievalPrompts):
    """Parameters: ``vision`` (blocks, tokens, width), ``text`` (blocks, 2 tokens, width): after the start, then before the end."""

    name = "vop"
    adapts = "tokens of every block of both encoders, around the caption"
    paper = "VoP, Huang et al., CVPR 2023, arXiv 2211.12764"
    licence = "none published; a port under Apache-2.0"

    def __init__(self, shape: Shape, vision_tokens: int = 8, text_tokens: int = 4) -> None:
        super().__init__(shape, vision_tokens=vision_tokens, text_tokens=text_tokens)
        self.vision = near_zero(shape.vision_depth, vision_tokens, shape.vision_width)
        self.text = near_zero(shape.text_depth, 2 * text_tokens, shape.text_width)

    def vision_places(self, block: int, context: Context) -> Places:
        return deep(self.vision[block], self.prefix)

    def text_places(self, block: int, context: Context) -> Places:
        assert context.ends is not None
        first, last = self.text[block].chunk(2)
        return around(first, last, self.start, context.ends)
