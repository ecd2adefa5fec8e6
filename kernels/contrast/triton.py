"""Symmetric InfoNCE in Triton: both directions from one pass over the logits, which never reach memory.

Forward: a program owns BLOCK_N queries and walks over a share of the candidates. The log-sum-exp of a row is kept as a
running maximum and sum (online softmax); each tile's maxima and sums over its columns are stored, (row blocks, M), and
merged afterwards. Nothing is added atomically, so the result is the same on every run. Backward: a second kernel
recomputes a tile's logits and writes the gradient at its cosines, a chunk of rows at a time; the gradients of queries
and candidates are plain matrix products over that chunk, left to cuBLAS. Four products in all, where each direction on
its own would take five.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK_BYTES = 256 * 2**20  # of the gradient at the cosines, the one N x M quantity that the backward writes
PROGRAMS = 1024  # fewer row blocks than this share out their columns, so that small batches fill the chip as well


@triton.jit
def _cosines(
    q, c, n, m, N, M, D, stride_q, stride_c,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The tile (BLOCK_N, BLOCK_M) of q c'. Rows past the end repeat the last one: the caller masks them.

    D is no constant: the loop would be unrolled at 512, and spill on sm_80. WHOLE: it is a multiple of BLOCK_D.
    """
    q_rows = q + tl.minimum(n, N - 1).to(tl.int64)[:, None] * stride_q
    c_rows = c + tl.minimum(m, M - 1).to(tl.int64)[None, :] * stride_c
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        if WHOLE:
            a = tl.load(q_rows + d[None, :])
            b = tl.load(c_rows + d[:, None])
        else:
            a = tl.load(q_rows + d[None, :], mask=d[None, :] < D, other=0.0)
            b = tl.load(c_rows + d[:, None], mask=d[:, None] < D, other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _halves(tile):
    """The left and the right half of a tile: what follows the product works on one at a time, as registers hold no more."""
    return tl.split(tl.permute(tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def _seen(n, m, N, M, offset, query_groups, candidate_groups, HAS_GROUPS: tl.constexpr):
    """Where a logit counts: inside the batch, and not of the query's own group unless it is the positive."""
    seen = (n[:, None] < N) & (m[None, :] < M)
    if HAS_GROUPS:
        own = tl.load(query_groups + n, mask=n < N, other=0)
        other = tl.load(candidate_groups + m, mask=m < M, other=0)
        seen &= (own[:, None] != other[None, :]) | (m[None, :] == n[:, None] + offset)
    return seen


@triton.jit
def info_nce_forward_kernel(
    q, c, scale, query_groups, candidate_groups, row_max, row_sum, column_max, column_sum, positives,
    N, M, D, offset, tiles, stride_q, stride_c,
    WHOLE: tl.constexpr, HAS_GROUPS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Maxima and sums of exponentials over rows (shares, N) and columns (row blocks, M), and the positives' logits (N,)."""
    block, share = tl.program_id(0), tl.program_id(1)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    factor = tl.load(scale)
    HALF: tl.constexpr = BLOCK_M // 2
    highest = tl.full((BLOCK_N,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for tile in range(share * tiles, tl.minimum((share + 1) * tiles, tl.cdiv(M, BLOCK_M))):
        both = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        left, right = _halves(_cosines(q, c, n, both, N, M, D, stride_q, stride_c, WHOLE, PRECISION, BLOCK_N, BLOCK_M, BLOCK_D))
        for side in tl.static_range(2):
            start = tile * BLOCK_M + side * HALF
            m = start + tl.arange(0, HALF)
            # before any maximum: a padded zero would win over logits near -100
            seen = _seen(n, m, N, M, offset, query_groups, candidate_groups, HAS_GROUPS)
            logits = tl.where(seen, factor * (left if side == 0 else right), -float("inf"))

            first = block * BLOCK_N + offset
            if (start < first + BLOCK_N) & (first < start + HALF):
                at = m[None, :] == n[:, None] + offset
                here = (n < N) & (n + offset >= start) & (n + offset < start + HALF)
                tl.store(positives + n, tl.sum(tl.where(at, logits, 0.0), 1), mask=here)

            below = tl.max(logits, 0)
            shift = tl.where(below == -float("inf"), 0.0, below)  # -inf - -inf would be NaN
            part = block.to(tl.int64) * M + m
            tl.store(column_max + part, below, mask=m < M)
            tl.store(column_sum + part, tl.sum(tl.exp(logits - shift[None, :]), 0), mask=m < M)

            higher = tl.maximum(highest, tl.max(logits, 1))
            shift = tl.where(higher == -float("inf"), 0.0, higher)
            total = total * tl.exp(highest - shift) + tl.sum(tl.exp(logits - shift[:, None]), 1)
            highest = higher
    part = share.to(tl.int64) * N + n
    tl.store(row_max + part, highest, mask=n < N)
    tl.store(row_sum + part, total, mask=n < N)


@triton.jit
def info_nce_backward_kernel(
    q, c, scale, query_groups, candidate_groups, rows, columns, d_rows, d_columns, d_positives, d_cosines, d_scale,
    N, M, D, offset, stride_q, stride_c, stride_d,
    WHOLE: tl.constexpr, HAS_GROUPS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradient at the cosines (N, M) of a chunk of rows, and what each tile adds to the scale's, (row blocks, column blocks)."""
    block, tile = tl.program_id(0), tl.program_id(1)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    both = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    factor = tl.load(scale)
    HALF: tl.constexpr = BLOCK_M // 2
    left, right = _halves(_cosines(q, c, n, both, N, M, D, stride_q, stride_c, WHOLE, PRECISION, BLOCK_N, BLOCK_M, BLOCK_D))
    row, d_row = tl.load(rows + n, mask=n < N, other=0.0), tl.load(d_rows + n, mask=n < N, other=0.0)
    d_positive = tl.load(d_positives + n, mask=n < N, other=0.0)
    total = 0.0
    for side in tl.static_range(2):
        m = tile * BLOCK_M + side * HALF + tl.arange(0, HALF)
        cosines = left if side == 0 else right
        logits = factor * cosines
        column, d_column = tl.load(columns + m, mask=m < M, other=0.0), tl.load(d_columns + m, mask=m < M, other=0.0)
        grad = d_row[:, None] * tl.exp(logits - row[:, None]) + d_column[None, :] * tl.exp(logits - column[None, :])
        # also where a column's log-sum-exp is -inf: nothing is seen of it
        grad = tl.where(_seen(n, m, N, M, offset, query_groups, candidate_groups, HAS_GROUPS), grad, 0.0)
        grad += tl.where(m[None, :] == n[:, None] + offset, d_positive[:, None], 0.0)
        total += tl.sum(grad * cosines)
        at = d_cosines + n.to(tl.int64)[:, None] * stride_d + m[None, :]
        tl.store(at, (factor * grad).to(d_cosines.dtype.element_ty), mask=(n[:, None] < N) & (m[None, :] < M))
    tl.store(d_scale + block * tl.num_programs(1) + tile, total)


def blocks(dtype: torch.dtype) -> dict[str, int]:
    """Tile sizes and warps, such that nothing spills on sm_80, sm_90 and sm_100."""
    if dtype == torch.float32:
        return {"BLOCK_N": 64, "BLOCK_M": 64, "BLOCK_D": 32, "num_warps": 4, "num_stages": 3}
    return {"BLOCK_N": 128, "BLOCK_M": 128, "BLOCK_D": 64, "num_warps": 8, "num_stages": 3}


def precision(dtype: torch.dtype) -> str:
    """Of float32 products: one in plain TF32 would put a logit at scale 100 off by 0.05."""
    return "tf32x3" if dtype == torch.float32 else "ieee"


def forward(
    queries: Tensor,  # (N, D)
    candidates: Tensor,  # (M, D)
    scale: Tensor,  # () float32
    query_groups: Tensor | None,  # (N,) int64
    candidate_groups: Tensor | None,  # (M,) int64
    offset: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps of the rows (N,) and columns (M,), and the positives' logits (N,), all float32."""
    q, c = _rows(queries), _rows(candidates)
    (n, d), m = q.shape, c.shape[0]

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=q.device)

    if n == 0:
        return new(0), new(m).fill_(-torch.inf), new(0)
    block = blocks(q.dtype)
    row_blocks, column_blocks = triton.cdiv(n, block["BLOCK_N"]), triton.cdiv(m, block["BLOCK_M"])
    tiles = triton.cdiv(column_blocks, triton.cdiv(PROGRAMS, row_blocks))
    shares = triton.cdiv(column_blocks, tiles)
    row_max, row_sum, column_max, column_sum, positives = new(shares, n), new(shares, n), new(row_blocks, m), new(row_blocks, m), new(n)
    info_nce_forward_kernel[(row_blocks, shares)](
        q, c, scale, query_groups, candidate_groups, row_max, row_sum, column_max, column_sum, positives,
        n, m, d, offset, tiles, q.stride(0), c.stride(0),
        WHOLE=d % block["BLOCK_D"] == 0, HAS_GROUPS=query_groups is not None, PRECISION=precision(q.dtype), **block,
    )  # fmt: skip
    return _merge(row_max, row_sum), _merge(column_max, column_sum), positives


def _merge(maxima: Tensor, sums: Tensor) -> Tensor:
    """(parts, n) maxima, and sums of exponentials relative to them -> the log-sum-exp (n,) of all parts; -inf where all are."""
    highest = maxima.amax(0)
    shift = highest.masked_fill(highest == -torch.inf, 0)
    return highest + (maxima - shift).exp_().mul_(sums).sum(0).log_()


def backward(
    d_rows: Tensor, d_columns: Tensor, d_positives: Tensor,
    queries: Tensor, candidates: Tensor, scale: Tensor, rows: Tensor, columns: Tensor,
    query_groups: Tensor | None, candidate_groups: Tensor | None, offset: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of queries (N, D), candidates (M, D) and scale (), from those of forward's three results."""
    q, c = _rows(queries), _rows(candidates)
    d_rows, d_columns, d_positives = d_rows.contiguous(), d_columns.contiguous(), d_positives.contiguous()
    (n, d), m = q.shape, c.shape[0]
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    dc = torch.zeros(c.shape, dtype=torch.float32, device=c.device)
    if n == 0:
        return dq, dc.to(c.dtype), torch.zeros_like(scale)
    block = blocks(q.dtype)
    width = triton.cdiv(m, 16) * 16  # rows that start aligned, for cuBLAS
    chunk = max(1, CHUNK_BYTES // (width * q.itemsize * block["BLOCK_N"])) * block["BLOCK_N"]
    column_blocks = triton.cdiv(m, block["BLOCK_M"])
    buffer = torch.empty((min(n, chunk), width), dtype=q.dtype, device=q.device)
    d_scale = []
    for first in range(0, n, chunk):
        part = slice(first, min(first + chunk, n))
        size = part.stop - first
        row_blocks = triton.cdiv(size, block["BLOCK_N"])
        d_cosines = buffer[:size, :m]
        sums = torch.empty((row_blocks, column_blocks), dtype=torch.float32, device=q.device)
        info_nce_backward_kernel[(row_blocks, column_blocks)](
            q[part], c, scale, query_groups if query_groups is None else query_groups[part], candidate_groups,
            rows[part], columns, d_rows[part], d_columns, d_positives[part], d_cosines, sums,
            size, m, d, first + offset, q.stride(0), c.stride(0), width,
            WHOLE=d % block["BLOCK_D"] == 0, HAS_GROUPS=query_groups is not None, PRECISION=precision(q.dtype), **block,
        )  # fmt: skip
        torch.mm(d_cosines, c, out=dq[part])
        dc += d_cosines.T @ q[part]
        d_scale.append(sums.sum())
    return dq, dc.to(c.dtype), torch.stack(d_scale).sum()


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
