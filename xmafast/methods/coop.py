"""CoOp (Zhou et al., IJCV 2022, arXiv 2109.01134): context words before the caption, at the first block alone."""

from __future__ import annotations

import torch
from torch import Tensor

from xmafast.backbone import Shape
from xmafast.blocks import EMPTY, Places
from xmafast.methods.base import Context
from xmafast.methods.common.prompts import Prompts, near_zero


class CoOp(Prompts):
    """Parameters: ``text`` (tokens, width), context words that take their positions; the caption's move back by as many."""

    name = "coop"
    adapts = "context words before the first text block"
    fixed_tokens = False  # of images
    paper = "CoOp, Zhou et al., IJCV 2022, arXiv 2109.01134"

    def __init__(self, shape: Shape, tokens: int = 4) -> None:
        super().__init__(shape, tokens)
        self.inserted = tokens
        self.text = near_zero(tokens, shape.text_width)

    def text_places(self, block: int, context: Context) -> Places:
        if block:
            return EMPTY
        assert context.positions is not None
        first, last = self.start, self.start + self.tokens
        words = self.text + context.positions[first:last]

        def before(x: Tensor) -> Tensor:
            return torch.cat([x[:, :first], words.to(x.dtype).expand(len(x), -1, -1), x[:, last:]], dim=1)

        return Places(before=before)
