"""Methods on the last blocks alone: below them everything is the frozen model, and constant.

``last:K`` adapts the last K vision blocks, and the text blocks from the first one on that pairs with any of them (``pair_blocks`` of the
whole encoders): K where both are equally deep, one for every two vision blocks of ViT-L/14. A method is built from a backbone's ``Shape``
and nothing else, so it is built for a backbone of those blocks: what is below has no parameters, "the first block" and "the last pair" are
those of the blocks that are adapted, and no method need know. ``Retriever`` counts the blocks for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from xmafast.backbone import Shape
from xmafast.blocks import EMPTY, Places
from xmafast.errors import UsageError
from xmafast.methods.base import Method, pair_blocks
from xmafast.methods.common.tuning import block_of, with_block

ALL = "all"
T = TypeVar("T")


@dataclass(frozen=True)
class Adapted:
    """The blocks that a method acts on: ``first_vision`` and ``first_text``, counted from 0, and all above."""

    first_vision: int = 0
    first_text: int = 0

    def __bool__(self) -> bool:
        """Whether any block is left out."""
        return bool(self.first_vision or self.first_text)

    def shape(self, whole: Shape) -> Shape:
        """Of a backbone that has these blocks alone, its tensors' names numbered from 0."""
        if not self:
            return whole
        return replace(
            whole,
            vision_depth=whole.vision_depth - self.first_vision,
            text_depth=whole.text_depth - self.first_text,
            tensors=self.inside(whole.tensors),
        )

    def inside(self, tensors: Mapping[str, T]) -> dict[str, T]:
        """Tensors by the backbone's names -> by those that the method knows, without the blocks below."""
        return self._renamed(tensors, -1)

    def outside(self, tensors: Mapping[str, T]) -> dict[str, T]:
        """Tensors by the names that the method knows -> by the backbone's."""
        return self._renamed(tensors, 1)

    def _renamed(self, tensors: Mapping[str, T], sign: int) -> dict[str, T]:
        found = {}
        for name, value in tensors.items():
            place = block_of(name)
            block = 0 if place is None else place[1] + sign * (self.first_vision if place[0] else self.first_text)
            if block >= 0:
                found[name if place is None else with_block(name, block)] = value
        return found


def adapted(blocks: str, shape: Shape) -> Adapted:
    """What ``all`` or ``last:K`` stands for. Raises UsageError for anything else, and for a K that the backbone does not have."""
    if blocks == ALL:
        return Adapted()
    found, depth = re.fullmatch(r"last:(\d+)", blocks), shape.vision_depth
    if not found:
        raise UsageError(f"--blocks is all, or last:K for the last K vision blocks, as last:2, not {blocks!r}.")
    count = int(found[1])
    if not 1 <= count <= depth:
        raise UsageError(f"--blocks last:K takes a K from 1 to {depth}, the depth of the vision encoder, not {count}.")
    if count == depth:
        return Adapted()
    return Adapted(depth - count, min(text for vision, text in pair_blocks(depth, shape.text_depth) if vision >= depth - count))


def check_blocks(method: Method | None, blocks: str) -> None:
    """Raise UsageError for what cannot be put into the last blocks alone, with the reason."""
    name = method.name if method is not None else ""
    if method is None or method.on_features:
        raise UsageError(f"--blocks {blocks} has nothing to choose: what is trained here acts on the final embeddings, in no block.")
    if method.tuned is not None:
        other = "; --set freeze=N leaves its first N blocks out" if name == "full" else ""
        raise UsageError(f"--blocks {blocks} cannot be used with {name!r}, which trains weights of the backbone itself{other}.")
    if method.inserted:
        raise UsageError(f"--blocks {blocks} cannot be used with {name!r}, which puts words into the texts before their first block.")
    if method.all_blocks:
        raise UsageError(f"--blocks {blocks} cannot be used with {name!r}, which {method.all_blocks}.")


def above(first: int, places: Callable[[int], Places]) -> Callable[[int], Places]:
    """``places`` of a method that counts from block ``first``, by the encoder's own count."""
    return places if first == 0 else lambda block: EMPTY if block < first else places(block - first)
