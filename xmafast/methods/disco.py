"""Class tokens that attend to the whole video (DiscoVLA, Shen et al., CVPR 2025), in the last blocks of the vision encoder.

In each of the last ``vision_blocks``, with y the attention's output at a frame's class token and y' that of the same query over the
tokens of all frames, the class token gets

    y' + U quick_gelu(V y + v) + u,   V (r, D), U (D, r) zero at the start

Its image-level terms align text and single frames as well. The published ones need a caption for each frame, from a captioner that is
no part of a data set; here the video's caption stands for them, through the same map at its end-of-text token in the last ``text_blocks``
(without copies to attend to, y' is y). With a = <t, f_j> of that text and the frames, both normalised, and c the logit scale,

    s = (max_j a_j + sum_j softmax_j(c a_j) a_j) / 2
    L = L_video + frame_loss InfoNCE(c s) + distill KL(softmax(c s) || softmax(video scores)) 100 / N

With LoRA, ``--method lora --plug disco``, that is 561,200 parameters on B/32 and B/16, of which 543,776 are there when it runs: the text
maps act in training alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.errors import UsageError
from xmafast.kernels import info_nce_from_scores
from xmafast.methods.base import Batch, Context, Method, at_least_one, quick_gelu
from xmafast.precision import autocast

BIAS_STD = 1e-6
MASKED = -1e4


class Fusion(nn.Module):
    """U quick_gelu(V y + v) + u."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.normal_(self.down.bias, std=BIAS_STD)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, y: Tensor) -> Tensor:
        update: Tensor = self.up(quick_gelu(self.down(y)))
        return update


class Disco(Method):
    """Parameters: ``vision.K`` and ``text.K`` of the last blocks.

    bottleneck: r. frame_loss, distill: weights of the image-level terms; where both are 0 there is no text map and no second pass of the
    text encoder in training. Raises UsageError for blocks that are not there.
    """

    name = "disco"
    family = "temporal"
    adapts = "class tokens of the last vision blocks, over all frames; image-level terms in training"
    paper = "DiscoVLA, Shen et al., CVPR 2025"
    licence = "MIT"
    default_header = "mean"
    default_lr = 6e-4
    rewrites_attention = True
    scalable = False

    def __init__(
        self,
        shape: Shape,
        bottleneck: int = 8,
        vision_blocks: int = 4,
        text_blocks: int = 2,
        frame_loss: float = 0.3,
        distill: float = 1.0,
    ) -> None:
        super().__init__()
        at_least_one("bottleneck", bottleneck)
        if not 1 <= vision_blocks <= shape.vision_depth or not 0 <= text_blocks <= shape.text_depth:
            raise UsageError(
                f"vision_blocks must lie between 1 and {shape.vision_depth}, text_blocks between 0 and {shape.text_depth}, "
                f"not {vision_blocks} and {text_blocks}."
            )
        if not shape.prefix:
            raise UsageError("disco needs a class token in each frame, and this backbone's image tower has none.")
        self.bottleneck, self.vision_blocks, self.text_blocks = bottleneck, vision_blocks, text_blocks
        self.frame_loss, self.distill = frame_loss, distill
        self.first, self.prefix = shape.vision_depth - vision_blocks, shape.prefix
        self.vision = nn.ModuleList(Fusion(shape.vision_width, bottleneck) for _ in range(vision_blocks))
        maps = text_blocks if frame_loss or distill else 0
        self.first_text = shape.text_depth - maps
        self.text = nn.ModuleList(Fusion(shape.text_width, bottleneck) for _ in range(maps))

    def options(self) -> dict[str, Any]:
        names = ("bottleneck", "vision_blocks", "text_blocks", "frame_loss", "distill")
        return {name: getattr(self, name) for name in names}

    def vision_places(self, block: int, context: Context) -> Places:
        if block < self.first:
            return Places()
        own, layout = self.vision[block - self.first], context.layout

        def attended(q: Tensor, k: Tensor, v: Tensor, y: Tensor) -> Tensor:
            """y (B, heads, T, d) and, behind it, what the class tokens get from all tokens of their video."""
            clips, prefix = layout.clips or context.frames, layout.prefix or self.prefix
            b, heads, t, d = k.shape
            queries, keys, values = (z.view(-1, clips, *z.shape[1:]).transpose(1, 2).flatten(2, 3) for z in (q[:, :, :prefix], k, v))
            found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=self._bias(context, t, q))
            found = found.view(-1, heads, clips, prefix, d).transpose(1, 2).reshape(b, heads, prefix, d)
            return torch.cat([y, found], dim=2)

        def after_attention(h: Tensor) -> Tensor:
            prefix = layout.prefix or self.prefix
            t = h.shape[1] - prefix
            return torch.cat([h[:, t:] + own(h[:, :prefix]).to(h.dtype), h[:, prefix:t]], dim=1)

        return Places(attended=attended, after_attention=after_attention)

    @staticmethod
    def _bias(context: Context, tokens: int, like: Tensor) -> Tensor | None:
        """(B, 1, 1, F T): sizes of merged tokens, and no attention to frames of padding."""
        size = context.layout.size
        if size is not None:
            return size.log().clamp_min(MASKED).view(-1, context.layout.clips * tokens)[:, None, None].to(like.dtype)
        if context.mask is None:
            return None
        bias = torch.zeros(context.mask.shape, dtype=like.dtype, device=like.device).masked_fill(~context.mask, MASKED)
        return bias.repeat_interleave(tokens, dim=1)[:, None, None]

    def text_places(self, block: int, context: Context) -> Places:
        if not context.image_level or block < self.first_text:
            return Places()
        own, ends = self.text[block - self.first_text], context.ends

        def after_attention(h: Tensor) -> Tensor:
            rows = torch.arange(len(h), device=h.device)
            y = h[rows, ends]
            return h.index_put((rows, ends), y + own(y).to(h.dtype))

        return Places(after_attention=after_attention)

    def extra_loss(self, batch: Batch) -> Tensor | None:
        if not len(self.text):
            return None
        model = batch.retriever
        with autocast(model.device):
            text = model.encode_text(batch.texts, image_level=True)
        scores = model.similarity(batch.text, batch.video, batch.mask)
        return self.image_terms(text.float(), batch.video, batch.mask, scores, model.logit_scale, batch.groups)

    def image_terms(self, text: Tensor, frames: Tensor, mask: Tensor, scores: Tensor, scale: Any, groups: Tensor) -> Tensor:
        """text (N, D): with the text maps; frames (N, F, D), mask (N, F); scores (N, N): of the videos; groups (N,)."""
        padding = ~mask.bool().to(frames.device)
        a = torch.einsum("nd,mfd->nmf", F.normalize(text, dim=-1), F.normalize(frames, dim=-1))
        weights = (a * scale).masked_fill(padding, -torch.inf).softmax(-1)
        s = (a.masked_fill(padding, -torch.inf).amax(-1) + (weights * a).sum(-1)) / 2
        same = (groups[:, None] == groups[None]) & ~torch.eye(len(s), dtype=torch.bool, device=s.device)
        total = self.frame_loss * info_nce_from_scores(s, scale, group_ids=(groups, groups))
        for ours, theirs in ((s, scores), (s.T, scores.T)):
            p, q = ((z * scale).masked_fill(same, MASKED).log_softmax(-1) for z in (ours, theirs))
            total = total + self.distill * 50 * F.kl_div(q, p, reduction="sum", log_target=True) / s.numel()
        return total
