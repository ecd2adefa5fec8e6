"""DGL, the linear form (Yang et al., AAAI 2024, arXiv 2401.10588), from its formulas.

One set of latents P_l a vision block. They are the local prompts of each frame; linear maps A P_l and B P_l of them are the text's, after
its start and before its end. Global prompts G, one set a video, pass through all blocks:

    frame's tokens attend to   [G; the same frame's tokens, its local prompts among them]
    G attends to               [G; the tokens of all frames]

and the first of G, after the last block, is every frame's embedding. All prompts start at N(0, 0.02).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.errors import UsageError
from xmafast.methods.base import Context
from xmafast.methods.common.prompts import RetrievalPrompts, around, deep, near_zero

MASKED = -1e4  # a finite logit, so that a video of padding alone is no NaN


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
        self.latents = near_zero(shape.vision_depth, local_tokens, shape.vision_width)
        self.after_start = nn.Linear(shape.vision_width, shape.text_width)
        self.before_end = nn.Linear(shape.vision_width, shape.text_width)
        self.globals = near_zero(global_tokens, shape.vision_width)

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
