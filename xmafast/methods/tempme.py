"""Merging tokens within and across frames (TempMe, Shen et al., ICLR 2025, arXiv 2409.01156), for any number of frames.

Of L vision blocks, the first L - 4 merge within each frame, the next three join neighbouring clips (at first, a clip is a frame), and
all from there on merge within clips:

    blocks 0 .. L-5     after the attention the r tokens that are closest to another are merged into it
    blocks L-4 .. L-2   groups of g clips become one clip: their class tokens stand side by side and are never merged, a position is
                        added for each clip, and a share of the group's tokens is merged before the attention; then as below
    block  L-1          after the attention a share of the tokens is merged

Closest is by bipartite soft matching (Bolya et al., ToMe): every second token is matched with the most similar of the others, by cosine of
the mean key (before a clip's first attention: of the tokens), and the r best matches become averages, weighted by how many tokens
each stands for. That size also weighs attention: log(size) is added to a key's logits. Last, every frame has its class token, which has
seen the whole video, and the header pools them.

Published for 12 frames: g = 2, 2, 3; r is a twentieth of the tokens (2 on B/32, 10 on B/16); the shares are 0.3 and 0.1 on B/32. For other
numbers g is 2, 2 and what remains, and a last group that is not full is filled with padding. Tokens of padding have size zero: they are
merged first, weigh nothing and are attended to by none. Positions start at zero. With LoRA, ``--method lora --plug tempme``, that is
the published 507,648 parameters.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.errors import UsageError
from xmafast.methods.base import Context, Method, at_least_one

FACTORS = (2, 2)  # clips that become one, in the first two joining blocks; the third joins all
LATE = len(FACTORS) + 2  # joining blocks and the last one
MASKED = -1e4  # a finite logit, so that a clip of padding alone is no NaN
MANY = 100  # tokens of a frame from which on the shares are those of B/16


class Matching(NamedTuple):
    """Which of the first set stay (B, n, 1), which are merged (B, r, 1), and into which of the second set (B, r, 1)."""

    first: int  # 0 or 1: where the first set begins
    kept: Tensor
    merged: Tensor
    into: Tensor


@torch.no_grad()
def match(metric: Tensor, prefix: int, r: int, size: Tensor) -> Matching:
    """metric (B, T, C), size (B, T); the first ``prefix`` tokens take no part. r: how many are merged, at most half of the rest."""
    patches, real = F.normalize(metric[:, prefix:].float(), dim=-1), size[:, prefix:] > 0
    first = prefix % 2
    scores = patches[:, first::2] @ patches[:, 1 - first :: 2].transpose(1, 2)
    # padding goes first, into anything; what is real goes into what is real
    scores = scores.masked_fill(~real[:, None, 1 - first :: 2], -2.0).masked_fill(~real[:, first::2, None], 2.0)
    best, into = scores.max(-1)
    order = best.argsort(dim=-1, descending=True)[..., None]
    merged = order[:, :r]
    return Matching(first, order[:, r:].sort(dim=1)[0], merged, into[..., None].gather(1, merged))


def merge(x: Tensor, size: Tensor, prefix: int, matching: Matching) -> tuple[Tensor, Tensor]:
    """Tokens (B, T, D) and their sizes (B, T) -> (B, T - r, D), (B, T - r): averages weighted by size."""
    first, kept, merged, into = matching
    both = torch.cat([x * size[..., None], size[..., None]], dim=-1)  # at least float32, as the sizes are
    patches, c = both[:, prefix:], both.shape[-1]
    source, target = patches[:, first::2], patches[:, 1 - first :: 2]
    gone = source.gather(1, merged.expand(-1, -1, c))
    target = target.scatter_add(1, into.expand(-1, -1, c), gone)
    both = torch.cat([both[:, :prefix], source.gather(1, kept.expand(-1, -1, c)), target], dim=1)
    total, size = both.split([c - 1, 1], dim=-1)
    return (total / size.clamp_min(torch.finfo(size.dtype).tiny)).to(x.dtype), size[..., 0]


class TempMe(Method):
    """Parameters: ``positions.STAGE`` (clips, width) of each joining block.

    frames: the most that are ever given, which the positions are made for. image_share: tokens merged in each early block, of those at the
    start. clip_share: of a group's tokens, before the attention of a joining block; token_share: after the attention of a late block;
    0 takes the published 0.3 and 0.1, and 0.4 and 0.2 where a frame has a hundred tokens or more. Raises UsageError outside these.
    """

    name = "tempme"
    family = "temporal"
    adapts = "merges tokens within frames and across them (vision); joins with any method that acts token by token"
    paper = "TempMe, Shen et al., ICLR 2025, arXiv 2409.01156"
    licence = "MIT"
    default_header = "mean"
    default_lr = 6e-4
    moves_tokens = True
    scalable = False

    def __init__(
        self, shape: Shape, frames: int = 12, image_share: float = 0.05, clip_share: float = 0.0, token_share: float = 0.0
    ) -> None:
        super().__init__()
        if shape.vision_depth < LATE:
            raise UsageError(f"tempme needs {LATE} vision blocks or more; this backbone has {shape.vision_depth}.")
        if not shape.prefix:
            raise UsageError("tempme needs a class token in each frame, and this backbone's image tower has none.")
        if shape.rotary:
            raise UsageError("tempme cannot merge patches here: this backbone's image tower needs their rotary positions in every block.")
        at_least_one("frames", frames)
        if not all(0 <= share < 0.5 for share in (image_share, token_share)) or not 0 <= clip_share <= 0.5:
            raise UsageError("image_share, clip_share and token_share must lie between 0 and 0.5: at most every second token is merged.")
        self.frames, self.image_share, self.clip_share, self.token_share = frames, image_share, clip_share, token_share
        self.depth, self.prefix = shape.vision_depth, shape.prefix
        clips = [frames]
        for factor in FACTORS:
            clips.append(math.ceil(clips[-1] / factor))
        self.positions = nn.ParameterList(nn.Parameter(torch.zeros(n, shape.vision_width)) for n in clips)

    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("frames", "image_share", "clip_share", "token_share")}

    def text_places(self, block: int, context: Context) -> Places:
        return Places()

    def vision_places(self, block: int, context: Context) -> Places:
        layout, stage = context.layout, block - (self.depth - LATE)

        def before(x: Tensor) -> Tensor:
            if layout.size is None:
                layout.size = torch.ones(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
                layout.clips, layout.prefix, layout.tokens = context.frames, self.prefix, x.shape[1]
                if context.frames > self.frames:
                    raise UsageError(
                        f"This tempme is built for up to {self.frames} frames and is given {context.frames}; build it with more."
                    )
            return self._joined(x, stage, context) if 0 <= stage < LATE - 1 else x

        def attended(q: Tensor, k: Tensor, v: Tensor, y: Tensor) -> Tensor:
            layout.metric = k.detach().mean(1)
            return y

        def between(x: Tensor) -> Tensor:
            own = x.shape[1] - layout.prefix
            assert layout.metric is not None
            r = round(self.image_share * layout.tokens) if stage < 0 else int(x.shape[1] * self._share(layout.tokens)[1])
            return self._merged(x, layout.metric, min(r, own // 2), context)

        def after(x: Tensor) -> Tensor:
            """The class tokens, each as a sequence of its own, as the frames came."""
            b = len(x) // layout.clips
            cls = x[:, : layout.prefix].reshape(b, -1, self.prefix, x.shape[-1])[:, : context.frames]
            return cls.reshape(b * context.frames, self.prefix, -1)

        last = block == self.depth - 1
        return Places(before=before, key_bias=lambda: _bias(layout.size), attended=attended, between=between, after=after if last else None)

    def _share(self, tokens: int) -> tuple[float, float]:
        published = (0.4, 0.2) if tokens >= MANY else (0.3, 0.1)
        return self.clip_share or published[0], self.token_share or published[1]

    def _joined(self, x: Tensor, stage: int, context: Context) -> Tensor:
        """Groups of clips (B n, T, D) as one clip each, (B n / g, g T - r, D); their class tokens first."""
        layout = context.layout
        assert layout.size is not None
        n, (_, t, d) = layout.clips, x.shape
        g = FACTORS[stage] if stage < len(FACTORS) else n
        if n == 1:
            placed: Tensor = x + self.positions[stage][0].to(x.dtype)
            return placed
        size = layout.size.view(-1, n, t)
        if stage == 0 and context.mask is not None:
            size = size * context.mask[..., None]
        x, more = x.view(-1, n, t, d), -n % g
        x, size = F.pad(x, (0, 0, 0, 0, 0, more)), F.pad(size, (0, 0, 0, more))
        position = F.pad(self.positions[stage][:n], (0, 0, 0, more)).to(x.dtype)
        metric = self._grouped(x, g, layout.prefix)
        x = self._grouped(x + position[:, None], g, layout.prefix)
        layout.size = self._grouped(size[..., None], g, layout.prefix)[..., 0]
        layout.prefix, layout.clips = layout.prefix * g, (n + more) // g
        r = min(int(g * t * self._share(layout.tokens)[0]), (g * t - layout.prefix) // 2)
        return self._merged(x, metric, r, context)

    @staticmethod
    def _grouped(x: Tensor, g: int, prefix: int) -> Tensor:
        """(B, n, T, C) -> (B n / g, g T, C), the prefixes of a group before its other tokens."""
        x = x.reshape(-1, g, *x.shape[2:])
        return torch.cat([x[:, :, :prefix].flatten(1, 2), x[:, :, prefix:].flatten(1, 2)], dim=1)

    def _merged(self, x: Tensor, metric: Tensor, r: int, context: Context) -> Tensor:
        layout = context.layout
        if r > 0:
            assert layout.size is not None
            x, layout.size = merge(x, layout.size, layout.prefix, match(metric, layout.prefix, r, layout.size))
        return x


def _bias(size: Tensor | None) -> Tensor | None:
    """(B, T) -> what is added to the logits of each key, (B, 1, 1, T)."""
    return None if size is None else size.log().clamp_min(MASKED)[:, None, None]
