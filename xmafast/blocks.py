"""One transformer block of a frozen encoder, with the places where a method plugs in.

A block's forward is written out here once per family of blocks (open_clip's own, timm's, EVA's with the norm before and after), so
that every method sees the same places and the frozen modules stay as their library made them. With no method attached each line is
the library's own line: the features are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock
from timm.layers import apply_rot_embed_cat
from timm.models.eva import EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from xmafast.frozen_mlp import frozen_mlp
from xmafast.frozen_mlp import takes as frozen_mlp_takes

Map = Callable[[Tensor], Tensor]
Reads = int | Tensor  # which token of a sequence is read at the end: the same of all, or (B,)


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
    key_bias:        -> what is added to the attention's logits, (B, 1, 1, T) over keys, or None
    attended:        (q, k, v, and the attention's result, (B, heads, T, D / heads) each) -> the result, before its output projection;
                     where it appends tokens, ``after_attention`` takes them away
    parallel_attention: (the residual stream that enters LayerNorm and attention, and the LayerNorm of it) -> what is added to the
                     attention's output; where the norm stands after the attention, the second is the stream as well
    after_attention: the attention's output, before its residual add -> the same shape
    between:         tokens between the attention's residual add and the MLP -> tokens
    parallel_mlp:    as parallel_attention, for the MLP
    after_mlp:       the MLP's output, before its residual add -> the same shape
    after:           tokens leaving the block -> tokens

    ``before`` may add tokens, after those that stand before the patches or words (``Shape.prefix``, ``Shape.start``), that ``after``
    takes away again; in a causal encoder each token sees those before it, and rotary positions do not turn them.

    after_attention and after_mlp may be a ``MapThenNorm``.

    tokenwise: what stands behind the attention, and beside it, makes of each token what it would make of it alone.
    """

    before: Map | None = None
    qkv: Callable[[Tensor, Tensor], Tensor] | None = None
    key_bias: Callable[[], Tensor | None] | None = None
    attended: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None
    parallel_attention: Callable[[Tensor, Tensor], Tensor] | None = None
    after_attention: Map | None = None
    between: Map | None = None
    parallel_mlp: Callable[[Tensor, Tensor], Tensor] | None = None
    after_mlp: Map | None = None
    after: Map | None = None
    tokenwise: bool = False

    @property
    def by_token(self) -> bool:
        """``tokenwise``, or nothing of the kind is there."""
        added = (self.parallel_attention, self.after_attention, self.parallel_mlp, self.after_mlp)
        return self.tokenwise or all(place is None for place in added)

    @property
    def read_alone(self) -> bool:
        """Whether one token of this block's output can be had without the others, but for the keys and values that it attends to."""
        moved = (self.before, self.key_bias, self.attended, self.between, self.after)
        return self.by_token and all(place is None for place in moved)

    @property
    def open_attention(self) -> bool:
        """Whether a method acts inside the attention, so that its steps are taken one by one."""
        return self.qkv is not None or self.key_bias is not None or self.attended is not None


EMPTY = Places()


def clip_block(
    block: Any, x: Tensor, mask: Tensor | None, places: Places = EMPTY, h: Tensor | None = None, following: Any = None
) -> tuple[Tensor, Tensor | None]:
    """One block of open_clip's own transformers: (B, T, D) -> (B, T, D).

    mask: additive, (T, T). h: ``ln_1(x)`` where the block before has it already. following: the LayerNorm that reads this block's
    output next; the second result is what it gives, where a place came by it on the way.
    """
    if places.before is not None:
        x, h = places.before(x), None
        if mask is not None and x.shape[1] != mask.shape[1]:
            mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, dtype=mask.dtype, device=mask.device).triu_(1)

    h = block.ln_1(x) if h is None else h
    if places.open_attention or _in_training(block, x):
        # open in training too: torch's own gives its projection (T, B, D), whose gradient is then T small products in place of one
        y = _clip_attention(block, h, mask, places)
    elif isinstance(block, CustomResidualAttentionBlock):
        y = block.ln_attn(block.attn(h, attn_mask=mask))
    else:
        y = block.attention(h, attn_mask=mask)
    x, h = _first_residual(x, h, block.ls_1(y), places, block.ln_2)

    y = block.ls_2(_clip_mlp(block, h))
    x, h = _residual(x, h, y, places.parallel_mlp, places.after_mlp, following)

    if places.after is not None:
        x, h = places.after(x), None
    return x, h


