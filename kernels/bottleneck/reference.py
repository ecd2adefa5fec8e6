"""The bottleneck adapter in eager PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
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
        return 0.5 * (1 + torch.erf(h * 0.5**0.5)) + h * torch.exp(-0.5 * h * h) / math.sqrt(2 * math.pi)
    return (h > 0).to(h.dtype) if activation == "relu" else torch.ones_like(h)


def check(x: Tensor, up_weight: Tensor, shared_weight: Tensor | None, activation: str) -> None:
    """Raise ValueError for an unknown activation or for up-projections that do not fill the width of x."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    width = up_weight.shape[0] + (0 if shared_weight is None else shared_weight.shape[0])
    if width != x.shape[-1]:
        raise ValueError(f"own and shared up-projection write {width} channels, and x has {x.shape[-1]}")


def check_shapes(x: Tensor, **others: Tensor | None) -> None:
    """Raise ValueError where one of the others has another shape than x: a kernel does not broadcast."""
    for name, tensor in others.items():
        if tensor is not None and tensor.shape != x.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, and x is {tuple(x.shape)}")


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


def adapter_norm(
    x: Tensor,  # (..., D)
    stream: Tensor,  # (..., D)
    norm_weight: Tensor,  # (D,)
    norm_bias: Tensor,  # (D,)
    down_weight: Tensor,  # (r, D)
    down_bias: Tensor | None,  # (r,)
    up_weight: Tensor,  # (D - s, r)
    up_bias: Tensor | None,  # (D - s,)
    shared_weight: Tensor | None = None,  # (s, r)
    shared_bias: Tensor | None = None,  # (s,)
    *,
    eps: float = 1e-5,
    activation: str = "quick_gelu",
    scale: float = 1.0,
    residual: Tensor | None = None,  # (..., D); None adds x itself
) -> tuple[Tensor, Tensor]:  # (..., D), (..., D)
    """The formula of ``xmafast.kernels.adapter_norm``, any device and floating dtype."""
    check_shapes(x, stream=stream, residual=residual)
    stream_out = stream + adapter(
        x, down_weight, down_bias, up_weight, up_bias, shared_weight, shared_bias, activation=activation, scale=scale, residual=residual
    )
    normed = F.layer_norm(stream_out, stream_out.shape[-1:], norm_weight, norm_bias, eps)
    return stream_out, normed.to(stream_out.dtype)  # autocast norms in float32, and open_clip's LayerNorm casts back
