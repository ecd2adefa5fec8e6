"""The adapter with the residual add and the LayerNorm behind it, as one registered op: forms and gradients as in ``op.py``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xmafast.kernels.bottleneck import cpu, op, reference
from xmafast.kernels.dispatch import launch, use_triton


@torch.library.custom_op("xmafast::adapter_norm_forward", mutates_args=(), device_types="cuda")
def _forward(
    x: Tensor, residual: Tensor | None, stream: Tensor, norm_weight: Tensor, norm_bias: Tensor,
    down: Tensor, down_bias: Tensor, own: Tensor, own_bias: Tensor, shared: Tensor, shared_bias: Tensor,
    activation: str, scale: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    from xmafast.kernels.bottleneck import triton

    return launch(
        triton.adapter_norm_forward,
        x, x if residual is None else residual, stream, norm_weight, norm_bias, down, down_bias, own, own_bias, shared, shared_bias,
        activation, scale, eps, _promoted(x, residual, stream),
    )  # fmt: skip


@_forward.register_kernel("cpu")
def _(
    x: Tensor, residual: Tensor | None, stream: Tensor, norm_weight: Tensor, norm_bias: Tensor,
    down: Tensor, down_bias: Tensor, own: Tensor, own_bias: Tensor, shared: Tensor, shared_bias: Tensor,
    activation: str, scale: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    h = F.linear(x, down, down_bias)
    up = F.linear(reference.ACTIVATIONS[activation](h), torch.cat([own, shared]), torch.cat([own_bias, shared_bias]))
    stream_out = stream + ((x if residual is None else residual) + scale * up)
    wide = stream_out.to(_statistics(stream_out.dtype))
    normed, mean, rstd = torch.native_layer_norm(wide, wide.shape[-1:], norm_weight.to(wide.dtype), norm_bias.to(wide.dtype), eps)
    return stream_out, normed.to(stream_out.dtype), h, mean.view(-1), rstd.view(-1)


@_forward.register_fake
def _(
    x: Tensor, residual: Tensor | None, stream: Tensor, norm_weight: Tensor, norm_bias: Tensor,
    down: Tensor, down_bias: Tensor, own: Tensor, own_bias: Tensor, shared: Tensor, shared_bias: Tensor,
    activation: str, scale: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dtype, m = _promoted(x, residual, stream), x.shape[0]
    stream_out, normed = (x.new_empty(x.shape, dtype=dtype) for _ in range(2))
    mean, rstd = (x.new_empty(m, dtype=_statistics(dtype)) for _ in range(2))
    return stream_out, normed, x.new_empty(m, down.shape[0]), mean, rstd


@torch.library.custom_op("xmafast::adapter_norm_backward", mutates_args=(), device_types="cuda")
def _backward(
    d_stream_out: Tensor | None, d_normed: Tensor, stream_out: Tensor, mean: Tensor, rstd: Tensor, norm_weight: Tensor,
    h: Tensor, down: Tensor, own: Tensor, shared: Tensor, activation: str, scale: float, skip: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from xmafast.kernels.bottleneck import triton

    return launch(
        triton.adapter_norm_backward,
        d_stream_out, d_normed, stream_out, mean, rstd, norm_weight, h, down, own, shared, activation, scale, skip,
    )  # fmt: skip


@_backward.register_kernel("cpu")
def _(
    d_stream_out: Tensor | None, d_normed: Tensor, stream_out: Tensor, mean: Tensor, rstd: Tensor, norm_weight: Tensor,
    h: Tensor, down: Tensor, own: Tensor, shared: Tensor, activation: str, scale: float, skip: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    standard = _standardised(stream_out, mean, rstd)
    grad = d_normed * norm_weight.to(mean.dtype)
    g = rstd[:, None] * (grad - grad.mean(-1, keepdim=True) - standard * (grad * standard).mean(-1, keepdim=True))
    g = (g if d_stream_out is None else g + d_stream_out).to(stream_out.dtype)
    dh = scale * (g.to(h.dtype) @ torch.cat([own, shared])) * reference.slope(h, activation)
    dx = dh @ down
    return g, dx + g.to(h.dtype) if skip else dx, dh


@_backward.register_fake
def _(
    d_stream_out: Tensor | None, d_normed: Tensor, stream_out: Tensor, mean: Tensor, rstd: Tensor, norm_weight: Tensor,
    h: Tensor, down: Tensor, own: Tensor, shared: Tensor, activation: str, scale: float, skip: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return stream_out.new_empty(stream_out.shape), h.new_empty(stream_out.shape), h.new_empty(h.shape)


def _promoted(x: Tensor, residual: Tensor | None, stream: Tensor) -> torch.dtype:
    """The dtype of stream + (residual + ...) in eager."""
    dtype = torch.promote_types(x.dtype, stream.dtype)
    return dtype if residual is None else torch.promote_types(dtype, residual.dtype)


def _statistics(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _standardised(stream_out: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    return (stream_out - mean[:, None]) * rstd[:, None]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, _, norm_weight, _, down, _, own, _, shared, _, activation, scale, _ = inputs
    stream_out, _, h, mean, rstd = output
    ctx.save_for_backward(x, stream_out, mean, rstd, norm_weight, h, down, own, shared)
    ctx.activation, ctx.scale, ctx.skip = activation, scale, residual is None
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, d_stream_out: Tensor | None, d_normed: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    if d_stream_out is None and d_normed is None:
        return (None,) * 14
    x, stream_out, mean, rstd, norm_weight, h, down, own, shared = ctx.saved_tensors
    d_stream_out, d_normed = (g if g is None or g.stride(-1) == 1 else g.contiguous() for g in (d_stream_out, d_normed))
    d_weight = d_bias = None
    if d_normed is None:
        assert d_stream_out is not None
        g = d_stream_out
        dx, dh = op._backward(g.to(h.dtype), h, down, own, shared, ctx.activation, ctx.scale, ctx.skip)
    else:
        g, dx, dh = _backward(
            d_stream_out, d_normed, stream_out, mean, rstd, norm_weight, h, down, own, shared, ctx.activation, ctx.scale, ctx.skip
        )
        # the norm is frozen as a rule, and then its sums over all rows are spared
        d_weight = (d_normed * _standardised(stream_out, mean, rstd)).sum(0) if ctx.needs_input_grad[3] else None
        d_bias = d_normed.sum(0) if ctx.needs_input_grad[4] else None
    weights = op.weight_gradients(g.to(h.dtype), dh, x, h, own.shape[0], ctx.activation, ctx.scale)
    return dx, None if ctx.skip else g, g, d_weight, d_bias, *weights, None, None, None  # autograd casts each to its input's dtype


_forward.register_autograd(_gradients, setup_context=_setup)


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
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:  # (..., D), (..., D)
    """``stream_out = stream + adapter(x)`` and ``normed = LayerNorm(stream_out)``, the adapter as ``xmafast.kernels.adapter`` has it.

    In a CLIP block x is a sublayer's output before its residual add, stream the residual stream, and the LayerNorm the one
    that reads the stream next. Both results have the dtype to which stream + adapter(x) promotes; the LayerNorm reads
    stream_out as rounded to it. activation, scale, residual, impl: as ``adapter`` takes them.

    Raises ValueError where ``adapter`` does, and where stream or residual has another shape than x.
    """
    reference.check(x, up_weight, shared_weight, activation)
    reference.check_shapes(x, stream=stream, residual=residual)
    if not use_triton(impl, x, stream, down_weight, up_weight):
        given = (x, stream, norm_weight, norm_bias, down_weight, down_bias, up_weight, up_bias, shared_weight, shared_bias)
        eager = cpu.adapter_norm if cpu.takes(impl, residual, *given) else reference.adapter_norm
        return eager(*given, eps=eps, activation=activation, scale=scale, residual=residual)
    stream_out, normed, *_ = _forward(
        op._rows(x), None if residual is None else op._rows(residual), op._rows(stream), norm_weight.contiguous(), norm_bias.contiguous(),
        *op._weights(x, down_weight, down_bias, up_weight, up_bias, shared_weight, shared_bias),
        activation, float(scale), float(eps),
    )  # fmt: skip
    return stream_out.view(x.shape), normed.view(x.shape)
