"""Partial fine-tuning, a baseline of Jiang et al. (arXiv 2211.09623): the last block of each encoder."""

from __future__ import annotations

from xmafast.backbone import Shape
from xmafast.methods.common.tuning import Tuning, block_of


class Partial(Tuning):
    name = "partial"
    adapts = "the last block of each encoder"
    paper = "Partial, a baseline of Jiang et al., arXiv 2211.09623"
    default_lr = 1e-4

    def __init__(self, shape: Shape) -> None:
        last = {(True, shape.vision_depth - 1), (False, shape.text_depth - 1)}
        super().__init__(shape, lambda name: block_of(name) in last)
