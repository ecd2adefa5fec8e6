"""The bottleneck adapter as a registered op: Triton on CUDA, eager on the CPU, gradients through a second op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xmafast.kernels.bottleneck import cpu, reference
from xmafast.kernels.dispatch import launch, use_triton


@torch.library.custom_op("xmafast::adapter_forward", mutates_args=(), device_types="cuda")
def _forward(
    x: Tensor, residual: Tensor | None, down: Tensor, down_bias: Tensor, own: Tensor, own_bias: Tensor, shared: Tensor, shared_bias: Tensor,
    activation: str, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from xmafast.kernels.bottleneck import triton

    skip = x if residual is None else residual
    return launch(triton.adapter_forward, x, skip, down, down_bias, own, own_bias, shared, shared_bias, activation, scale)


@_forward.register_kernel("cpu")
def _(
    x: Tensor, residual: Tensor | None, down: Tensor, down_bias: Tensor, own: Tensor, own_bias: Tensor, shared: Tensor, shared_bias: Tensor,
    activation: str, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    h = torch.nn.functional.linear(x, down, down_bias)
    up = torch.nn.functional.linear(reference.ACTIVATIONS[activation](h), torch.cat([own, shared]), torch.cat([own_bias, shared_bias]))
    return (x if residual is None else residual) + scale * up, h


@_forward.register_fake
def _(
    x: Tensor, residual: Tensor | None, down: Tensor, down_bias: Tensor, own: Tensor, own_bias: Tensor, shared: Tensor, shared_bias: Tensor,
    activation: str, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return x.new_empty(x.shape), x.new_empty(x.shape[0], down.shape[0])


@torch.library.custom_op("xmafast::adapter_backward", mutates_args=(), device_types="cuda")
def _backward(
    dy: Tensor, h: Tensor, down: Tensor, own: Tensor, shared: Tensor, activation: str, scale: float, skip: bool
) -> tuple[Tensor, Tensor]:
    from xmafast.kernels.bottleneck import triton

    return launch(triton.adapter_backward, dy, h, down, own, shared, activation, scale, skip)


@_backward.register_kernel("cpu")
def _(dy: Tensor, h: Tensor, down: Tensor, own: Tensor, shared: Tensor, activation: str, scale: float, skip: bool) -> tuple[Tensor, Tensor]:
    dh = scale * (dy @ torch.cat([own, shared])) * reference.slope(h, activation)
    dx = dh @ down
    return dx + dy if skip else dx, dh


@_backward.register_fake
def _(dy: Tensor, h: Tensor, down: Tensor, own: Tensor, shared: Tensor, activation: str, scale: float, skip: bool) -> tuple[Tensor, Tensor]:
    return dy.new_empty(dy.shape), dy.new_empty(h.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, residual, down, _, own, _, shared, _, activation, scale = inputs
    # the pre-activation h is r wide: keeping it spares the backward a product over all of x
    ctx.save_for_backward(x, output[1], down, own, shared)
    ctx.activation, ctx.scale, ctx.skip = activation, scale, residual is None
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if dy is None:
        return (None,) * 10
    x, h, down, own, shared = ctx.saved_tensors
    dy = dy if dy.stride(-1) == 1 else dy.contiguous()
    dx, dh = _backward(dy, h, down, own, shared, ctx.activation, ctx.scale, ctx.skip)
    weights = weight_gradients(dy, dh, x, h, own.shape[0], ctx.activation, ctx.scale)
    return dx, None if ctx.skip else dy, *weights, None, None


def weight_gradients(dy: Tensor, dh: Tensor, x: Tensor, h: Tensor, n: int, activation: str, scale: float) -> tuple[Tensor, ...]:
    """The gradients of down, down_bias, own, own_bias, shared, shared_bias: plain products, of which own has the first n rows."""
    d_up = scale * (dy.mT @ reference.ACTIVATIONS[activation](h))
    d_bias = scale * dy.sum(0)
    return dh.mT @ x, dh.sum(0), d_up[:n], d_bias[:n], d_up[n:], d_bias[n:]


_forward.register_autograd(_gradients, setup_context=_setup)


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
    impl: str = "auto",
) -> Tensor:  # (..., D)
    """``y = residual + scale * concat[z Wu' + bu, z Ws' + bs]`` with ``z = act(x Wd' + bd)``.

    The own up-projection writes the first D - s channels, the shared one the last s: Eqs. (4)-(6) of the Cross-Modal
    Adapter (arXiv 2211.09623), whose published sizes count the biases. Weights are (out, in), as in ``nn.Linear``.
    activation: quick_gelu, gelu, relu or none. impl: auto, eager or triton (``xmafast.kernels.dispatch``).

    Raises ValueError for an unknown activation or impl, for up-projections that do not fill D channels, or for a residual
    of another shape than x.
    """
    reference.check(x, up_weight, shared_weight, activation)
    reference.check_shapes(x, residual=residual)
    if not use_triton(impl, x, down_weight, up_weight):
        weights = (down_weight, down_bias, up_weight, up_bias, shared_weight, shared_bias)
        eager = cpu.adapter if cpu.takes(impl, x, residual, *weights) else reference.adapter
        return eager(x, *weights, activation=activation, scale=scale, residual=residual)

    y, _h = _forward(
        _rows(x), None if residual is None else _rows(residual.to(x.dtype)),
        *_weights(x, down_weight, down_bias, up_weight, up_bias, shared_weight, shared_bias),
        activation, float(scale),
    )  # fmt: skip
    out: Tensor = y.view(x.shape)
    return out


def _weights(
    x: Tensor, down: Tensor, down_bias: Tensor | None, own: Tensor, own_bias: Tensor | None,
    shared: Tensor | None, shared_bias: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The six weights contiguous and in x's dtype; a bias that is not there is zero, a shared part that is not there has no rows."""

    def ready(weight: Tensor | None, *shape: int) -> Tensor:
        return x.new_zeros(shape) if weight is None else weight.to(x.dtype).contiguous()

    r = down.shape[0]
    s = 0 if shared is None else shared.shape[0]
    return ready(down), ready(down_bias, r), ready(own), ready(own_bias, own.shape[0]), ready(shared, s, r), ready(shared_bias, s)


def _rows(x: Tensor) -> Tensor:
    """(..., D) as (M, D) with unit stride along D, without a copy where the layout allows it."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()
