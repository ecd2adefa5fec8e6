"""Training weights of CLIP itself: full fine-tuning, CLIP4Clip's freezing, and the baselines that train a part.

full:        every block, the last LayerNorms, both projections and the logit scale; patch convolution, embeddings, positions and the
             first LayerNorm stay frozen, as CLIP4Clip freezes them (arXiv 2104.08860, freeze_layer_num 0). ``freeze`` freezes the first
             blocks of both encoders as well.
partial:     the last block of each encoder.
projection:  the projections into the common space: a linear probe. An image tower that has none (SigLIP) ends in an attention pooling,
             and the last linear layer of that is trained.
bias:        every bias (BitFit, arXiv 2106.10199).

Each starts as the frozen model, exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.errors import UsageError
from xmafast.methods.base import Context, Method
from xmafast.methods.tuned import Tuned, biases

_BLOCK = re.compile(r"^(?:(visual\.|text\.)?transformer\.resblocks|(visual\.)trunk\.blocks)\.(\d+)\.")
_FROZEN = re.compile(
    r"(^|\.)(conv1|class_embedding|positional_embedding|token_embedding|ln_pre|logit_bias"  # open_clip's names
    r"|patch_embed|cls_token|reg_token|pos_embed|norm_pre)(\.|$)"  # timm's
)
_IMAGE_PROJECTION = re.compile(r"^visual\.(proj|head|trunk\.head)(\.|$)")
_POOLING_END = re.compile(r"^visual\.trunk\.attn_pool\.mlp\.fc2\.")
_TEXT_PROJECTION = re.compile(r"^(text\.)?text_projection(\.|$)")


def block_of(name: str) -> tuple[bool, int] | None:
    """(is it the vision encoder's, its block) of a backbone tensor's name; None outside the blocks."""
    found = _BLOCK.match(name)
    return ("visual." in (found[1], found[2]), int(found[3])) if found else None


def with_block(name: str, block: int) -> str:
    """The name of the same tensor in another block of its encoder."""
    found = _BLOCK.match(name)
    assert found is not None
    return f"{name[: found.start(3)]}{block}{name[found.end(3) :]}"


class Tuning(Method):
    """A method that only trains weights of the backbone: those that ``wanted`` says."""

    family = "tuning"
    licence = "none published"
    default_header = "mean"

    def __init__(self, shape: Shape, wanted: Callable[[str], bool]) -> None:
        super().__init__()
        self.tuned = Tuned(shape.tensors, [name for name in shape.tensors if wanted(name)])

    def options(self) -> dict[str, Any]:
        return {}

    def vision_places(self, block: int, context: Context) -> Places:
        return Places()

    def text_places(self, block: int, context: Context) -> Places:
        return Places()


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


class Partial(Tuning):
    name = "partial"
    adapts = "the last block of each encoder"
    paper = "Partial, a baseline of Jiang et al., arXiv 2211.09623"
    default_lr = 1e-4

    def __init__(self, shape: Shape) -> None:
        last = {(True, shape.vision_depth - 1), (False, shape.text_depth - 1)}
        super().__init__(shape, lambda name: block_of(name) in last)


class Projection(Tuning):
    name = "projection"
    adapts = "the projections into the common space"
    paper = "Projection (linear probe), a baseline of Jiang et al., arXiv 2211.09623"
    default_lr = 1e-4

    def __init__(self, shape: Shape) -> None:
        image = _IMAGE_PROJECTION if any(map(_IMAGE_PROJECTION.match, shape.tensors)) else _POOLING_END
        super().__init__(shape, lambda name: bool(image.match(name) or _TEXT_PROJECTION.match(name)))


class Bias(Tuning):
    name = "bias"
    adapts = "every bias"
    paper = "BitFit, Ben Zaken et al., ACL 2022, arXiv 2106.10199"
    licence = "MIT"
    default_lr = 1e-3

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape, set(biases(shape.tensors)).__contains__)
