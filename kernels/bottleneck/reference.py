"""The bottleneck adapter in eager PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = {
    "quick_gelu": lambda z: z * torch.sigmoid(1.702 * z),
    "gelu": F.gelu,
    "relu": F.relu,
    "none": lambda z: z,
}


def slope(h: Tensor, activation: str) -> Tensor:
    """The derivative of an activation at the pre-activation h."""
    if activation == "quick_gelu":
        s = torch.sigmoid(1.702 * h)
        return s * (1 + 1.702 * h * (1 - s))
    if activation == "gelu":
        return 0.5 * (1 + torch.erf(h * 0.5**0.5)) + h * torch.exp(-0.5 * h * h) / (2 * torch.pi) ** 0.5
    return (h > 0).to(h.dtype) if activation == "relu" else torch.ones_like(h)


def check(x: Tensor, up_weight: Tensor, shared_weight: Tensor | None, activation: str) -> None:
    """Raise ValueError for an unknown activation or for up-projections that do not fill the width of x."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    width = up_weight.shape[0] + (0 if shared_weight is None else shared_weight.shape[0])
    if width != x.shape[-1]:
        raise ValueError(f"own and shared up-projection write {width} channels, and x has {x.shape[-1]}")


def adapter(
    x: Tensor,  # (..., D)
    down_weight: Tensor,  # (r, D)
    down_bias: Tensor | None,  # (r,)
    up_weight: Tensor,  # (D - s, r)
    up_bias: Tensor | None,  # (D - s,)
    shared_weight: Tensor | None = None,  # (s, r)
    shared_bias: Tensor | None = None,  # (s,)
    *,
    activation: str = "quick_gelu",
    scale: float = 1.0,
    residual: Tensor | None = None,  # (..., D); None adds x itself
) -> Tensor:  # (..., D)
    """The formula of ``xmafast.kernels.adapter``, any device and floating dtype."""
    check(x, up_weight, shared_weight, activation)
    z = ACTIVATIONS[activation](F.linear(x, down_weight, down_bias))
    y = F.linear(z, up_weight, up_bias)
    if shared_weight is not None:
        y = torch.cat([y, F.linear(z, shared_weight, shared_bias)], dim=-1)
    return (x if residual is None else residual) + (y if scale == 1.0 else scale * y)
