"""Full fine-tuning as CLIP4Clip does it (Luo et al., Neurocomputing 2022, arXiv 2104.08860, freeze_layer_num 0).

Every block, the last LayerNorms, both projections and the logit scale; patch convolution, embeddings, positions and the first LayerNorm
stay frozen. ``freeze`` freezes the first blocks of both encoders as well.
"""

from __future__ import annotations

import re
from typing import Any

from xmafast.backbone import Shape
from xmafast.errors import UsageError
from xmafast.methods.common.tuning import Tuning, block_of

_FROZEN = re.compile(
    r"(^|\.)(conv1|class_embedding|positional_embedding|token_embedding|ln_pre|logit_bias"  # open_clip's names
    r"|patch_embed|cls_token|reg_token|pos_embed|norm_pre)(\.|$)"  # timm's
)


class Full(Tuning):
    """freeze: how many of the first blocks of each encoder stay frozen, 0 to the deeper one's depth."""

    name = "full"
    adapts = "every block, last LayerNorms, projections, logit scale"
    paper = "CLIP4Clip, Luo et al., Neurocomputing 2022, arXiv 2104.08860"
    licence = "MIT"
    default_lr = 1e-5

    def __init__(self, shape: Shape, freeze: int = 0) -> None:
        deepest = max(shape.vision_depth, shape.text_depth)
        if not 0 <= freeze <= deepest:
            raise UsageError(f"freeze must lie between 0 and {deepest}, the depth of the deeper encoder, not {freeze}.")

        def wanted(name: str) -> bool:
            place = block_of(name)
            return not _FROZEN.search(name) if place is None else place[1] >= freeze

        super().__init__(shape, wanted)
        self.freeze = freeze

    def options(self) -> dict[str, Any]:
        return {"freeze": self.freeze}
