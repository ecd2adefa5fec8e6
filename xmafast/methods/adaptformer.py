"""AdaptFormer (Chen et al., NeurIPS 2022, arXiv 2205.13535).

    s W_u relu(W_d x)

of the residual stream before the MLP, added to the MLP's output ("parallel"), or of the MLP's output itself ("sequential"). W_u starts at
zero, so that it starts as the frozen model.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.errors import unknown
from xmafast.methods.base import Context, at_least_one
from xmafast.methods.common.both_encoders import BothEncoders, Bottleneck

FORMS = ("parallel", "sequential")


class AdaptFormer(BothEncoders):
    """form: parallel or sequential, in the vision encoder. norm: a LayerNorm in each adapter."""

    name = "adaptformer"
    adapts = "beside the MLP (vision), after it (text)"
    paper = "AdaptFormer, Chen et al., NeurIPS 2022, arXiv 2205.13535"
    licence = "MIT"

    def __init__(
        self,
        shape: Shape,
        bottleneck: int = 64,
        form: str = "parallel",
        scale: float = 0.1,
        norm: bool = False,
        train_biases: bool = False,
    ) -> None:
        at_least_one("bottleneck", bottleneck)
        if form not in FORMS:
            raise unknown("form", form, FORMS)
        vision = nn.ModuleList(Bottleneck(shape.vision_width, bottleneck, scale, norm) for _ in range(shape.vision_depth))
        super().__init__(shape, vision, bottleneck, scale, norm, train_biases)
        self.bottleneck, self.form = bottleneck, form

    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("bottleneck", "form", "scale", "norm", "train_biases")}

    def vision_places(self, block: int, context: Context) -> Places:
        own: Any = self.vision[block]
        if self.form == "parallel":
            return Places(parallel_mlp=lambda x, h: own(x), tokenwise=True)
        return Places(after_mlp=lambda y: own.added(y, y, context.impl), tokenwise=True)
