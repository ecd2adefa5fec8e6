"""Training weights of CLIP itself: what full and partial fine-tuning, projections and biases share.

Each starts as the frozen model, exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.methods.base import Context, Method
from xmafast.methods.common.tuned import Tuned

_BLOCK = re.compile(r"^(?:(visual\.|text\.)?transformer\.resblocks|(visual\.)trunk\.blocks)\.(\d+)\.")


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
