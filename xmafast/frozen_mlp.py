"""The MLP of a frozen block, with a gradient for its input alone: in training on a CPU, where its hidden activations are what costs.

They are four times as wide as the stream, and autograd's steps make a new tensor of that size for each of theirs. Here one is kept, and
the backward pass turns one gradient into the next in place. QuickGELU, x s(1.702 x), is SiLU of 1.702 x over 1.702: the factor goes into
the first product and its inverse into the second, so that it too is one step and not three.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

QUICK = 1.702
PARTS = ["c_fc", "gelu", "c_proj"]


def takes(mlp: nn.Module, x: Tensor) -> bool:
    """Whether ``frozen_mlp`` can do what open_clip's ``mlp(x)`` does, and a graph is built through it."""
    if not (torch.is_grad_enabled() and x.requires_grad and x.device.type == "cpu") or torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_compiling() or [name for name, _ in mlp.named_children()] != PARTS:
        return False
    if type(mlp.gelu) is not QuickGELU and not (type(mlp.gelu) is nn.GELU and mlp.gelu.approximate == "none"):
        return False
    weights = [getattr(part, name) for part in (mlp.c_fc, mlp.c_proj) for name in ("weight", "bias")]
    return all(w is not None and not w.requires_grad and w.dtype == x.dtype and w.device.type == "cpu" for w in weights)


def frozen_mlp(mlp: Any, x: Tensor) -> Tensor:
    """``mlp(x)``, (..., D) -> (..., D). With GELU the same to the bit; with QuickGELU to rounding."""
    rows = x.reshape(-1, x.shape[-1])
    first, second = mlp.c_fc, mlp.c_proj
    y: Tensor = _FrozenMLP.apply(rows, first.weight, first.bias, second.weight, second.bias, isinstance(mlp.gelu, QuickGELU))
    return y.view(*x.shape[:-1], -1)


class _FrozenMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, quick: bool) -> Tensor:
        factor = QUICK if quick else 1.0
        h = torch.addmm(b1, x, w1.t(), beta=factor, alpha=factor)
        y = torch.addmm(b2, F.silu(h) if quick else F.gelu(h), w2.t(), alpha=1 / factor)
        ctx.save_for_backward(h, w1, w2)
        ctx.quick = quick
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        h, w1, w2 = ctx.saved_tensors
        d = g @ w2  # the factor and its inverse cancel
        if ctx.quick:
            torch.ops.aten.silu_backward.grad_input(d, h, grad_input=d)
        else:
            torch.ops.aten.gelu_backward.grad_input(d, h, approximate="none", grad_input=d)
        return d @ w1, None, None, None, None, None
