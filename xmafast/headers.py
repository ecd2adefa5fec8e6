"""Similarity headers: how a text's embedding t and a video's frame embeddings f_1 .. f_F become one score.

mean:              cosine of t with the mean of the normalised frames (CLIP4Clip's meanP, arXiv 2104.08860)
text-conditioned:  cosine of t with sum_j w_j f_j, w = softmax_j(<t, f_j> / temperature) (the Cross-Modal Adapter's)
seqTransf:         f <- f + T(f + p), then mean; T is a transformer over the frames, p learned positions (CLIP4Clip's)

The first two train nothing. T has four blocks of the embedding's width; as CLIP4Clip starts it, they and the positions are copies of the
text encoder's first blocks and positions, where their width is the embedding's, and random otherwise. On ViT-B/32 and B/16 that is
12,648,960 parameters. A header goes with any method, and seqTransf also with none.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.errors import UsageError

POOLING = {"mean": "mean", "text-conditioned": "text-conditioned", "seqTransf": "mean"}  # header -> what the kernels call it
LAYERS, HEAD_WIDTH = 4, 64
POSITION_STD = 0.01


class SeqTransf(nn.Module):
    """Frame embeddings (B, F, D) -> (B, F, D), each having seen the others. Parameters: ``blocks.LAYER``, ``positions``."""

    adapts = "frame embeddings, by a transformer over the frames"
    paper = "CLIP4Clip, Luo et al., Neurocomputing 2022, arXiv 2104.08860"
    licence = "MIT"
    default_lr = 1e-4  # where it is trained alone

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.embed_dim
        self.blocks = nn.ModuleList(
            ResidualAttentionBlock(width, max(1, width // HEAD_WIDTH), act_layer=QuickGELU) for _ in range(min(LAYERS, shape.text_depth))
        )
        self.positions = nn.Parameter(torch.randn(shape.context_length, width) * POSITION_STD)
        for block in cast("list[Any]", self.blocks):
            for weight, std in (
                (block.attn.in_proj_weight, width**-0.5),
                (block.attn.out_proj.weight, (2 * width * LAYERS) ** -0.5),
                (block.mlp.c_fc.weight, (2 * width) ** -0.5),
                (block.mlp.c_proj.weight, (2 * width * LAYERS) ** -0.5),
            ):
                nn.init.normal_(weight, std=std)

    @torch.no_grad()
    def adopt(self, text: Any) -> None:
        """Start from the first blocks and the positions of a text encoder, where their shapes are this header's."""
        if text.positional_embedding.shape == self.positions.shape:
            self.positions.copy_(text.positional_embedding)
            for own, block in zip(cast("list[Any]", self.blocks), text.transformer.resblocks, strict=False):
                own.load_state_dict(block.state_dict())
                own.mlp.gelu = copy.deepcopy(block.mlp.gelu)
                own.ln_1.eps, own.ln_2.eps = block.ln_1.eps, block.ln_2.eps

    def forward(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """mask (B, F) bool: frames of padding are no keys."""
        count = frames.shape[1]
        if count > len(self.positions):
            raise UsageError(f"The seqTransf header has {len(self.positions)} positions and is given {count} frames; cache fewer frames.")
        x, padding = frames + self.positions[:count].to(frames.dtype), None if mask is None else ~mask
        for block in cast("list[Any]", self.blocks):  # open_clip ships no types
            h = block.ln_1(x)
            x = x + block.attn(h, h, h, key_padding_mask=padding, need_weights=False)[0]
            x = x + block.mlp(block.ln_2(x))
        return frames + x
