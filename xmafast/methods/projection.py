"""A linear probe, a baseline of Jiang et al. (arXiv 2211.09623): the projections into the common space.

An image tower that has none (SigLIP) ends in an attention pooling, and the last linear layer of that is trained.
"""

from __future__ import annotations

import re

from xmafast.backbone import Shape
from xmafast.methods.common.tuning import Tuning

_IMAGE_PROJECTION = re.compile(r"^visual\.(proj|head|trunk\.head)(\.|$)")
_POOLING_END = re.compile(r"^visual\.trunk\.attn_pool\.mlp\.fc2\.")
_TEXT_PROJECTION = re.compile(r"^(text\.)?text_projection(\.|$)")


class Projection(Tuning):
    name = "projection"
    adapts = "the projections into the common space"
    paper = "Projection (linear probe), a baseline of Jiang et al., arXiv 2211.09623"
    default_lr = 1e-4

    def __init__(self, shape: Shape) -> None:
        image = _IMAGE_PROJECTION if any(map(_IMAGE_PROJECTION.match, shape.tensors)) else _POOLING_END
        super().__init__(shape, lambda name: bool(image.match(name) or _TEXT_PROJECTION.match(name)))
