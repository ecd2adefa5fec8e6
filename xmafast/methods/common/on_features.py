"""Methods that act on the final embeddings alone; they train from the embedding cache, without the backbone."""

from __future__ import annotations

from xmafast.blocks import EMPTY, Places
from xmafast.methods.base import Context, Method


class FeatureMethod(Method):
    """A method without a place in any block."""

    family = "feature"
    licence = "none published"
    default_header = "mean"
    default_lr = 1e-3
    on_features = True

    def vision_places(self, block: int, context: Context) -> Places:
        return EMPTY

    def text_places(self, block: int, context: Context) -> Places:
        return EMPTY
