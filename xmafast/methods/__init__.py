"""What can be trained on a frozen backbone, and the names.

One file for each method, called as the method is: ``st-adapter`` is ``st_adapter.py``. Beside them ``base.py``, the contract that all keep;
``combined.py``, several at once (``--plug``); ``last_blocks.py``, on the last blocks alone (``--blocks last:K``);
``patch_coefficient.py``, how much of a method acts; ``patch_dropping.py``, fewer patches in training; and ``common/``, what several
methods are made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xmafast.backbone import Shape
from xmafast.errors import unknown
from xmafast.methods.adapter import PlainAdapter
from xmafast.methods.adaptformer import AdaptFormer
from xmafast.methods.base import Method, pair_blocks
from xmafast.methods.bias import Bias
from xmafast.methods.clip_adapter import CLIPAdapter
from xmafast.methods.clip_lora import CLIPLoRA
from xmafast.methods.combined import Combined
from xmafast.methods.convpass import Convpass
from xmafast.methods.coop import CoOp
from xmafast.methods.coupled import Coupled
from xmafast.methods.cross_modal import CrossModalAdapter
from xmafast.methods.dgl import DGL
from xmafast.methods.disco import Disco
from xmafast.methods.full import Full
from xmafast.methods.hada import HADA
from xmafast.methods.lora import LoRA
from xmafast.methods.maple import MaPLe
from xmafast.methods.memory import Memory
from xmafast.methods.mrs import MRS
from xmafast.methods.multi_head import MultiHeadAdapter
from xmafast.methods.mv_adapter import MVAdapter
from xmafast.methods.partial import Partial
from xmafast.methods.projection import Projection
from xmafast.methods.routed import Routed
from xmafast.methods.st_adapter import STAdapter
from xmafast.methods.stream import Stream
from xmafast.methods.tempme import TempMe
from xmafast.methods.uniadapter import UniAdapter
from xmafast.methods.vl_prompt import VLPrompt
from xmafast.methods.vop import VoP
from xmafast.methods.vpt import VPT

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
