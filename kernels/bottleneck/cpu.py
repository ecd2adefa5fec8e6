"""The bottleneck adapter on a CPU: the reference's formula in fewer passes over the (M, D) activations.

There what an adapter costs is not its products, which are r wide, but how often its activations go through memory, and eager's steps are a
pass each. Own and shared up-projection and their biases are one product here (z has a column of ones for the biases), which is added in
place to what is summed anyway; backwards one product gives all their gradients, and the gradient of x is made in one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from xmafast.kernels.bottleneck.reference import ACTIVATIONS, slope


def takes(impl: str, *tensors: Tensor | None) -> bool:
    """Whether ``impl="auto"`` comes here: plain tensors of one dtype on the CPU, outside autocast and what traces a graph."""
    there = [tensor for tensor in tensors if tensor is not None]
    if impl != "auto" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return all(type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" and t.dtype == there[0].dtype for t in there)


def adapter(
    x: Tensor,  # (..., D)
    *weights: Tensor | None,  # down, own and shared up-projection, each with its bias, as the reference takes them
    activation: str = "quick_gelu",
    scale: float = 1.0,
    residual: Tensor | None = None,  # (..., D); None adds x itself
    stream: Tensor | None = None,  # (..., D), added too
) -> Tensor:  # (..., D)
    """``xmafast.kernels.adapter``, and the sum of that and a residual stream."""
    weights += (None,) * (6 - len(weights))
    rows = [None if part is None else part.reshape(-1, x.shape[-1]) for part in (x, residual, stream)]
    out: Tensor = _Adapter.apply(*rows, *weights, activation, scale)
    return out.view(x.shape)


def adapter_norm(
    x: Tensor, stream: Tensor, norm_weight: Tensor, norm_bias: Tensor, *weights: Tensor | None, eps: float, **options: Any
) -> tuple[Tensor, Tensor]:
    """``xmafast.kernels.adapter_norm``: the sum, and its LayerNorm."""
    stream_out = adapter(x, *weights, stream=stream, **options)
    return stream_out, F.layer_norm(stream_out, stream_out.shape[-1:], norm_weight, norm_bias, eps)


class _Adapter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, stream: Tensor | None, down: Tensor, down_bias: Tensor | None,
        own: Tensor, own_bias: Tensor | None, shared: Tensor | None, shared_bias: Tensor | None, activation: str, scale: float,
    ) -> Tensor:  # fmt: skip
        h = F.linear(x, down, down_bias)
        z = ACTIVATIONS[activation](h)
        up = own if shared is None else torch.cat([own, shared])
        if own_bias is not None or shared_bias is not None:
            parts = [(own, own_bias), *([] if shared is None else [(shared, shared_bias)])]
            bias = torch.cat([weight.new_zeros(len(weight)) if b is None else b for weight, b in parts])
            z, up = torch.cat([z, z.new_ones(len(z), 1)], dim=1), torch.cat([up, bias[:, None]], dim=1)
        skip = x if residual is None else residual
        y = torch.addmm(skip, z, up.t(), alpha=scale) if stream is None else (skip + stream).addmm_(z, up.t(), alpha=scale)
        ctx.save_for_backward(x, h, z, up, down)
        ctx.activation, ctx.scale, ctx.skip, ctx.n = activation, scale, residual is None, len(own)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, h, z, up, down = ctx.saved_tensors
        x_needed, residual_needed, stream_needed, *weights_needed = ctx.needs_input_grad[:9]
        r, n, scale = h.shape[1], ctx.n, ctx.scale
        dx: Tensor | None = None
        weights: list[Tensor | None] = [None] * 6
        if x_needed or any(weights_needed[:2]):
            dh = (g @ up[:, :r]) * slope(h, ctx.activation)
            dh = dh if scale == 1.0 else scale * dh
            if x_needed:
                dx = torch.addmm(g, dh, down) if ctx.skip else dh @ down
            weights[:2] = dh.t() @ x if weights_needed[0] else None, dh.sum(0) if weights_needed[1] else None
        if any(weights_needed[2:]):
            d_up = g.t() @ z
            d_up = d_up if scale == 1.0 else scale * d_up
            made = (d_up[:n, :r], d_up[:n, -1], d_up[n:, :r], d_up[n:, -1])
            weights[2:] = [part if needed else None for part, needed in zip(made, weights_needed[2:], strict=True)]
        return dx, g if residual_needed else None, g if stream_needed else None, *weights, None, None
