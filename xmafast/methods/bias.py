"""BitFit: every bias (Ben Zaken et al., ACL 2022, arXiv 2106.10199)."""

from __future__ import annotations

from xmafast.backbone import Shape
from xmafast.methods.common.tuned import biases
from xmafast.methods.common.tuning import Tuning


class Bias(Tuning):
    name = "bias"
    adapts = "every bias"
    paper = "BitFit, Ben Zaken et al., ACL 2022, arXiv 2106.10199"
    licence = "MIT"
    default_lr = 1e-3

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape, set(biases(shape.tensors)).__contains__)
