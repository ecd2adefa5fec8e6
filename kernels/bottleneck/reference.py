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
    """``y = residual + scale * concat[z Wu' + bu, z Ws' + bs]`` with ``z = act(x Wd' + bd)``.

    The own up-projection writes the first D - s channels, the shared one the last s: Eqs. (4)-(6) of the Cross-Modal
    Adapter (arXiv 2211.09623), whose published sizes count the biases. Weights are (out, in), as in ``nn.Linear``.
    Raises ValueError for an unknown activation or for up-projections that do not fill D channels.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    width = up_weight.shape[0] + (0 if shared_weight is None else shared_weight.shape[0])
    if width != x.shape[-1]:
        raise ValueError(f"own and shared up-projection write {width} channels, and x has {x.shape[-1]}")
    z = ACTIVATIONS[activation](F.linear(x, down_weight, down_bias))
    y = F.linear(z, up_weight, up_bias)
    if shared_weight is not None:
        y = torch.cat([y, F.linear(z, shared_weight, shared_bias)], dim=-1)
    return (x if residual is None else residual) + (y if scale == 1.0 else scale * y)
