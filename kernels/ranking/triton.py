"""Counting and shortlisting in Triton: a tile of scores lives in registers between its product and its counts.

One program owns one tile of BLOCK_N queries by BLOCK_M candidates. Counters are integers, so that the order in which
programs add to them does not matter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from xmafast.kernels.ranking import reference

UNIT = reference.UNIT
ROWS = reference.ROWS  # of a tile


@triton.jit
def tile_place(rows, columns, GROUP: tl.constexpr):
    """Program id -> (row block, column block), GROUP row blocks at a time, so that their candidates are found in the L2 cache."""
    pid = tl.program_id(0)
    per_group = GROUP * columns
    first = pid // per_group * GROUP
    size = tl.minimum(rows - first, GROUP)
    return first + pid % per_group % size, pid % per_group // size


@triton.jit
def inner_products(
    queries, candidates, n, m, N, M, stride_q, stride_c,
    D: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(BLOCK_N, BLOCK_M) float32 scores of queries n and candidates m; zero where n is negative or past N, or m past M."""
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    row, column = (n >= 0) & (n < N), m < M
    q = queries + n.to(tl.int64)[:, None] * stride_q
    c = candidates + m.to(tl.int64)[None, :] * stride_c
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        a = tl.load(q + d[None, :], mask=row[:, None] & (d[None, :] < D), other=0.0)
        b = tl.load(c + d[:, None], mask=column[None, :] & (d[:, None] < D), other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _note(bits, near, found, CAPACITY, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):
    """Append the pairs whose bits are not 0 to a list, as (program, place in the tile, bits) in one number.

    A list that is full is left alone, so that the counter cannot run over where everything ties.
    """
    if tl.load(found) <= CAPACITY:
        slot = tl.atomic_add(found + tl.zeros((BLOCK_N, BLOCK_M), tl.int32), 1, mask=bits > 0)
        place = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        base = tl.program_id(0).to(tl.int64) * (4 * BLOCK_N * BLOCK_M)
        tl.store(near + slot, base + (place * 4 + bits), mask=(bits > 0) & (slot < CAPACITY))


@triton.jit
def count(
    s, n, m, N, M, columns, sets, query_groups, candidate_groups, low_n, high_n, low_m, high_m, above_n, above_m, near, found, CAPACITY,
    GROUPS: tl.constexpr, BOTH: tl.constexpr, SETS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Count a tile s of scores in both directions, and list what is too close to call (1: for its query, 2: for its candidate).

    With SETS the tile's queries come sorted by set and no set crosses its edge. A matrix product with the tile's membership
    matrix then says how many members of each set are above a candidate's positive, and how many too close: in units of 1 and 256.
    """
    row, column = (n >= 0) & (n < N), m < M
    positive = tl.load(columns + n, mask=row, other=-1)
    counts = row[:, None] & column[None, :] & (positive[:, None] != m[None, :])
    if GROUPS:
        gq = tl.load(query_groups + n, mask=row, other=0)
        gc = tl.load(candidate_groups + m, mask=column, other=0)
        counts = counts & (gq[:, None] != gc[None, :])
    high = tl.load(high_n + n, mask=row, other=0.0)[:, None]
    low = tl.load(low_n + n, mask=row, other=0.0)[:, None]
    tl.atomic_add(above_n + n, tl.sum((counts & (s > high)).to(tl.int32), 1), mask=row)
    bits = (counts & ((s <= high) & (s >= low) | (s != s))).to(tl.int32)  # NaN is neither above nor below
    if BOTH:
        high = tl.load(high_m + m, mask=column, other=0.0)[None, :]
        low = tl.load(low_m + m, mask=column, other=0.0)[None, :]
        above = counts & (s > high)
        close = counts & ((s <= high) & (s >= low) | (s != s))
        bits += 2 * close.to(tl.int32)
        if SETS:
            own = tl.load(sets + n, mask=row, other=2147483647)
            local = own - tl.min(own, 0)
            member = (tl.arange(0, BLOCK_N)[:, None] == local[None, :]) & row[None, :]
            code = tl.where(close, 256.0, tl.where(above, 1.0, 0.0))
            table = tl.dot(member.to(tl.float16), code.to(tl.float16))
            above = (table > 0) & (table < 256)  # a set with a close member is settled as a whole, later
        tl.atomic_add(above_m + m, tl.sum(above.to(tl.int32), 0), mask=column)
    _note(bits, near, found, CAPACITY, BLOCK_N, BLOCK_M)


@triton.jit
def rank_kernel(
    queries, candidates, order, columns, sets, query_groups, candidate_groups, low_n, high_n, low_m, high_m, above_n, above_m,
    near, found,
    P, N, M, stride_q, stride_c, CAPACITY,
    D: tl.constexpr, PRECISION: tl.constexpr, GROUPS: tl.constexpr, BOTH: tl.constexpr, SETS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Row p of the P rows of the grid is query ``order[p]`` with SETS (-1: padding), query p without."""
    block_n, block_m = tile_place(tl.cdiv(P, BLOCK_N), tl.cdiv(M, BLOCK_M), GROUP)
    n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if SETS:
        n = tl.load(order + n)
    m = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    s = inner_products(queries, candidates, n, m, N, M, stride_q, stride_c, D, PRECISION, BLOCK_N, BLOCK_M, BLOCK_D)
    count(
        s, n, m, N, M, columns, sets, query_groups, candidate_groups, low_n, high_n, low_m, high_m, above_n, above_m,
        near, found, CAPACITY, GROUPS, BOTH, SETS, BLOCK_N, BLOCK_M,
    )  # fmt: skip


@triton.jit
def unit_maxima_kernel(
    queries, candidates, maxima,
    N, M, U, stride_q, stride_c,
    D: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """maxima (N, U): the best score of every UNIT candidates in a row; NaN counts as -inf."""
    block_n, block_m = tile_place(tl.cdiv(N, BLOCK_N), tl.cdiv(M, BLOCK_M), GROUP)
    n = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    m = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    s = inner_products(queries, candidates, n, m, N, M, stride_q, stride_c, D, PRECISION, BLOCK_N, BLOCK_M, BLOCK_D)
    s = tl.where((m[None, :] < M) & (s == s), s, float("-inf"))
    best = tl.max(tl.reshape(s, (BLOCK_N, BLOCK_M // UNIT, UNIT)), 2)
    u = block_m * (BLOCK_M // UNIT) + tl.arange(0, BLOCK_M // UNIT)
    tl.store(maxima + n.to(tl.int64)[:, None] * U + u[None, :], best, mask=(n[:, None] < N) & (u[None, :] < U))


def blocks(dtype: torch.dtype, *, both: bool = True, sets: bool = False) -> dict[str, int]:
    """Tile sizes, warps and stages such that nothing spills on sm_80, sm_90 and sm_100."""
    if dtype == torch.float32:
        return {"BLOCK_N": ROWS, "BLOCK_M": 32 if sets else 64, "BLOCK_D": 32, "GROUP": 8, "num_warps": 4 if sets else 8, "num_stages": 2}
    return {"BLOCK_N": ROWS, "BLOCK_M": 64 if both else 128, "BLOCK_D": 64, "GROUP": 8, "num_warps": 8, "num_stages": 3}


def precision(dtype: torch.dtype) -> str:
    """float32 products on tensor cores in three passes: plain TF32 would leave too many pairs too close to call."""
    return "tf32x3" if dtype == torch.float32 else "ieee"


def count_above(
    queries: Tensor, candidates: Tensor, order: Tensor | None, columns: Tensor, sets: Tensor | None, groups: tuple[Tensor, Tensor] | None,
    bands: tuple[Tensor, Tensor, Tensor, Tensor] | tuple[Tensor, Tensor], capacity: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """above_n (N,), above_m (M,), the listed pairs as 4 * (n * M + m) + bits (capacity,), and how many were found (1,).

    ``bands`` is low_n, high_n and, for both directions, low_m, high_m. Every index is int32.
    """
    n, m = len(queries), len(candidates)
    both = len(bands) == 4
    tile = blocks(queries.dtype, both=both, sets=order is not None)
    low_n, high_n, low_m, high_m = bands if len(bands) == 4 else (*bands, *bands)
    above_n, above_m, found = (torch.zeros(size, dtype=torch.int32, device=queries.device) for size in (n, m if both else 1, 1))
    near = torch.empty(capacity, dtype=torch.int64, device=queries.device)
    rows = n if order is None else len(order)
    if n and m:
        rank_kernel[(triton.cdiv(rows, tile["BLOCK_N"]) * triton.cdiv(m, tile["BLOCK_M"]),)](
            queries, candidates, columns if order is None else order, columns, columns if sets is None else sets,
            *(groups or (columns, columns)), low_n, high_n, low_m, high_m, above_n, above_m, near, found,
            rows, n, m, queries.stride(0), candidates.stride(0), capacity,
            D=queries.shape[1], PRECISION=precision(queries.dtype), GROUPS=groups is not None, BOTH=both, SETS=order is not None, **tile,
        )  # fmt: skip
    return above_n, above_m, pairs_of(near, rows, m, order, tile), found


def pairs_of(near: Tensor, rows: int, m: int, order: Tensor | None, tile: dict[str, int]) -> Tensor:
    """The list of a kernel, whose entries are (program, place in the tile, bits), as 4 * (n * M + m) + bits."""
    size = tile["BLOCK_N"] * tile["BLOCK_M"]
    program, place, bits = near // (4 * size), near // 4 % size, near % 4
    group, columns = tile["GROUP"], triton.cdiv(m, tile["BLOCK_M"])
    first = program // (group * columns) * group  # tile_place, for many programs at once
    members = (triton.cdiv(rows, tile["BLOCK_N"]) - first).clamp(1, group)
    within = program % (group * columns)
    n = (first + within % members) * tile["BLOCK_N"] + place // tile["BLOCK_M"]
    column = within // members * tile["BLOCK_M"] + place % tile["BLOCK_M"]
    if order is not None:
        n = order[n.clamp(0, rows - 1)].long()
    pairs: Tensor = 4 * (n * m + column) + bits
    return pairs


def unit_maxima(queries: Tensor, candidates: Tensor) -> Tensor:
    """(N, D), (M, D) -> (N, ceil(M / UNIT)): the best score among each UNIT candidates in a row."""
    n, m = len(queries), len(candidates)
    tile = blocks(queries.dtype)
    units = triton.cdiv(m, UNIT)
    maxima = torch.empty((n, units), dtype=torch.float32, device=queries.device)
    if n and m:
        unit_maxima_kernel[(triton.cdiv(n, tile["BLOCK_N"]) * triton.cdiv(m, tile["BLOCK_M"]),)](
            queries, candidates, maxima,
            n, m, units, queries.stride(0), candidates.stride(0),
            D=queries.shape[1], PRECISION=precision(queries.dtype), UNIT=UNIT, **tile,
        )  # fmt: skip
    return maxima
