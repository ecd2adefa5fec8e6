"""What can be trained on a frozen backbone: one file per method, and their names."""

from __future__ import annotations

from typing import Any

from xmafast.backbone import Shape
from xmafast.errors import unknown
from xmafast.methods.adapters import AdaptFormer, Convpass, PlainAdapter, STAdapter
from xmafast.methods.base import Method, pair_blocks
from xmafast.methods.cross_modal import CrossModalAdapter
from xmafast.methods.mv_adapter import MVAdapter
from xmafast.methods.prompts import VPT, CoOp, MaPLe, VLPrompt
from xmafast.methods.tuning import Bias, Full, Partial, Projection

_ALL = (
    CrossModalAdapter,
    MVAdapter,
    PlainAdapter,
    AdaptFormer,
    Convpass,
    STAdapter,
    CoOp,
    VPT,
    VLPrompt,
    MaPLe,
    Full,
    Partial,
    Projection,
    Bias,
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _ALL}


def build_method(name: str, shape: Shape, **options: Any) -> Method:
    """The method of that name for a backbone of that shape. Raises UsageError for an unknown name or an option it does not have."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name].build(shape, **options)


__all__ = ["METHODS", "CrossModalAdapter", "MVAdapter", "Method", "build_method", "pair_blocks"]
