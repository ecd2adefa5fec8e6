"""Learned prompts: tokens put beside those of the input, in every block ("deep") or before the first one.

Deep prompts stand after the tokens that come before the patches (class token and registers, where there are any) or after the start
of text (where the vocabulary has one), enter a block and are dropped after it, so that each block has its own. In a causal text
encoder every word sees them. Rotary positions do not turn them. All start at N(0, 0.02).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import EMPTY, Places
from xmafast.methods.base import Context, Method, at_least_one

STD = 0.02


def near_zero(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * STD)


def deep(prompts: Tensor, first: int) -> Places:
    """The place of one block's prompts (n, D), behind the ``first`` tokens."""
    n = len(prompts)

    def before(x: Tensor) -> Tensor:
        return torch.cat([x[:, :first], prompts.to(x.dtype).expand(len(x), -1, -1), x[:, first:]], dim=1)

    def after(x: Tensor) -> Tensor:
        return torch.cat([x[:, :first], x[:, first + n :]], dim=1)

    return Places(before=before, after=after)


def around(first: Tensor, last: Tensor, start: int, ends: Tensor) -> Places:
    """Prompts (n, D) after the first ``start`` tokens of each text, and (m, D) before its end, ``ends`` (B,) in the text as it came."""
    n, m = len(first), len(last)

    def order(tokens: int) -> Tensor:
        """Where each token of the longer text comes from in [tokens; last], (B, tokens + m)."""
        end, i = (ends + n)[:, None], torch.arange(tokens + m, device=ends.device)[None]
        return torch.where(i < end, i, torch.where(i < end + m, i - end + tokens, i - m))

    def before(x: Tensor) -> Tensor:
        b, d = len(x), x.shape[-1]
        x = torch.cat([x[:, :start], first.to(x.dtype).expand(b, -1, -1), x[:, start:]], dim=1)
        tokens = x.shape[1]
        x = torch.cat([x, last.to(x.dtype).expand(b, -1, -1)], dim=1)
        return x.gather(1, order(tokens)[..., None].expand(-1, -1, d)) if m else x

    def after(x: Tensor) -> Tensor:
        b, d, tokens = len(x), x.shape[-1], x.shape[1] - n - m
        i = torch.arange(tokens, device=x.device)[None].expand(b, -1)
        i = i + n * (i >= start) + m * (i >= ends[:, None])
        return x.gather(1, i[..., None].expand(-1, -1, d))

    return Places(before=before, after=after)


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
        at_least_one("tokens", tokens)
        self.tokens, self.prefix, self.start = tokens, shape.prefix, shape.start

    def options(self) -> dict[str, Any]:
        return {"tokens": self.tokens}

    def vision_places(self, block: int, context: Context) -> Places:
        return EMPTY

    def text_places(self, block: int, context: Context) -> Places:
        return EMPTY


class RetrievalPrompts(Method):
    """Prompts of several kinds, with a size for each: those that were made for retrieval (VoP, DGL)."""

    family = "prompt"
    default_header = "mean"
    default_lr = 2e-3
    fixed_tokens = True
    scalable = False

    def __init__(self, shape: Shape, **sizes: int) -> None:
        super().__init__()
        for name, size in sizes.items():
            at_least_one(name, size)
        self.prefix, self.start, self.sizes = shape.prefix, shape.start, sizes

    def options(self) -> dict[str, Any]:
        return dict(self.sizes)
