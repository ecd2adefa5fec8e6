"""One transformer block of a frozen encoder, with the places where a method plugs in.

A block's forward is written out here once per family of blocks, so that every method sees the same places and the
frozen modules stay as their library made them. With no method attached each line is the library's own line: the
features are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock
from torch import Tensor, nn

Map = Callable[[Tensor], Tensor]


class MapThenNorm:
    """A map that can also do, in one pass, the residual add and the LayerNorm that follow it."""

    def __call__(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def add_norm(self, y: Tensor, x: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
        """``x + self(y)``, and the LayerNorm ``norm`` of it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Places:
    """What a method puts into one block. Tensors are (B, T, D): B frames or captions of T tokens, width D.

    before:          tokens entering the block -> tokens
    qkv:             (LayerNormed tokens, their (B, T, 3D) query-key-value) -> query-key-value
    parallel_attention: (the residual stream that enters LayerNorm and attention, and the LayerNorm of it) -> what is added to the
                     attention's output
    after_attention: the attention's output, before its residual add -> the same shape
    parallel_mlp:    the same for the MLP
    after_mlp:       the MLP's output, before its residual add -> the same shape
    after:           tokens leaving the block -> tokens

    ``before`` may add tokens that ``after`` takes away again; in a causal encoder each token sees those before it.

    after_attention and after_mlp may be a ``MapThenNorm``.
    """

    before: Map | None = None
    qkv: Callable[[Tensor, Tensor], Tensor] | None = None
    parallel_attention: Callable[[Tensor, Tensor], Tensor] | None = None
    after_attention: Map | None = None
    parallel_mlp: Callable[[Tensor, Tensor], Tensor] | None = None
    after_mlp: Map | None = None
    after: Map | None = None


EMPTY = Places()


def clip_block(
    block: Any, x: Tensor, mask: Tensor | None, places: Places = EMPTY, h: Tensor | None = None, following: Any = None
) -> tuple[Tensor, Tensor | None]:
    """One block of open_clip's own transformers: (B, T, D) -> (B, T, D).

    h: ``ln_1(x)`` where the block before has it already. following: the LayerNorm that reads this block's output next; the
    second result is what it gives, where a place came by it on the way.
    """
    if places.before is not None:
        x, h = places.before(x), None
        if mask is not None and x.shape[1] != mask.shape[1]:
            mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, dtype=mask.dtype, device=mask.device).triu_(1)

    if h is None:
        h = block.ln_1(x)
    if places.qkv is not None:
        y = _attention_from_qkv(block, h, mask, places.qkv)
    elif isinstance(block, CustomResidualAttentionBlock):
        y = block.ln_attn(block.attn(h, attn_mask=mask))
    else:
        y = block.attention(h, attn_mask=mask)
    y = block.ls_1(y)
    if places.parallel_attention is not None:
        y = places.after_attention(y) if places.after_attention is not None else y
        assert h is not None
        x = x + (y + places.parallel_attention(x, h))
        h = block.ln_2(x)
    else:
        x, h = _add(x, y, places.after_attention, block.ln_2)

    y = block.ls_2(block.mlp(h))
    if places.parallel_mlp is not None:
        assert h is not None
        y = places.after_mlp(y) if places.after_mlp is not None else y
        x, h = x + (y + places.parallel_mlp(x, h)), None
    else:
        x, h = _add(x, y, places.after_mlp, following)

    if places.after is not None:
        x, h = places.after(x), None
    return x, h


def _add(x: Tensor, y: Tensor, place: Map | None, norm: Any) -> tuple[Tensor, Tensor | None]:
    """The residual add of a sublayer's output y, through its place, and the LayerNorm that reads it (None: not known)."""
    if isinstance(place, MapThenNorm) and norm is not None:
        return place.add_norm(y, x, norm)
    x = x + (y if place is None else place(y))
    return x, None if norm is None else norm(x)


def _attention_from_qkv(block: Any, h: Tensor, mask: Tensor | None, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The attention of a plain block, with its fused projection open to a method."""
    if not isinstance(block, ResidualAttentionBlock):
        raise TypeError(f"the place 'qkv' is not available in a {type(block).__name__}")
    attn = block.attn
    b, t, d = h.shape
    qkv = change(h, F.linear(h, attn.in_proj_weight, attn.in_proj_bias))
    q, k, v = (part.reshape(b, t, attn.num_heads, d // attn.num_heads).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask.to(q.dtype))
    return attn.out_proj(y.transpose(1, 2).reshape(b, t, d))


def run_blocks(blocks: nn.ModuleList, x: Tensor, mask: Tensor | None, places: Callable[[int], Places] | None) -> Tensor:
    """All blocks of one encoder; ``places(i)`` is what the method puts into block i."""
    at = [EMPTY if places is None else places(i) for i in range(len(blocks))]
    following = [block.ln_1 if isinstance(p.after_mlp, MapThenNorm) else None for block, p in zip(blocks[1:], at, strict=False)]
    h = None
    for block, place, norm in zip(blocks, at, [*following, None], strict=True):
        x, h = clip_block(block, x, mask, place, h, norm)
    return x


def causal_mask(mask: Tensor | None, length: int) -> Tensor | None:
    """The part of an additive (T, T) mask that ``length`` tokens need."""
    return None if mask is None else mask[:length, :length]