def read_block(
    reads: Reads, block: Any, x: Tensor, mask: Tensor | None, places: Places, h: Tensor | None, following: Any
) -> tuple[Tensor, None]:
    """``clip_block`` for the one token that is read of each sequence: (B, T, D) -> (B, 1, D). For places that are ``read_alone``."""
    h = block.ln_1(x) if h is None else h
    x, own = _token(x, reads), _token(h, reads)
    if mask is not None:
        mask = mask[reads : reads + 1] if isinstance(reads, int) else mask[reads].unsqueeze(1).unsqueeze(1)
    y = _clip_attention(block, h, mask, places, reads)
    x, h = _first_residual(x, own, block.ls_1(y), places, block.ln_2)
    x, _ = _residual(x, h, block.ls_2(_clip_mlp(block, h)), places.parallel_mlp, places.after_mlp, None)
    return x, None


def _token(x: Tensor, at: Reads) -> Tensor:
    """(B, T, D) -> (B, 1, D), the token that stands there in each sequence."""
    return x[:, at : at + 1] if isinstance(at, int) else x[torch.arange(len(x), device=x.device), at].unsqueeze(1)


def timm_block(
    block: Any, x: Tensor, rope: None, places: Places = EMPTY, h: Tensor | None = None, following: Any = None
) -> tuple[Tensor, Tensor | None]:
    """One block of timm's VisionTransformer; h and following as in ``clip_block``."""
    if places.before is not None:
        x, h = places.before(x), None

    h = block.norm1(x) if h is None else h
    y = _timm_attention(block.attn, h, None, places) if places.open_attention else block.attn(h)
    x, h = _first_residual(x, h, block.drop_path1(block.ls1(y)), places, block.norm2)

    y = block.drop_path2(block.ls2(block.mlp(h)))
    x, h = _residual(x, h, y, places.parallel_mlp, places.after_mlp, following)

    if places.after is not None:
        x, h = places.after(x), None
    return x, h


def eva_block(
    block: Any, x: Tensor, rope: Tensor | None, places: Places = EMPTY, h: Tensor | None = None, following: Any = None
) -> tuple[Tensor, Tensor | None]:
    """One block of timm's Eva (EVA-02, PE-Core). rope: the patches' rotary positions (P, 2 d); h and following as in ``clip_block``."""
    if places.before is not None:
        tokens = x.shape[1]
        x, h = places.before(x), None
        rope = _unturned(rope, x.shape[1] - tokens)

    h = block.norm1(x) if h is None else h
    y = _timm_attention(block.attn, h, rope, places) if places.open_attention else block.attn(h, rope=rope)
    y = y if block.gamma_1 is None else block.gamma_1 * y
    x, h = _first_residual(x, h, block.drop_path1(y), places, block.norm2)

    y = block.mlp(h)
    y = y if block.gamma_2 is None else block.gamma_2 * y
    x, h = _residual(x, h, block.drop_path2(y), places.parallel_mlp, places.after_mlp, following)

    if places.after is not None:
        x, h = places.after(x), None
    return x, h


def eva_post_norm_block(
    block: Any, x: Tensor, rope: Tensor | None, places: Places = EMPTY, h: None = None, following: None = None
) -> tuple[Tensor, None]:
    """One block of timm's Eva with its norms after attention and MLP (EVA-02-E): the places lie after those norms."""
    if places.before is not None:
        tokens = x.shape[1]
        x = places.before(x)
        rope = _unturned(rope, x.shape[1] - tokens)

    y = _timm_attention(block.attn, x, rope, places) if places.open_attention else block.attn(x, rope=rope)
    x, _ = _first_residual(x, x, block.drop_path1(block.norm1(y)), places, None)

    y = block.drop_path2(block.norm2(block.mlp(x)))
    x, _ = _residual(x, x, y, places.parallel_mlp, places.after_mlp, None)

    return x if places.after is None else places.after(x), None


# a block's type -> its forward, and the name of the LayerNorm that reads its input first
FAMILIES: dict[type[nn.Module], tuple[Callable[..., tuple[Tensor, Tensor | None]], str | None]] = {
    ResidualAttentionBlock: (clip_block, "ln_1"),
    CustomResidualAttentionBlock: (clip_block, "ln_1"),
    Block: (timm_block, "norm1"),
    EvaBlock: (eva_block, "norm1"),
    EvaBlockPostNorm: (eva_post_norm_block, None),
}


