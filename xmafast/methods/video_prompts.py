"""Prompts made for retrieval: deep ones in both encoders, global ones that see the whole video, coupled ones that agree with themselves.

vop:      ``vision_tokens`` in every vision block, and in every text block ``text_tokens`` after the start of the text and as many before
          its end (Huang et al., CVPR 2023, arXiv 2211.12764, the basic form): 122,880 parameters on B/32 and B/16. The released code reads
          a text's embedding beside its end; here it is the end's.
dgl:      one set of latents P_l a vision block (Yang et al., AAAI 2024, arXiv 2401.10588, the linear form), from its formulas. They are
          the local prompts of each frame; linear maps A P_l and B P_l of them are the text's, after its start and before its end. Global
          prompts G, one set a video, pass through all blocks:
              frame's tokens attend to   [G; the same frame's tokens, its local prompts among them]
              G attends to               [G; the tokens of all frames]
          and the first of G, after the last block, is every frame's embedding.
coupled:  MaPLe's prompts in the first blocks alone, with a consistency term (what carries over to a dual encoder from APoLLo, Chowdhury
          et al., EMNLP 2023, whose adapter looks at the other modality and at the batch):
              L + consistency (2 - cos(t, t~) - cos(v, v~)) / 2
          where t~ is of the caption with each word dropped at ``drop``, and v~ is of the mirrored frames.

All prompts start at N(0, 0.02).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import EMPTY, Places
from xmafast.errors import UsageError
from xmafast.methods.base import Batch, Context, Method
from xmafast.methods.prompts import MaPLe, _start, deep

MASKED = -1e4  # a finite logit, so that a video of padding alone is no NaN


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


class RetrievalPrompts(Method):
    family = "prompt"
    default_header = "mean"
    default_lr = 2e-3
    fixed_tokens = True
    scalable = False

    def __init__(self, shape: Shape, **sizes: int) -> None:
        super().__init__()
        for name, size in sizes.items():
            if size < 1:
                raise UsageError(f"{name} must be at least 1, not {size}.")
        self.prefix, self.start, self.sizes = shape.prefix, shape.start, sizes

    def options(self) -> dict[str, Any]:
        return dict(self.sizes)


class VoP(RetrievalPrompts):
    """Parameters: ``vision`` (blocks, tokens, width), ``text`` (blocks, 2 tokens, width): after the start, then before the end."""

    name = "vop"
    adapts = "tokens of every block of both encoders, around the caption"
    paper = "VoP, Huang et al., CVPR 2023, arXiv 2211.12764"
    licence = "none published; a port under Apache-2.0"

    def __init__(self, shape: Shape, vision_tokens: int = 8, text_tokens: int = 4) -> None:
        super().__init__(shape, vision_tokens=vision_tokens, text_tokens=text_tokens)
        self.vision = _start(shape.vision_depth, vision_tokens, shape.vision_width)
        self.text = _start(shape.text_depth, 2 * text_tokens, shape.text_width)

    def vision_places(self, block: int, context: Context) -> Places:
        return deep(self.vision[block], self.prefix)

    def text_places(self, block: int, context: Context) -> Places:
        assert context.ends is not None
        first, last = self.text[block].chunk(2)
        return around(first, last, self.start, context.ends)


class DGL(RetrievalPrompts):
    """Parameters: ``latents`` (vision blocks, local, width), ``after_start`` and ``before_end`` (the maps A and B), ``globals`` (G, width).

    On B/32 and B/16 with four of each 827,392 parameters. Text block i of Lt takes the latents of the vision block that it pairs with.
    """

    name = "dgl"
    adapts = "tokens of every block of both encoders from shared latents, and global tokens over all frames"
    paper = "DGL, Yang et al., AAAI 2024, arXiv 2401.10588"
    licence = "CC-BY-NC-4.0"
    rewrites_attention = True

    def __init__(self, shape: Shape, local_tokens: int = 4, global_tokens: int = 4) -> None:
        super().__init__(shape, local_tokens=local_tokens, global_tokens=global_tokens)
        if shape.rotary:
            raise UsageError("dgl has no place for its global tokens here: this backbone's image tower has rotary positions.")
        self.depth, self.text_depth = shape.vision_depth, shape.text_depth
        self.latents = _start(shape.vision_depth, local_tokens, shape.vision_width)
        self.after_start = nn.Linear(shape.vision_width, shape.text_width)
        self.before_end = nn.Linear(shape.vision_width, shape.text_width)
        self.globals = _start(global_tokens, shape.vision_width)

    def vision_places(self, block: int, context: Context) -> Places:
        local, g = deep(self.latents[block], self.prefix), len(self.globals)

        def before(x: Tensor) -> Tensor:
            if block == 0:
                x = torch.cat([x, self.globals.to(x.dtype).expand(len(x), -1, -1)], dim=1)
            return local.before(x)  # type: ignore[misc]

        def attended(q: Tensor, k: Tensor, v: Tensor, y: Tensor) -> Tensor:
            """y (B F, heads, T, d): what the global tokens, the last of T and alike in all frames of a video, get from all frames."""
            frames = context.frames
            (_, heads, t, d), own = k.shape, k.shape[2] - g
            queries = q.view(-1, frames, heads, t, d)[:, 0, :, own:]

            def seen(z: Tensor) -> Tensor:
                z = z.view(-1, frames, heads, t, d)
                return torch.cat([z[:, 0, :, own:], z[:, :, :, :own].transpose(1, 2).flatten(2, 3)], dim=2)

            bias = None
            if context.mask is not None:
                bias = torch.zeros(context.mask.shape, dtype=q.dtype, device=q.device).masked_fill(~context.mask, MASKED)
                bias = F.pad(bias.repeat_interleave(own, dim=1), (g, 0))[:, None, None]
            found = F.scaled_dot_product_attention(queries, seen(k), seen(v), attn_mask=bias)
            return torch.cat([y[:, :, :own], found.repeat_interleave(frames, dim=0)], dim=2)

        def after(x: Tensor) -> Tensor:
            x = local.after(x)  # type: ignore[misc]
            return x[:, -g : x.shape[1] - g + 1] if block == self.depth - 1 else x

        return Places(before=before, attended=attended, after=after)

    def text_places(self, block: int, context: Context) -> Places:
        assert context.ends is not None
        latents = self.latents[(block + 1) * self.depth // self.text_depth - 1]
        return around(self.after_start(latents), self.before_end(latents), self.start, context.ends)


class Coupled(MaPLe):
    """depth: the first blocks that have prompts, of text and of the vision blocks paired with them. consistency: the term's weight."""

    name = "coupled"
    adapts = "tokens of the first text blocks, mapped to the vision block; a consistency term in training"
    paper = "APoLLo, Chowdhury et al., EMNLP 2023"
    licence = "none given"
    default_header = "mean"
    fixed_tokens = True
    all_blocks = "has its prompts in the first blocks"

    def __init__(self, shape: Shape, tokens: int = 2, depth: int = 9, consistency: float = 1.0, drop: float = 0.2) -> None:
        super().__init__(shape, tokens)
        if depth < 1 or consistency < 0 or not 0 <= drop < 1:
            raise UsageError(f"depth must be at least 1, consistency not below 0 and drop in 0..1, not {depth}, {consistency} and {drop}.")
        self.depth, self.consistency, self.drop = depth, consistency, drop
        used = min(depth, shape.text_depth)
        self.text = nn.Parameter(self.text.detach()[:used].clone())
        self._partner = {v: (i, t) for v, (i, t) in self._partner.items() if t < used}
        self.coupling = self.coupling[: len(self._partner)]
        self.vision = None

    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("tokens", "depth", "consistency", "drop")}

    def vision_places(self, block: int, context: Context) -> Places:
        return super().vision_places(block, context) if block in self._partner else EMPTY

    def text_places(self, block: int, context: Context) -> Places:
        return super().text_places(block, context) if block < len(self.text) else EMPTY

    def extra_loss(self, batch: Batch) -> Tensor | None:
        if not self.consistency:
            return None
        kept = [self._dropped(text) for text in batch.texts]
        text = batch.retriever.encode_text(kept)
        frames = batch.retriever.encode_frames(batch.frames.flip(-2 if batch.frames.dtype == torch.uint8 else -1), batch.mask, batch.stream)
        agree = F.cosine_similarity(batch.text.float(), text.float()).mean()
        seen = F.cosine_similarity(batch.video.float(), frames.float(), dim=-1)
        mask = batch.mask.to(seen)
        return self.consistency * (2 - agree - (seen * mask).sum() / mask.sum()) / 2

    def _dropped(self, text: str) -> str:
        words = text.split()
        kept = [word for word, keep in zip(words, (torch.rand(len(words)) >= self.drop).tolist(), strict=True) if keep]
        return " ".join(kept or words)
