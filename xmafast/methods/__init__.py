"""What can be trained on a frozen backbone: one file per method, and their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xmafast.backbone import Shape
from xmafast.errors import unknown
from xmafast.methods.adapters import AdaptFormer, Convpass, PlainAdapter, STAdapter
from xmafast.methods.base import Method, pair_blocks
from xmafast.methods.combined import Combined
from xmafast.methods.cross_modal import CrossModalAdapter
from xmafast.methods.disco import Disco
from xmafast.methods.features import CLIPAdapter
from xmafast.methods.hada import HADA
from xmafast.methods.lora import CLIPLoRA, LoRA
from xmafast.methods.memory import Memory
from xmafast.methods.mv_adapter import MVAdapter
from xmafast.methods.prompts import VPT, CoOp, MaPLe, VLPrompt
from xmafast.methods.routed import Routed
from xmafast.methods.shared import MRS, MultiHeadAdapter, UniAdapter
from xmafast.methods.stream import Stream
from xmafast.methods.tempme import TempMe
from xmafast.methods.tuning import Bias, Full, Partial, Projection
from xmafast.methods.video_prompts import DGL, Coupled, VoP

_ALL = (
    CrossModalAdapter,
    MVAdapter,
    PlainAdapter,
    AdaptFormer,
    Convpass,
    STAdapter,
    UniAdapter,
    MRS,
    MultiHeadAdapter,
    Stream,
    LoRA,
    CLIPLoRA,
    Routed,
    TempMe,
    Disco,
    CoOp,
    VPT,
    VLPrompt,
    MaPLe,
    VoP,
    DGL,
    Coupled,
    Full,
    Partial,
    Projection,
    Bias,
    CLIPAdapter,
    Memory,
    HADA,
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _ALL}
Plug = str | tuple[str, Mapping[str, Any]]  # a method's name, or its name and its options


def build_method(name: str, shape: Shape, *, plugs: Sequence[Plug] = (), known: Mapping[str, Any] | None = None, **options: Any) -> Method:
    """The method of that name for a backbone of that shape, combined with ``plugs``.

    known: values for options that are not given, where a method has them, as ``{"words": 32}``. Raises UsageError for an unknown name, an
    option that a method does not have, or methods that cannot work together.
    """
    parts = []
    for part, given in ((name, options), *((plug, {}) if isinstance(plug, str) else plug for plug in plugs)):
        if part not in METHODS:
            raise unknown("method", part, METHODS)
        method = METHODS[part]
        method.check_options(given)
        filled = {key: value for key, value in (known or {}).items() if key in method.known_options()}
        parts.append(method.build(shape, **{**filled, **given}))
    return Combined(parts) if len(parts) > 1 else parts[0]


__all__ = ["CrossModalAdapter", "METHODS", "MVAdapter", "Method", "Plug", "build_method", "pair_blocks"]
