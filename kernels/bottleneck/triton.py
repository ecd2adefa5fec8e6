"""The bottleneck adapter in Triton: x read once from memory, y written once.

One program owns BLOCK_M rows. It walks over the width twice: first to gather the pre-activation ``h = x Wd' + bd`` in an
accumulator, then, with the activation rounded to x's dtype (as eager rounds it), to write ``residual + scale * (z Wu' + b)``
slice by slice. The second walk finds its rows of x in the L2 cache. A bottleneck wider than BLOCK_R goes through in blocks:
the first walk is repeated for each, and the second reads h back from where the backward wants it anyway. The backward has
the same shape, with the weights' roles exchanged; the weights' own gradients are plain matrix products, left to cuBLAS.

The kernels with a LayerNorm write stream + adapter where the others write the adapter, gather its rows' statistics in
passing, and walk once more: forward to standardise what was just stored, backward, before all else, to take the gradient
through the norm.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CODES = {"none": 0, "relu": 1, "quick_gelu": 2, "gelu": 3}


@triton.jit
def _activate(h, ACTIVATION: tl.constexpr):
    if ACTIVATION == 1:
        return tl.maximum(h, 0.0)
    if ACTIVATION == 2:
        return h * tl.sigmoid(1.702 * h)
    if ACTIVATION == 3:
        return 0.5 * h * (1.0 + tl.erf(h * 0.7071067811865476))
    return h


@triton.jit
def _slope(h, ACTIVATION: tl.constexpr):
    """The derivative of the activation at h."""
    if ACTIVATION == 1:
        return tl.where(h > 0, 1.0, 0.0)
    if ACTIVATION == 2:
        s = tl.sigmoid(1.702 * h)
        return s * (1.0 + 1.702 * h * (1.0 - s))
    if ACTIVATION == 3:
        return 0.5 * (1.0 + tl.erf(h * 0.7071067811865476)) + h * 0.3989422804014327 * tl.exp(-0.5 * h * h)
    return tl.full(h.shape, 1.0, h.dtype)


@triton.jit
def _load_up(own, shared, d, r, D: tl.constexpr, OWN: tl.constexpr, R: tl.constexpr):
    """Rows d of [own; shared], (len(d), len(r)), from two tensors that are never joined in memory."""
    rank = r[None, :] < R
    w = tl.load(own + d[:, None] * R + r[None, :], mask=(d[:, None] < OWN) & rank, other=0.0)
    if OWN < D:
        tail = (d[:, None] >= OWN) & (d[:, None] < D)
        w += tl.load(shared + (d[:, None] - OWN) * R + r[None, :], mask=tail & rank, other=0.0)
    return w


@triton.jit
def _store_pre_activation(
    x, down, down_bias, h, m, M, stride_x,
    D: tl.constexpr, R: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """The first walk of a forward kernel: h = x Wd' + bd of rows m."""
    row = m[:, None] < M
    for first in range(0, R, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        acc = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            a = tl.load(x + m[:, None] * stride_x + d[None, :], mask=row & (d[None, :] < D), other=0.0)
            b = tl.load(down + r[None, :] * D + d[:, None], mask=(r[None, :] < R) & (d[:, None] < D), other=0.0)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
        acc += tl.load(down_bias + r, mask=r < R, other=0.0)[None, :].to(tl.float32)
        tl.store(h + m[:, None] * R + r[None, :], acc.to(h.dtype.element_ty), mask=row & (r[None, :] < R))
    tl.debug_barrier()  # what one thread stored of h, another now reads


@triton.jit
def _up(
    h, own, own_bias, shared, shared_bias, m, d, M,
    D: tl.constexpr, OWN: tl.constexpr, R: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Columns d of concat[z Wu' + bu, z Ws' + bs] in float32, for rows m."""
    delta = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in range(0, R, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        before = tl.load(h + m[:, None] * R + r[None, :], mask=(m[:, None] < M) & (r[None, :] < R), other=0.0)
        z = _activate(before.to(tl.float32), ACTIVATION).to(own.dtype.element_ty)
        w = _load_up(own, shared, d, r, D, OWN, R)
        delta = tl.dot(z, tl.trans(w), delta, input_precision=PRECISION)
    bias = tl.load(own_bias + d, mask=d < OWN, other=0.0)
    if OWN < D:
        bias += tl.load(shared_bias + d - OWN, mask=(d >= OWN) & (d < D), other=0.0)
    return delta + bias[None, :].to(tl.float32)


@triton.jit
def _store_gradients(
    dy, h, down, own, shared, dx, dh, m, M, stride_dy, scale,
    D: tl.constexpr, OWN: tl.constexpr, R: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, SKIP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Both walks of a backward kernel: dh and dx of rows m from the gradient dy at the adapter's output."""
    row = m[:, None] < M
    for first in range(0, R, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        acc = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            g = tl.load(dy + m[:, None] * stride_dy + d[None, :], mask=row & (d[None, :] < D), other=0.0).to(own.dtype.element_ty)
            acc = tl.dot(g, _load_up(own, shared, d, r, D, OWN, R), acc, input_precision=PRECISION)
        at = row & (r[None, :] < R)
        before = tl.load(h + m[:, None] * R + r[None, :], mask=at, other=0.0).to(tl.float32)
        grad = scale * acc * _slope(before, ACTIVATION)
        tl.store(dh + m[:, None] * R + r[None, :], grad.to(dh.dtype.element_ty), mask=at)
    tl.debug_barrier()  # what one thread stored of dh, another now reads
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        value = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for first in range(0, R, BLOCK_R):
            r = first + tl.arange(0, BLOCK_R)
            grad = tl.load(dh + m[:, None] * R + r[None, :], mask=row & (r[None, :] < R), other=0.0)
            w = tl.load(down + r[:, None] * D + d[None, :], mask=(r[:, None] < R) & (d[None, :] < D), other=0.0)
            value = tl.dot(grad, w, value, input_precision=PRECISION)
        here = row & (d[None, :] < D)
        if SKIP:
            value += tl.load(dy + m[:, None] * stride_dy + d[None, :], mask=here, other=0.0).to(tl.float32)
        tl.store(dx + m[:, None] * D + d[None, :], value.to(dx.dtype.element_ty), mask=here)


@triton.jit
def adapter_forward_kernel(
    x, residual, down, down_bias, own, own_bias, shared, shared_bias, y, h,
    M, stride_x, stride_residual, scale,
    D: tl.constexpr, OWN: tl.constexpr, R: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """y (M, D) and the pre-activation h (M, R) of rows x (M, D)."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    _store_pre_activation(x, down, down_bias, h, m, M, stride_x, D, R, PRECISION, BLOCK_M, BLOCK_D, BLOCK_R)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        here = (m[:, None] < M) & (d[None, :] < D)
        up = _up(h, own, own_bias, shared, shared_bias, m, d, M, D, OWN, R, ACTIVATION, PRECISION, BLOCK_M, BLOCK_D, BLOCK_R)
        skip = tl.load(residual + m[:, None] * stride_residual + d[None, :], mask=here, other=0.0)
        value = skip.to(tl.float32) + scale * up
        tl.store(y + m[:, None] * D + d[None, :], value.to(y.dtype.element_ty), mask=here)


@triton.jit
def adapter_backward_kernel(
    dy, h, down, own, shared, dx, dh,
    M, stride_dy, scale,
    D: tl.constexpr, OWN: tl.constexpr, R: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, SKIP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """dh (M, R), the gradient at the pre-activation, and dx (M, D), with dy itself added where SKIP: the residual was x."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    _store_gradients(
        dy, h, down, own, shared, dx, dh, m, M, stride_dy, scale, D, OWN, R, ACTIVATION, PRECISION, SKIP, BLOCK_M, BLOCK_D, BLOCK_R
    )  # fmt: skip


@triton.jit
def adapter_norm_forward_kernel(
    x, residual, stream, norm_weight, norm_bias, down, down_bias, own, own_bias, shared, shared_bias,
    stream_out, normed, h, mean, rstd,
    M, stride_x, stride_residual, stride_stream, scale, eps,
    D: tl.constexpr, OWN: tl.constexpr, R: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """stream_out and normed (M, D), h (M, R), and the rows' mean and 1 / standard deviation (M,) that the norm used."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = m[:, None] < M
    _store_pre_activation(x, down, down_bias, h, m, M, stride_x, D, R, PRECISION, BLOCK_M, BLOCK_D, BLOCK_R)

    center = tl.zeros((BLOCK_M,), tl.float32)
    square = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        real = d[None, :] < D
        here = row & real
        up = _up(h, own, own_bias, shared, shared_bias, m, d, M, D, OWN, R, ACTIVATION, PRECISION, BLOCK_M, BLOCK_D, BLOCK_R)
        skip = tl.load(residual + m[:, None] * stride_residual + d[None, :], mask=here, other=0.0)
        base = tl.load(stream + m[:, None] * stride_stream + d[None, :], mask=here, other=0.0)
        value = (base.to(tl.float32) + (skip.to(tl.float32) + scale * up)).to(stream_out.dtype.element_ty)
        tl.store(stream_out + m[:, None] * D + d[None, :], value, mask=here)
        # statistics of the rounded values, since those are what eager's norm reads; slices merge as in Chan et al. (1979),
        # where a sum of squares would cancel
        value = tl.where(real, value.to(tl.float32), 0.0)
        seen, count = start * 1.0, tl.minimum(D - start, BLOCK_D) * 1.0
        slice_mean = tl.sum(value, 1) / count
        gap = slice_mean - center
        off = tl.where(real, value - slice_mean[:, None], 0.0)
        center += gap * (count / (seen + count))
        square += tl.sum(off * off, 1) + gap * gap * (seen * count / (seen + count))
    scatter = tl.rsqrt(square / D + eps)
    tl.store(mean + m, center, mask=m < M)
    tl.store(rstd + m, scatter, mask=m < M)

    tl.debug_barrier()  # what one thread stored of stream_out, another now reads
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        here = row & (d[None, :] < D)
        value = tl.load(stream_out + m[:, None] * D + d[None, :], mask=here, other=0.0).to(tl.float32)
        w = tl.load(norm_weight + d, mask=d < D, other=0.0).to(tl.float32)
        b = tl.load(norm_bias + d, mask=d < D, other=0.0).to(tl.float32)
        value = (value - center[:, None]) * scatter[:, None] * w[None, :] + b[None, :]
        tl.store(normed + m[:, None] * D + d[None, :], value.to(normed.dtype.element_ty), mask=here)


@triton.jit
def _norm_slice(d_normed, stream_out, norm_weight, center, scatter, m, d, M, stride_d_normed, D: tl.constexpr):
    """Columns d of weight * d_normed and of the standardised rows, zero in the padding."""
    here = (m[:, None] < M) & (d[None, :] < D)
    w = tl.load(norm_weight + d, mask=d < D, other=0.0).to(tl.float32)
    grad = tl.load(d_normed + m[:, None] * stride_d_normed + d[None, :], mask=here, other=0.0).to(tl.float32) * w[None, :]
    value = tl.load(stream_out + m[:, None] * D + d[None, :], mask=here, other=0.0).to(tl.float32)
    return grad, (value - center[:, None]) * scatter[:, None]


@triton.jit
def adapter_norm_backward_kernel(
    d_stream_out, d_normed, stream_out, mean, rstd, norm_weight, h, down, own, shared, d_stream, dx, dh,
    M, stride_d_stream_out, stride_d_normed, scale,
    D: tl.constexpr, OWN: tl.constexpr, R: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, SKIP: tl.constexpr,
    STREAM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """d_stream (M, D), the gradient at stream + adapter, then dh and dx from it. STREAM: d_stream_out is there to be added."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    center = tl.load(mean + m, mask=m < M, other=0.0)
    scatter = tl.load(rstd + m, mask=m < M, other=0.0)
    level = tl.zeros((BLOCK_M,), tl.float32)
    along = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        grad, standard = _norm_slice(d_normed, stream_out, norm_weight, center, scatter, m, d, M, stride_d_normed, D)
        level += tl.sum(grad, 1) / D
        along += tl.sum(grad * standard, 1) / D
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        here = (m[:, None] < M) & (d[None, :] < D)
        grad, standard = _norm_slice(d_normed, stream_out, norm_weight, center, scatter, m, d, M, stride_d_normed, D)
        value = scatter[:, None] * (grad - level[:, None] - standard * along[:, None])
        if STREAM:
            value += tl.load(d_stream_out + m[:, None] * stride_d_stream_out + d[None, :], mask=here, other=0.0).to(tl.float32)
        tl.store(d_stream + m[:, None] * D + d[None, :], value.to(d_stream.dtype.element_ty), mask=here)
    tl.debug_barrier()  # what one thread stored of d_stream, another now reads
    _store_gradients(
        d_stream, h, down, own, shared, dx, dh, m, M, D, scale, D, OWN, R, ACTIVATION, PRECISION, SKIP, BLOCK_M, BLOCK_D, BLOCK_R
    )  # fmt: skip


def blocks(bottleneck: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile sizes and warps for a bottleneck, such that nothing spills on sm_80, sm_90 and sm_100."""
    rank = max(16, triton.next_power_of_2(bottleneck))
    if dtype == torch.float32:  # four bytes a value, and no tensor cores for exact products
        # several blocks of 64 spill on sm_90 under Triton 3.8, though not under 3.9
        return {"BLOCK_M": 32, "BLOCK_D": 32, "BLOCK_R": rank if rank <= 64 else 32, "num_warps": 8, "num_stages": 2}
    if rank == 128:
        return {"BLOCK_M": 64, "BLOCK_D": 64, "BLOCK_R": 128, "num_warps": 8, "num_stages": 2}
    return {"BLOCK_M": 64, "BLOCK_D": 64 if 16 < rank <= 64 else 32, "BLOCK_R": min(rank, 64), "num_warps": 4, "num_stages": 2}


def norm_blocks(bottleneck: int, dtype: torch.dtype) -> dict[str, int]:
    """The same for the kernels with a LayerNorm, which hold more values at once; their stream may be float32 over bf16 products."""
    if dtype == torch.float32:
        return blocks(bottleneck, dtype)
    rank = max(16, triton.next_power_of_2(bottleneck))
    if rank > 128:
        return {"BLOCK_M": 64, "BLOCK_D": 64, "BLOCK_R": 64, "num_warps": 4, "num_stages": 2}
    return {"BLOCK_M": 64, "BLOCK_D": 32, "BLOCK_R": rank, "num_warps": 8, "num_stages": 2}


def adapter_forward(
    x: Tensor, residual: Tensor, down: Tensor, down_bias: Tensor, own: Tensor, own_bias: Tensor, shared: Tensor, shared_bias: Tensor,
    activation: str, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(M, D) rows, unit stride along D -> y (M, D) and h (M, r). Weights contiguous and of x's dtype; shared may have no rows."""
    m, d = x.shape
    r = down.shape[0]
    y, h = torch.empty((m, d), dtype=x.dtype, device=x.device), torch.empty((m, r), dtype=x.dtype, device=x.device)
    if m:
        tile = blocks(r, x.dtype)
        adapter_forward_kernel[(triton.cdiv(m, tile["BLOCK_M"]),)](
            x, residual, down, down_bias, own, own_bias, shared, shared_bias, y, h,
            m, x.stride(0), residual.stride(0), scale,
            D=d, OWN=own.shape[0], R=r, ACTIVATION=CODES[activation], PRECISION="ieee", **tile,
        )  # fmt: skip
    return y, h


def adapter_backward(
    dy: Tensor, h: Tensor, down: Tensor, own: Tensor, shared: Tensor, activation: str, scale: float, skip: bool
) -> tuple[Tensor, Tensor]:
    """Gradients dx (M, D) and dh (M, r) from dy (M, D) with unit stride along D."""
    m, d = dy.shape
    r = down.shape[0]
    dx, dh = torch.empty((m, d), dtype=dy.dtype, device=dy.device), torch.empty((m, r), dtype=dy.dtype, device=dy.device)
    if m:
        tile = blocks(r, dy.dtype)
        adapter_backward_kernel[(triton.cdiv(m, tile["BLOCK_M"]),)](
            dy, h, down, own, shared, dx, dh,
            m, dy.stride(0), scale,
            D=d, OWN=own.shape[0], R=r, ACTIVATION=CODES[activation], PRECISION="ieee", SKIP=skip, **tile,
        )  # fmt: skip
    return dx, dh


def adapter_norm_forward(
    x: Tensor, residual: Tensor, stream: Tensor, norm_weight: Tensor, norm_bias: Tensor,
    down: Tensor, down_bias: Tensor, own: Tensor, own_bias: Tensor, shared: Tensor, shared_bias: Tensor,
    activation: str, scale: float, eps: float, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As ``adapter_forward`` -> stream_out and normed (M, D) of ``dtype``, h (M, r), mean and rstd (M,) in float32."""
    m, d = x.shape
    r = down.shape[0]
    stream_out, normed = (torch.empty((m, d), dtype=dtype, device=x.device) for _ in range(2))
    mean, rstd = (torch.empty((m,), dtype=torch.float32, device=x.device) for _ in range(2))
    h = torch.empty((m, r), dtype=x.dtype, device=x.device)
    if m:
        tile = norm_blocks(r, x.dtype)
        adapter_norm_forward_kernel[(triton.cdiv(m, tile["BLOCK_M"]),)](
            x, residual, stream, norm_weight, norm_bias, down, down_bias, own, own_bias, shared, shared_bias,
            stream_out, normed, h, mean, rstd,
            m, x.stride(0), residual.stride(0), stream.stride(0), scale, eps,
            D=d, OWN=own.shape[0], R=r, ACTIVATION=CODES[activation], PRECISION="ieee", **tile,
        )  # fmt: skip
    return stream_out, normed, h, mean, rstd


def adapter_norm_backward(
    d_stream_out: Tensor | None, d_normed: Tensor, stream_out: Tensor, mean: Tensor, rstd: Tensor, norm_weight: Tensor,
    h: Tensor, down: Tensor, own: Tensor, shared: Tensor, activation: str, scale: float, skip: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients d_stream and dx (M, D) and dh (M, r) from those of both outputs, each with unit stride along D."""
    m, d = stream_out.shape
    r = down.shape[0]
    d_stream, dx = torch.empty((m, d), dtype=stream_out.dtype, device=h.device), torch.empty((m, d), dtype=h.dtype, device=h.device)
    dh = torch.empty((m, r), dtype=h.dtype, device=h.device)
    if m:
        tile = norm_blocks(r, h.dtype)
        given = d_normed if d_stream_out is None else d_stream_out
        adapter_norm_backward_kernel[(triton.cdiv(m, tile["BLOCK_M"]),)](
            given, d_normed, stream_out, mean, rstd, norm_weight, h, down, own, shared, d_stream, dx, dh,
            m, given.stride(0), d_normed.stride(0), scale,
            D=d, OWN=own.shape[0], R=r, ACTIVATION=CODES[activation], PRECISION="ieee", SKIP=skip, STREAM=d_stream_out is not None, **tile,
        )  # fmt: skip
    return d_stream, dx, dh
