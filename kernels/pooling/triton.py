"""The similarity headers in Triton.

Mean: one program pools one video, its frames read once. Text-conditioned: one program scores BLOCK_N texts against BLOCK_M
videos, whose frames, padded to FRAMES each, are the columns of one matrix product; softmax over each video's columns and a
second product, with the videos' Gram matrices on the diagonal of one matrix, give the score. Nothing of size (N, M, D) or
(N, M, F) is formed in memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from xmafast.kernels.pooling import reference
from xmafast.kernels.ranking.triton import count, pairs_of, precision, tile_place

EPS = reference.EPS
COLUMNS = 64  # frames of all videos of a tile


@triton.jit
def _sum_of_units(
    frames, mask, video, d, F, stride_m, stride_f, D: tl.constexpr, EPS: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The sum (BLOCK_D,) of a video's normalised real frames."""
    total = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, F, BLOCK_F):
        f = start + tl.arange(0, BLOCK_F)
        real = (f < F) & (tl.load(mask + video * F + f, mask=f < F, other=0) != 0)
        at = frames + video * stride_m + f.to(tl.int64)[:, None] * stride_f + d[None, :]
        x = tl.load(at, mask=real[:, None] & (d[None, :] < D), other=0.0).to(tl.float32)
        length = tl.maximum(tl.sqrt_rn(tl.sum(x * x, 1)), EPS)
        total += tl.sum(x / length[:, None], 0)
    return total


