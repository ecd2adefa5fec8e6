"""MaPLe (Khattak et al., CVPR 2023, arXiv 2210.03117): deep prompts of texts, of which the vision prompts are linear maps.

Where the encoders differ in depth, vision blocks without a text partner have prompts of their own.
"""

from __future__ import annotations

from torch import nn

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.methods.base import Context, pair_blocks
from xmafast.methods.common.prompts import Prompts, deep, near_zero


class MaPLe(Prompts):
    """Parameters: ``text`` (blocks, tokens, width), ``coupling.PAIR``, and ``vision`` for blocks without a partner."""

    name = "maple"
    adapts = "tokens of every text block, mapped to the vision block"
    paper = "MaPLe, Khattak et al., CVPR 2023, arXiv 2210.03117"

    def __init__(self, shape: Shape, tokens: int = 5) -> None:
        super().__init__(shape, tokens)
        pairs = pair_blocks(shape.vision_depth, shape.text_depth)
        self._partner = {v: (i, t) for i, (v, t) in enumerate(pairs)}
        self._alone = {v: i for i, v in enumerate(v for v in range(shape.vision_depth) if v not in self._partner)}
        self.text = near_zero(shape.text_depth, tokens, shape.text_width)
        self.coupling = nn.ModuleList(nn.Linear(shape.text_width, shape.vision_width) for _ in pairs)
        self.vision = near_zero(len(self._alone), tokens, shape.vision_width) if self._alone else None

    def vision_places(self, block: int, context: Context) -> Places:
        if block in self._partner:
            pair, text = self._partner[block]
            return deep(self.coupling[pair](self.text[text]), self.prefix)
        assert self.vision is not None
        return deep(self.vision[self._alone[block]], self.prefix)

    def text_places(self, block: int, context: Context) -> Places:
        return deep(self.text[block], self.start)
