"""Multiply-accumulates of an embedding, counted without weights and without memory."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from xmafast.backbone import Backbone
from xmafast.methods import METHODS
from xmafast.pretrained import meta_backbone
from xmafast.retriever import Retriever

FRAMES, WORDS = 12, 32


def count_macs(clip: Backbone, method: str | None = None, header: str | None = None, **options: Any) -> dict[str, int]:
    """Of one video of 12 frames and of one caption of 32 words: ``{"video": ..., "text": ...}``. clip: a ``meta_backbone``.

    A text encoder that is not causal reads its whole context length instead.
    Counted are matrix products, convolutions and attention of a forward pass, as torch counts them; not norms, activations and other
    elementwise work. Raises UsageError for an unknown name or option.
    """
    known = METHODS[method].known_options() if method in METHODS else {}
    if "second" in known:  # of a method of two backbones, the other one
        options["second"] = meta_backbone(options.get("second", known["second"]))
    with torch.device("meta"):
        retriever = Retriever(clip, method, header, words=WORDS, impl="eager", **options).requires_grad_(False)
        frames = torch.zeros(1, FRAMES, clip.image_size, clip.image_size, 3, dtype=torch.uint8)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused layer is not counted
    try:
        return {"video": _macs(lambda: retriever.encode_frames(frames)), "text": _macs(lambda: retriever.encode_text([""]))}
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Counter(TorchDispatchMode):
    """Sums what torch's own table says of each operation."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return result


def _macs(run: Any) -> int:
    with torch.no_grad(), _Counter() as counter:
        run()
    return int(counter.flops // 2)