def run_blocks(
    blocks: Iterable[nn.Module],
    x: Tensor,
    attends: Tensor | None,
    places: Callable[[int], Places] | None,
    reads: Reads | None = None,
) -> Tensor:
    """Blocks of one encoder, one after the other; ``places(i)`` is what the method puts into block i.

    attends: what their attention takes beside the tokens, an additive mask (T, T) or rotary positions. reads: the token that the encoder's
    embedding is read at, where there is one: the result may then be that token alone, (B, 1, D), which in training spares the rest of the
    last block, and its backward pass.
    """
    blocks = list(blocks)
    at = [EMPTY if places is None else places(i) for i in range(len(blocks))]
    following = [_first_norm(block) if isinstance(p.after_mlp, MapThenNorm) else None for block, p in zip(blocks[1:], at, strict=False)]
    h = None
    for block, place, norm in zip(blocks, at, [*following, None][: len(blocks)], strict=True):
        forward, _ = FAMILIES[type(block)]
        if reads is not None and block is blocks[-1] and _read_alone(block, x, place):
            forward = partial(read_block, reads)
        if _CHECKPOINTED.get() and torch.is_grad_enabled():
            x, h = _again_in_backward(forward, block, x, attends, place, h, norm)
        else:
            x, h = forward(block, x, attends, place, h, norm)
    return x


def _in_training(block: nn.Module, x: Tensor) -> bool:
    """Whether a graph is built through one of open_clip's plain blocks: what evaluation gives is the library's own, to the bit."""
    if not torch.is_grad_enabled() or type(block) is not ResidualAttentionBlock:
        return False
    return x.requires_grad or any(p.requires_grad for p in block.parameters())


def _read_alone(block: nn.Module, x: Tensor, places: Places) -> bool:
    """Whether the last block may be run for the token that is read alone."""
    return places.read_alone and _in_training(block, x)


_CHECKPOINTED = ContextVar("checkpointed", default=False)


@contextmanager
def checkpointed(on: bool = True) -> Iterator[None]:
    """Within it, blocks keep their input alone for the backward pass, and are run again there: the same gradients, in less memory.

    Not for methods that keep count from block to block (``Method.moves_tokens``), whose blocks do not do the same twice.
    """
    token = _CHECKPOINTED.set(on)
    try:
        yield
    finally:
        _CHECKPOINTED.reset(token)


class _Again(nn.Module):
    """A block and the norm after it, to be run with the weights that they had the first time, which a method may have put there."""

    def __init__(self, forward: Callable[..., Any], block: nn.Module, norm: Any) -> None:
        super().__init__()
        self.run, self.block, self.norm = forward, block, norm

    def forward(self, x: Tensor, attends: Tensor | None, place: Places, h: Tensor | None) -> Any:
        return self.run(self.block, x, attends, place, h, self.norm)


def _again_in_backward(forward: Any, block: nn.Module, x: Tensor, attends: Tensor | None, place: Places, h: Any, norm: Any) -> Any:
    both = _Again(forward, block, norm)
    weights: dict[str, Tensor] = dict(both.named_parameters())

    def run(x: Tensor, h: Tensor | None) -> Any:
        return functional_call(both, weights, (x, attends, place, h))

    return checkpoint(run, x, h, use_reentrant=False)


def causal_mask(mask: Tensor | None, length: int) -> Tensor | None:
    """The part of an additive (T, T) mask that ``length`` tokens need."""
    return None if mask is None else mask[:length, :length]


def _first_norm(block: nn.Module) -> Any:
    _, name = FAMILIES[type(block)]
    return None if name is None else getattr(block, name)


def _residual(x: Tensor, h: Any, y: Tensor, parallel: Any, after: Map | None, norm: Any) -> tuple[Tensor, Any]:
    """The residual add of a sublayer's output y, which it made of h, through its places; and ``norm`` of the sum (None: not known)."""
    if parallel is None and isinstance(after, MapThenNorm) and isinstance(norm, nn.LayerNorm):
        return after.add_norm(y, x, norm)
    y = y if after is None else after(y)
    x = x + (y if parallel is None else y + parallel(x, h))
    return x, None if norm is None else norm(x)


def _first_residual(x: Tensor, h: Any, y: Tensor, places: Places, norm: Any) -> tuple[Tensor, Any]:
    """The attention's, and what a place makes of the tokens before the MLP's LayerNorm ``norm``."""
    x, h = _residual(x, h, y, places.parallel_attention, places.after_attention, norm if places.between is None else None)
    if places.between is None:
        return x, h
    x = places.between(x)
    return x, None if norm is None else norm(x)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, places: Places) -> Tensor:
    """Softmax attention of (B, heads, T, d) each, under an additive mask and a method's bias."""
    bias = None if places.key_bias is None else places.key_bias()
    if bias is not None:
        mask = bias if mask is None else mask + bias
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask.to(q.dtype))
    return y if places.attended is None else places.attended(q, k, v, y)


