"""Another stream of the same video, read by cross-attention: CM3T's adapter for further modalities (Agrawal et al., WACV 2025),
reconstructed from its description, as neither formula nor code could be had.

After the MLP of each of the last ``blocks`` of the vision encoder, with y the tokens of a frame and m the features of the stream (a
transcript's sentences, seconds of sound) of that frame's video,

    y <- y + s U softmax((Q y) (K n)^T / sqrt(d)) V n,   n = LN(m),  Q, K, V to r channels in H heads of d, U (D, r) zero at the start

A video reads its own stream and no other; one without a stream is embedded as the model without this plug embeds it. Texts are not
touched. On width 768 with features of 512, r = 64 and four blocks: 659,456 parameters.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.errors import UsageError
from xmafast.methods.base import Context, Method, at_least_one

MASKED = -1e4


class CrossAttention(nn.Module):
    """U softmax((Q y) (K n)^T / sqrt(d)) V n: y (B C, T, D), of C sequences of each video, m (B, S, W), mask (B, S) -> (B C, T, D)."""

    def __init__(self, width: int, stream_width: int, bottleneck: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(stream_width)  # features come at any scale
        self.query = nn.Linear(width, bottleneck, bias=False)
        self.key, self.value = nn.Linear(stream_width, bottleneck, bias=False), nn.Linear(stream_width, bottleneck, bias=False)
        self.up = nn.Linear(bottleneck, width, bias=False)  # without a bias, so that nothing is added for no stream
        nn.init.zeros_(self.up.weight)

    def forward(self, y: Tensor, m: Tensor, mask: Tensor) -> Tensor:
        n = self.norm(m)
        query = self.query(y).view(len(m), -1, self.query.out_features)  # a video's sequences behind each other
        q, k, v = (z.unflatten(-1, (self.heads, -1)).transpose(1, 2) for z in (query, self.key(n), self.value(n)))
        bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, MASKED)
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, None, None])
        found = found * mask.any(1)[:, None, None, None]
        update: Tensor = self.up(found.transpose(1, 2).flatten(2)).view(*y.shape[:2], -1)
        return update


class Stream(Method):
    """Parameters: ``vision.K`` of the last blocks.

    bottleneck: r; heads: H, a divisor of it; blocks: how many, from the last; stream_width: of the features, taken from their file in a
    training. Raises UsageError outside these.
    """

    name = "stream"
    family = "adapter"
    adapts = "after the MLP of the last vision blocks: reads features of the same video (--stream FILE)"
    paper = "CM3T, Agrawal et al., WACV 2025"
    licence = "none published"
    default_header = "mean"
    default_lr = 1e-3
    reads_stream = True

    def __init__(
        self, shape: Shape, bottleneck: int = 64, heads: int = 4, blocks: int = 4, stream_width: int = 512, scale: float = 1.0
    ) -> None:
        super().__init__()
        for name, value in (("bottleneck", bottleneck), ("heads", heads), ("stream_width", stream_width)):
            at_least_one(name, value)
        if bottleneck % heads:
            raise UsageError(f"heads must divide --bottleneck, {bottleneck}; {heads} do not.")
        if not 1 <= blocks <= shape.vision_depth:
            raise UsageError(f"blocks must lie between 1 and {shape.vision_depth}, not {blocks}.")
        self.bottleneck, self.heads, self.blocks, self.stream_width, self.scale = bottleneck, heads, blocks, stream_width, scale
        self.first = shape.vision_depth - blocks
        self.vision = nn.ModuleList(CrossAttention(shape.vision_width, stream_width, bottleneck, heads) for _ in range(blocks))

    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("bottleneck", "heads", "blocks", "stream_width", "scale")}

    def vision_places(self, block: int, context: Context) -> Places:
        if block < self.first or context.stream is None:
            return Places()
        own, (features, mask) = self.vision[block - self.first], context.stream
        return Places(after_mlp=lambda y: y + self.scale * own(y, features.to(y.dtype), mask).to(y.dtype))

    def text_places(self, block: int, context: Context) -> Places:
        return Places()
