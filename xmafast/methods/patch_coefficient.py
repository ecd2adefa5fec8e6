"""A patch coefficient: how much of what a method changes is let through.

With lambda in 0..1, what a place makes of y becomes y + lambda (place(y) - y), what it adds becomes lambda times it, and a tuned weight
W0 + lambda (W - W0) (Delta-Patching's contract; of weights, WiSE-FT, arXiv 2109.01903). 0 is the frozen model, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from xmafast.blocks import Map, Places


def patched(places: Places, share: float) -> Places:
    """Places that do ``share`` of what these do. For methods that neither add nor move tokens."""
    if share == 1:
        return places

    def mixed(place: Map | None) -> Map | None:
        return None if place is None else lambda y: y + share * (place(y) - y)

    def added(place: Callable[[Tensor, Tensor], Tensor] | None) -> Callable[[Tensor, Tensor], Tensor] | None:
        return None if place is None else lambda x, h: share * place(x, h)

    qkv = places.qkv
    return replace(
        places,
        before=mixed(places.before),
        qkv=None if qkv is None else lambda h, y: y + share * (qkv(h, y) - y),
        parallel_attention=added(places.parallel_attention),
        after_attention=mixed(places.after_attention),
        parallel_mlp=added(places.parallel_mlp),
        after_mlp=mixed(places.after_mlp),
        after=mixed(places.after),
    )
