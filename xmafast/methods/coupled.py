"""MaPLe's prompts in the first blocks alone, with a consistency term: what carries over to a dual encoder from APoLLo (Chowdhury et al.,
EMNLP 2023), whose adapter looks at the other modality and at the batch.

    L + consistency (2 - cos(t, t~) - cos(v, v~)) / 2

where t~ is of the caption with each word dropped at ``drop``, and v~ is of the mirrored frames.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import EMPTY, Places
from xmafast.errors import UsageError
from xmafast.methods.base import Batch, Context
from xmafast.methods.maple import MaPLe


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
