"""Learned prompts: tokens put beside those of the input, in every block ("deep") or before the first one.

vpt:        vision, deep (Jia et al., arXiv 2203.12119)
vl-prompt:  vision and text, deep, independent of each other (as the Cross-Modal Adapter's tables have it)
maple:      text, deep; the vision prompts are linear maps of the text's (Khattak et al., arXiv 2210.03117)
coop:       text, before the first block alone: context words after the start of text, before the caption (Zhou et al., arXiv 2109.01134)

Deep prompts stand after the tokens that come before the patches (class token and registers, where there are any) or after the start
of text (where the vocabulary has one), enter a block and are dropped after it, so that each block has its own. In a causal text
encoder every word sees them. Rotary positions do not turn them. Where the encoders differ in depth, vision blocks without a text partner
have prompts of their own under maple. All start at N(0, 0.02).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import EMPTY, Places
from xmafast.errors import UsageError
from xmafast.methods.base import Context, Method, pair_blocks

STD = 0.02


def deep(prompts: Tensor, first: int) -> Places:
    """The place of one block's prompts (n, D), behind the ``first`` tokens."""
    n = len(prompts)

    def before(x: Tensor) -> Tensor:
        return torch.cat([x[:, :first], prompts.to(x.dtype).expand(len(x), -1, -1), x[:, first:]], dim=1)

    def after(x: Tensor) -> Tensor:
        return torch.cat([x[:, :first], x[:, first + n :]], dim=1)

    return Places(before=before, after=after)


def _start(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * STD)


class Prompts(Method):
    """tokens: how many in each place. Raises UsageError below 1."""

    family = "prompt"
    licence = "MIT"
    fixed_tokens = True
    scalable = False
    default_header = "text-conditioned"
    default_lr = 1e-3

    def __init__(self, shape: Shape, tokens: int) -> None:
        super().__init__()
        if tokens < 1:
            raise UsageError(f"tokens must be at least 1, not {tokens}.")
        self.tokens, self.prefix, self.start = tokens, shape.prefix, shape.start

    def options(self) -> dict[str, Any]:
        return {"tokens": self.tokens}

    def vision_places(self, block: int, context: Context) -> Places:
        return EMPTY

    def text_places(self, block: int, context: Context) -> Places:
        return EMPTY


class VPT(Prompts):
    """Parameters: ``vision`` (blocks, tokens, width)."""

    name = "vpt"
    adapts = "tokens of every vision block"
    paper = "VPT-deep, Jia et al., ECCV 2022, arXiv 2203.12119"
    licence = "CC-BY-NC-4.0"

    def __init__(self, shape: Shape, tokens: int = 5) -> None:
        super().__init__(shape, tokens)
        self.vision = _start(shape.vision_depth, tokens, shape.vision_width)

    def vision_places(self, block: int, context: Context) -> Places:
        return deep(self.vision[block], self.prefix)


class VLPrompt(VPT):
    """Parameters: ``vision`` and ``text`` (blocks, tokens, width)."""

    name = "vl-prompt"
    adapts = "tokens of every block of both encoders"
    paper = "VL-Prompt, a baseline of Jiang et al., arXiv 2211.09623"
    licence = "none published"

    def __init__(self, shape: Shape, tokens: int = 5) -> None:
        super().__init__(shape, tokens)
        self.text = _start(shape.text_depth, tokens, shape.text_width)

    def text_places(self, block: int, context: Context) -> Places:
        return deep(self.text[block], self.start)


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
        self.text = _start(shape.text_depth, tokens, shape.text_width)
        self.coupling = nn.ModuleList(nn.Linear(shape.text_width, shape.vision_width) for _ in pairs)
        self.vision = _start(len(self._alone), tokens, shape.vision_width) if self._alone else None

    def vision_places(self, block: int, context: Context) -> Places:
        if block in self._partner:
            pair, text = self._partner[block]
            return deep(self.coupling[pair](self.text[text]), self.prefix)
        assert self.vision is not None
        return deep(self.vision[self._alone[block]], self.prefix)

    def text_places(self, block: int, context: Context) -> Places:
        return deep(self.text[block], self.start)


class CoOp(Prompts):
    """Parameters: ``text`` (tokens, width), context words that take their positions; the caption's move back by as many."""

    name = "coop"
    adapts = "context words before the first text block"
    fixed_tokens = False  # of images
    paper = "CoOp, Zhou et al., IJCV 2022, arXiv 2109.01134"

    def __init__(self, shape: Shape, tokens: int = 4) -> None:
        super().__init__(shape, tokens)
        self.inserted = tokens
        self.text = _start(tokens, shape.text_width)

    def text_places(self, block: int, context: Context) -> Places:
        if block:
            return EMPTY
        assert context.positions is not None
        first, last = self.start, self.start + self.tokens
        words = self.text + context.positions[first:last]

        def before(x: Tensor) -> Tensor:
            return torch.cat([x[:, :first], words.to(x.dtype).expand(len(x), -1, -1), x[:, last:]], dim=1)

        return Places(before=before)