def _heads(parts: Sequence[Tensor], width: int) -> list[Tensor]:
    """(B, T, heads * width) each -> (B, heads, T, width)."""
    return [part.unflatten(-1, (-1, width)).transpose(1, 2) for part in parts]


def _clip_mlp(block: Any, h: Tensor) -> Tensor:
    """The MLP of open_clip's blocks."""
    y: Tensor = frozen_mlp(block.mlp, h) if frozen_mlp_takes(block.mlp, h) else block.mlp(h)
    return y


def _clip_attention(block: Any, h: Tensor, mask: Tensor | None, places: Places, reads: Reads | None = None) -> Tensor:
    """The attention of open_clip's blocks, step by step; (B, 1, D) where one token is read, whose row of the mask is given."""
    attn, custom = block.attn, isinstance(block, CustomResidualAttentionBlock)
    if custom and attn.logit_scale is not None:
        raise TypeError("the places inside the attention are not available where it is a scaled cosine")
    if reads is not None and places.qkv is None:  # only that token asks
        d = attn.embed_dim
        own = F.linear(_token(h, reads), attn.in_proj_weight[:d], attn.in_proj_bias[:d])
        parts = (own, *F.linear(h, attn.in_proj_weight[d:], attn.in_proj_bias[d:]).chunk(2, dim=-1))
    else:
        qkv = F.linear(h, attn.in_proj_weight, attn.in_proj_bias)
        qkv = qkv if places.qkv is None else places.qkv(h, qkv)
        own, *others = qkv.chunk(3, dim=-1)
        parts = (own if reads is None else _token(own, reads), *others)
    q, k, v = _heads(parts, attn.head_dim)
    if custom:
        q, k = attn.ln_q(q), attn.ln_k(k)
    y = _attend(q, k, v, mask, places)
    out: Tensor
    if not custom:
        out = attn.out_proj(y.transpose(1, 2).flatten(2))
        return out
    y = y if attn.head_scale is None else y * attn.head_scale
    out = block.ln_attn(attn.out_proj(attn.ln_inner(y.transpose(1, 2).flatten(2))))
    return out


def _timm_attention(attn: Any, h: Tensor, rope: Tensor | None, places: Places) -> Tensor:
    """The attention of timm's blocks, step by step, its projection fused or split in three."""
    if attn.qkv is None:
        parts = [attn.q_proj(h), attn.k_proj(h), attn.v_proj(h)]
    elif getattr(attn, "q_bias", None) is not None:
        parts = list(F.linear(h, attn.qkv.weight, torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])).chunk(3, dim=-1))
    else:
        parts = list(attn.qkv(h).chunk(3, dim=-1))
    qkv = torch.cat(parts, dim=-1)
    qkv = qkv if places.qkv is None else places.qkv(h, qkv)
    q, k, v = _heads(qkv.split([part.shape[-1] for part in parts], dim=-1), attn.head_dim)
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is not None:
        q, k = (_turned(part, rope, attn).type_as(v) for part in (q, k))
    y = attn.norm(_attend(q, k, v, None, places).transpose(1, 2).flatten(2))
    gate = getattr(attn, "gate", None)
    y = y if gate is None else y * gate(h).sigmoid()
    out: Tensor = attn.proj_drop(attn.proj(y))
    return out


def _turned(x: Tensor, rope: Tensor, attn: Any) -> Tensor:
    """Queries or keys (B, heads, T, d), turned by their rotary positions but for the tokens before the patches."""
    half = {"half": True} if getattr(attn, "rotate_half", False) else {}
    prefix = attn.num_prefix_tokens
    return torch.cat([x[:, :, :prefix], apply_rot_embed_cat(x[:, :, prefix:], rope, **half)], dim=2)


def _unturned(rope: Tensor | None, tokens: int) -> Tensor | None:
    """Rotary positions (P, 2 d), sines and cosines, with as many in front that turn nothing."""
    if rope is None or not tokens:
        return rope
    sine, cosine = rope.new_zeros(tokens, rope.shape[-1] // 2), rope.new_ones(tokens, rope.shape[-1] // 2)
    return torch.cat([torch.cat([sine, cosine], dim=-1), rope])