@triton.jit
def pool_kernel(
    frames, mask, out, F, stride_m, stride_f, D: tl.constexpr, EPS: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """out (M, D) float32: the normalised sum of a video's normalised real frames."""
    video = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    total = _sum_of_units(frames, mask, video, d, F, stride_m, stride_f, D, EPS, BLOCK_F, BLOCK_D)
    total /= tl.maximum(tl.sqrt_rn(tl.sum(total * total, 0)), EPS)
    tl.store(out + video * D + d, total, mask=d < D)


@triton.jit
def pool_backward_kernel(
    frames, mask, grad, out, F, stride_m, stride_f, D: tl.constexpr, EPS: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """out (M, F, D): the gradient at the frames of ``grad`` (M, D) at the pooled vectors. Below EPS a norm is a constant."""
    video = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    total = _sum_of_units(frames, mask, video, d, F, stride_m, stride_f, D, EPS, BLOCK_F, BLOCK_D)
    whole = tl.sqrt_rn(tl.sum(total * total, 0))
    g = tl.load(grad + video * D + d, mask=d < D, other=0.0).to(tl.float32)
    pooled = total / tl.maximum(whole, EPS)
    g = (g - pooled * tl.where(whole > EPS, tl.sum(pooled * g, 0), 0.0)) / tl.maximum(whole, EPS)
    for start in range(0, F, BLOCK_F):
        f = start + tl.arange(0, BLOCK_F)
        real = (f < F) & (tl.load(mask + video * F + f, mask=f < F, other=0) != 0)
        at = frames + video * stride_m + f.to(tl.int64)[:, None] * stride_f + d[None, :]
        x = tl.load(at, mask=real[:, None] & (d[None, :] < D), other=0.0).to(tl.float32)
        length = tl.sqrt_rn(tl.sum(x * x, 1))
        unit = x / tl.maximum(length, EPS)[:, None]
        along = tl.where(length > EPS, tl.sum(unit * g[None, :], 1), 0.0)
        value = tl.where(real[:, None], (g[None, :] - unit * along[:, None]) / tl.maximum(length, EPS)[:, None], 0.0)
        to = out + (video * F + f.to(tl.int64)[:, None]) * D + d[None, :]
        tl.store(to, value.to(out.dtype.element_ty), mask=(f[:, None] < F) & (d[None, :] < D))


@triton.jit
def _pooled(
    text, frames, mask, gram, n, first, N, M, F, stride_t, stride_m, stride_f, temperature,
    D: tl.constexpr, PRECISION: tl.constexpr, FRAMES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Inner products a, weights e up to their sum, and G e, (BLOCK_N, BLOCK_M, FRAMES), of texts n and the videos from ``first``."""
    column = tl.arange(0, BLOCK_M * FRAMES)
    m, f = first + column // FRAMES, column % FRAMES
    real = (m < M) & (f < F)
    real = real & (tl.load(mask + m.to(tl.int64) * F + f, mask=real, other=0) != 0)
    t = text + n.to(tl.int64)[:, None] * stride_t
    v = frames + m.to(tl.int64)[None, :] * stride_m + f[None, :] * stride_f
    a = tl.zeros((BLOCK_N, BLOCK_M * FRAMES), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        left = tl.load(t + d[None, :], mask=(n[:, None] < N) & (d[None, :] < D), other=0.0)
        right = tl.load(v + d[:, None], mask=real[None, :] & (d[:, None] < D), other=0.0)  # padding is never read
        a = tl.dot(left, right, a, input_precision=PRECISION)
    x = tl.reshape(tl.where(real[None, :], a / temperature, float("-inf")), (BLOCK_N, BLOCK_M, FRAMES))
    top = tl.max(x, 2)
    e = tl.exp(x - tl.where(top == float("-inf"), 0.0, top)[:, :, None])
    # one matrix with the videos' Gram matrices on its diagonal, so that G e of every video is one product
    m2, f2 = first + column[:, None] // FRAMES, column[:, None] % FRAMES
    on = (m2 == m[None, :]) & (m2 < M) & (f2 < F) & (f[None, :] < F)
    diagonal = tl.load(gram + m2.to(tl.int64) * F * F + f2 * F + f[None, :], mask=on, other=0.0)
    ge = tl.dot(tl.reshape(e, (BLOCK_N, BLOCK_M * FRAMES)), diagonal, input_precision="tf32x3")
    return tl.reshape(a, (BLOCK_N, BLOCK_M, FRAMES)), e, tl.reshape(ge, (BLOCK_N, BLOCK_M, FRAMES))


@triton.jit
def _score(a, e, ge, length, n, N):
    """(BLOCK_N, BLOCK_M) cosines, and the numerator, the square and the texts' norms that they come from."""
    numerator, square = tl.sum(a * e, 2), tl.maximum(tl.sum(e * ge, 2), 1.1754943508222875e-38)
    norm = tl.load(length + n, mask=n < N, other=1.0)[:, None]
    return numerator / (tl.sqrt_rn(square) * norm), numerator, square, norm


@triton.jit
def score_kernel(
    text, frames, mask, gram, length, out,
    N, M, F, stride_t, stride_m, stride_f, temperature,
    D: tl.constexpr, PRECISION: tl.constexpr, FRAMES: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out (N, M): the text-conditioned cosines."""
    block_n, block_m = tile_place(tl.cdiv(N, BLOCK_N), tl.cdiv(M, BLOCK_M), GROUP)
    n, m = block_n * BLOCK_N + tl.arange(0, BLOCK_N), block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    a, e, ge = _pooled(
        text, frames, mask, gram, n, block_m * BLOCK_M, N, M, F, stride_t, stride_m, stride_f, temperature,
        D, PRECISION, FRAMES, BLOCK_N, BLOCK_M, BLOCK_D,
    )  # fmt: skip
    s, _, _, _ = _score(a, e, ge, length, n, N)
    tl.store(out + n.to(tl.int64)[:, None] * M + m[None, :], s, mask=(n[:, None] < N) & (m[None, :] < M))


@triton.jit
def score_rank_kernel(
    text, frames, mask, gram, length, columns, query_groups, candidate_groups, low_n, high_n, low_m, high_m, above_n, above_m, near, found,
    N, M, F, stride_t, stride_m, stride_f, temperature, CAPACITY,
    D: tl.constexpr, PRECISION: tl.constexpr, FRAMES: tl.constexpr, GROUPS: tl.constexpr, BOTH: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The counts of ``xmafast.kernels.ranking`` from text-conditioned cosines that stay in registers."""
    block_n, block_m = tile_place(tl.cdiv(N, BLOCK_N), tl.cdiv(M, BLOCK_M), GROUP)
    n, m = block_n * BLOCK_N + tl.arange(0, BLOCK_N), block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    a, e, ge = _pooled(
        text, frames, mask, gram, n, block_m * BLOCK_M, N, M, F, stride_t, stride_m, stride_f, temperature,
        D, PRECISION, FRAMES, BLOCK_N, BLOCK_M, BLOCK_D,
    )  # fmt: skip
    s, _, _, _ = _score(a, e, ge, length, n, N)
    count(
        s, n, m, N, M, columns, columns, query_groups, candidate_groups, low_n, high_n, low_m, high_m, above_n, above_m, near, found,
        CAPACITY, GROUPS, BOTH, False, BLOCK_N, BLOCK_M,
    )  # fmt: skip


@triton.jit
def score_backward_kernel(
    text, frames, mask, gram, length, grad, da, weights, weighted, shrink,
    N, M, F, stride_t, stride_m, stride_f, temperature,
    D: tl.constexpr, PRECISION: tl.constexpr, FRAMES: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """From ``grad`` (N, M) at the cosines: da (N, M, F) at the inner products; e and c e, (N, M, F), whose product over the
    texts is what the Gram matrices get; and shrink (N, M) = grad * cosine, what the texts' norms get."""
    block_n, block_m = tile_place(tl.cdiv(N, BLOCK_N), tl.cdiv(M, BLOCK_M), GROUP)
    n, m = block_n * BLOCK_N + tl.arange(0, BLOCK_N), block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    a, e, ge = _pooled(
        text, frames, mask, gram, n, block_m * BLOCK_M, N, M, F, stride_t, stride_m, stride_f, temperature,
        D, PRECISION, FRAMES, BLOCK_N, BLOCK_M, BLOCK_D,
    )  # fmt: skip
    s, numerator, square, norm = _score(a, e, ge, length, n, N)
    here = (n[:, None] < N) & (m[None, :] < M)
    pair = n.to(tl.int64)[:, None] * M + m[None, :]
    g = tl.load(grad + pair, mask=here, other=0.0).to(tl.float32)
    tl.store(shrink + pair, g * s, mask=here)
    root = g / (norm * tl.sqrt_rn(square))
    ratio = numerator / square
    f = tl.arange(0, FRAMES)[None, None, :]
    to = pair[:, :, None] * F + f
    inside = here[:, :, None] & (f < F)
    value = e * root[:, :, None] * (1.0 + (a - ratio[:, :, None] * ge) / temperature)
    tl.store(da + to, value.to(da.dtype.element_ty), mask=inside)
    tl.store(weights + to, e, mask=inside)
    tl.store(weighted + to, e * (root * ratio)[:, :, None], mask=inside)


def pool_blocks(d: int) -> dict[str, int]:
    width = triton.next_power_of_2(d)
    return {"BLOCK_F": max(1, min(16, 8192 // width)), "BLOCK_D": width, "num_warps": 4 if width <= 1024 else 8}


def blocks(frames: int, dtype: torch.dtype, chip: int) -> dict[str, int]:
    """Tile sizes for videos of up to 64 frames on a chip (80, 90, ...), such that nothing spills.

    Before Hopper both operands of the second product lie in registers, so that half as many texts fit.
    """
    padded = max(16, triton.next_power_of_2(frames))
    return {
        "BLOCK_N": 32 if chip < 90 else 64, "BLOCK_M": COLUMNS // padded, "FRAMES": padded,
        "BLOCK_D": 32 if dtype == torch.float32 else 64, "GROUP": 8, "num_warps": 4 if chip < 90 else 8, "num_stages": 2,
    }  # fmt: skip


def _chip(x: Tensor) -> int:
    major, minor = torch.cuda.get_device_capability(x.device) if x.is_cuda else (9, 0)  # the interpreter takes any
    return 10 * major + minor


def pool(frames: Tensor, mask: Tensor) -> Tensor:
    """(M, F, D), (M, F) uint8 -> (M, D) float32."""
    m, f, d = frames.shape
    out = torch.empty((m, d), dtype=torch.float32, device=frames.device)
    if m:
        pool_kernel[(m,)](frames, mask, out, f, frames.stride(0), frames.stride(1), D=d, EPS=EPS, **pool_blocks(d))
    return out


def pool_backward(frames: Tensor, mask: Tensor, grad: Tensor) -> Tensor:
    """Gradients (M, F, D) at the frames from ``grad`` (M, D), contiguous, at the pooled vectors."""
    m, f, d = frames.shape
    out = torch.empty((m, f, d), dtype=frames.dtype, device=frames.device)
    if m:
        pool_backward_kernel[(m,)](frames, mask, grad, out, f, frames.stride(0), frames.stride(1), D=d, EPS=EPS, **pool_blocks(d))
    return out


def _sizes(text: Tensor, frames: Tensor, temperature: float) -> tuple[int | float, ...]:
    return len(text), len(frames), frames.shape[1], text.stride(0), frames.stride(0), frames.stride(1), temperature


def _grid(n: int, m: int, tile: dict[str, int]) -> tuple[int]:
    return (triton.cdiv(n, tile["BLOCK_N"]) * triton.cdiv(m, tile["BLOCK_M"]),)


def score(text: Tensor, frames: Tensor, mask: Tensor, gram: Tensor, length: Tensor, temperature: float) -> Tensor:
    """text (N, D), frames (M, F, D), unit stride along D; mask (M, F) uint8; gram (M, F, F), length (N,) float32 -> (N, M) float32."""
    n, (m, f, d) = len(text), frames.shape
    out = torch.empty((n, m), dtype=torch.float32, device=text.device)
    if n and m:
        tile = blocks(f, text.dtype, _chip(text))
        score_kernel[_grid(n, m, tile)](
            text, frames, mask, gram, length, out, *_sizes(text, frames, temperature), D=d, PRECISION=precision(text.dtype), **tile
        )
    return out


def score_ranks(
    text: Tensor, frames: Tensor, mask: Tensor, gram: Tensor, length: Tensor, temperature: float,
    columns: Tensor, groups: tuple[Tensor, Tensor] | None, bands: tuple[Tensor, ...], capacity: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """``xmafast.kernels.ranking.triton.count_above`` of the text-conditioned cosines, each query a set of its own."""
    n, (m, f, d) = len(text), frames.shape
    both = len(bands) == 4
    low_n, high_n, low_m, high_m = bands if both else (*bands, *bands)
    above_n, above_m, found = (torch.zeros(size, dtype=torch.int32, device=text.device) for size in (n, m if both else 1, 1))
    near = torch.empty(capacity, dtype=torch.int64, device=text.device)
    tile = blocks(f, text.dtype, _chip(text))
    if n and m:
        score_rank_kernel[_grid(n, m, tile)](
            text, frames, mask, gram, length, columns, *(groups or (columns, columns)), low_n, high_n, low_m, high_m,
            above_n, above_m, near, found, *_sizes(text, frames, temperature), capacity,
            D=d, PRECISION=precision(text.dtype), GROUPS=groups is not None, BOTH=both, **tile,
        )  # fmt: skip
    return above_n, above_m, pairs_of(near, n, m, None, tile), found


def score_backward(
    text: Tensor, frames: Tensor, mask: Tensor, gram: Tensor, length: Tensor, temperature: float, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """da (N, M, F) in text's dtype; weights and weighted (N, M, F) and shrink (N, M) in float32; from grad (N, M), contiguous."""
    n, (m, f, d) = len(text), frames.shape
    da = torch.empty((n, m, f), dtype=text.dtype, device=text.device)
    weights, weighted = (torch.empty((n, m, f), dtype=torch.float32, device=text.device) for _ in range(2))
    shrink = torch.empty((n, m), dtype=torch.float32, device=text.device)
    if n and m:
        tile = blocks(f, text.dtype, _chip(text))
        score_backward_kernel[_grid(n, m, tile)](
            text, frames, mask, gram, length, grad, da, weights, weighted, shrink, *_sizes(text, frames, temperature),
            D=d, PRECISION=precision(text.dtype), **tile,
        )  # fmt: skip
    return da, weights, weighted, shrink
