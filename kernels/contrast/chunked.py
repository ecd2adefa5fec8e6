"""Symmetric InfoNCE in chunks of rows, forward and backward: what the op runs on the CPU, never holding more than a tile of logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from xmafast.kernels.contrast.reference import wide

TILE = 2**22  # logits in memory at once


def _tiles(
    queries: Tensor, candidates: Tensor, scale: Tensor, query_groups: Tensor | None, candidate_groups: Tensor | None, offset: int
) -> Iterator[tuple[slice, int, Tensor, Tensor]]:
    """Per chunk of rows: its slice, the diagonal its positives lie on, its cosines, and its logits, -inf where left out."""
    n, m = queries.shape[0], candidates.shape[0]
    rows = max(1, TILE // max(1, m))
    for first in range(0, n, rows):
        chunk, diagonal = slice(first, min(first + rows, n)), first + offset
        cosines = queries[chunk] @ candidates.T
        logits = scale * cosines
        if query_groups is not None and candidate_groups is not None:
            same = query_groups[chunk, None] == candidate_groups
            same.diagonal(diagonal).fill_(False)
            logits.masked_fill_(same, -torch.inf)
        yield chunk, diagonal, cosines, logits


def forward(
    queries: Tensor,  # (N, D)
    candidates: Tensor,  # (M, D)
    scale: Tensor,  # ()
    query_groups: Tensor | None,  # (N,)
    candidate_groups: Tensor | None,  # (M,)
    offset: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exps of the rows (N,) and columns (M,), and the positives' logits (N,)."""
    q, c = queries.to(wide(queries.dtype)), candidates.to(wide(candidates.dtype))
    rows, positives = q.new_empty(q.shape[0]), q.new_empty(q.shape[0])
    columns = q.new_full(c.shape[:1], -torch.inf)
    for chunk, diagonal, _, logits in _tiles(q, c, scale, query_groups, candidate_groups, offset):
        rows[chunk] = logits.logsumexp(1)
        columns = torch.logaddexp(columns, logits.logsumexp(0))
        positives[chunk] = logits.diagonal(diagonal)
    return rows, columns, positives


def backward(
    d_rows: Tensor, d_columns: Tensor, d_positives: Tensor,
    queries: Tensor, candidates: Tensor, scale: Tensor, rows: Tensor, columns: Tensor,
    query_groups: Tensor | None, candidate_groups: Tensor | None, offset: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of queries (N, D), candidates (M, D) and scale (), from those of forward's three results."""
    q, c = queries.to(wide(queries.dtype)), candidates.to(wide(candidates.dtype))
    dq, dc, d_scale = torch.empty_like(q), torch.zeros_like(c), torch.zeros_like(scale)
    columns = columns.masked_fill(columns == -torch.inf, 0)  # nothing is seen of such a column: exp(-inf - 0) = 0, not NaN
    for chunk, diagonal, cosines, logits in _tiles(q, c, scale, query_groups, candidate_groups, offset):
        grad = d_rows[chunk, None] * (logits - rows[chunk, None]).exp_() + d_columns * (logits - columns).exp_()
        grad.diagonal(diagonal).add_(d_positives[chunk])
        d_scale += (grad * cosines).sum()
        grad *= scale
        dq[chunk] = grad @ c
        dc += grad.T @ q[chunk]
    return dq.to(queries.dtype), dc.to(candidates.dtype), d_scale
