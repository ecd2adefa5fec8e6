"""Patch dropping in training: each image keeps a random part of its patches, and a step costs as much less.

As Li et al. train CLIP (FLIP, arXiv 2212.00794) and video models are post-pretrained from it (Harvesting Video Foundation Models, arXiv
2307.06712). Evaluation sees every patch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.errors import UsageError
from xmafast.methods.base import Method
from xmafast.methods.combined import compose


def check_dropping(share: float, shape: Shape, method: Method | None) -> None:
    """Raise UsageError where patches cannot be dropped."""
    if not 0 <= share < 1:
        raise UsageError(f"--patch-drop must lie between 0 and 1, not {share}.")
    if share and shape.rotary:
        raise UsageError("--patch-drop cannot be used: this backbone's image tower needs its patches' rotary positions in every block.")
    if share and (method is None or method.on_features):
        raise UsageError("--patch-drop has nothing to drop: what is trained here reads the frozen model's embeddings.")
    if share and method is not None and method.needs_grid:
        raise UsageError(f"--patch-drop cannot be used with {method.name!r}, which needs every patch in its place.")


def dropping(places: Callable[[int], Places] | None, share: float, prefix: int) -> Callable[[int], Places]:
    """``places``, with patches dropped before the first block."""

    def before(x: Tensor) -> Tensor:
        patches = x[:, prefix:]
        kept = max(1, round((1 - share) * patches.shape[1]))
        chosen = torch.rand(patches.shape[:2], device=x.device).argsort(dim=1)[:, :kept].sort(dim=1)[0]
        return torch.cat([x[:, :prefix], patches.gather(1, chosen[..., None].expand(-1, -1, x.shape[-1]))], dim=1)

    def at(block: int) -> Places:
        own = Places() if places is None else places(block)
        return compose([Places(before=before), own]) if block == 0 else own

    return at
