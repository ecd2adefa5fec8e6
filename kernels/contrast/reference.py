"""Symmetric InfoNCE in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

Groups = tuple[Tensor, Tensor]  # of the queries (N,), of the candidates (M,)


def wide(dtype: torch.dtype) -> torch.dtype:
    """What log-sum-exps and sums over a batch are kept in: float64 for float64, else float32."""
    return torch.promote_types(dtype, torch.float32)


def check(rows: int, columns: int, scale: float | Tensor, group_ids: Groups | None, offset: int) -> None:
    """Raise ValueError for positives outside the candidates, group ids of the wrong length, or a scale that is not one number."""
    if offset < 0 or offset + rows > columns:
        raise ValueError(f"query i's positive is candidate i + {offset}, so {rows} queries do not fit {columns} candidates")
    if isinstance(scale, Tensor) and scale.numel() != 1:
        raise ValueError(f"scale is one number, not a tensor of shape {tuple(scale.shape)}")
    if group_ids is not None:
        shapes = [tuple(ids.shape) for ids in group_ids]
        if shapes != [(rows,), (columns,)]:
            raise ValueError(f"group_ids is a pair of shapes ({rows},) and ({columns},), not {' and '.join(map(str, shapes))}")


def check_embeddings(queries: Tensor, candidates: Tensor, scale: float | Tensor, group_ids: Groups | None, offset: int) -> None:
    """``check``, and ValueError for embeddings that are not (N, D) and (M, D)."""
    if queries.ndim != 2 or candidates.ndim != 2 or queries.shape[1] != candidates.shape[1]:
        raise ValueError(f"queries are (N, D) and candidates (M, D), not {tuple(queries.shape)} and {tuple(candidates.shape)}")
    check(queries.shape[0], candidates.shape[0], scale, group_ids, offset)


def info_nce(
    queries: Tensor,  # (N, D) unit vectors
    candidates: Tensor,  # (M, D) unit vectors
    scale: float | Tensor,
    *,
    group_ids: Groups | None = None,  # (N,), (M,)
    offset: int = 0,
) -> Tensor:  # scalar
    """The formula of ``xmafast.kernels.info_nce``, any device and floating dtype."""
    check_embeddings(queries, candidates, scale, group_ids, offset)
    return info_nce_from_scores(queries @ candidates.T, scale, group_ids=group_ids, offset=offset)


def info_nce_from_scores(
    scores: Tensor,  # (N, M)
    scale: float | Tensor,
    *,
    group_ids: Groups | None = None,  # (N,), (M,)
    offset: int = 0,
) -> Tensor:  # scalar
    """``info_nce`` for cosines that a similarity header has already formed."""
    return loss(*log_sum_exps_of_scores(scores, scale, group_ids=group_ids, offset=offset), offset)


def log_sum_exps_of_scores(
    scores: Tensor,  # (N, M)
    scale: float | Tensor,
    *,
    group_ids: Groups | None = None,  # (N,), (M,)
    offset: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # (N,), (M,), (N,)
    """``xmafast.kernels.contrast.op.log_sum_exps`` for cosines that are already there."""
    check(scores.shape[0], scores.shape[1], scale, group_ids, offset)
    logits = scores * scale
    positives = logits.diagonal(offset)
    if group_ids is not None:
        same = group_ids[0][:, None] == group_ids[1][None]
        same.diagonal(offset).fill_(False)
        logits = logits.masked_fill(same, -torch.inf)
    return logits.logsumexp(1), logits.logsumexp(0), positives


def loss(rows: Tensor, columns: Tensor, positives: Tensor, offset: int) -> Tensor:
    """The mean cross-entropy of both directions from log-sum-exps (N,) and (M,) and the positives' logits (N,)."""
    n = positives.shape[0]
    both = (rows - positives) + (columns[offset : offset + n] - positives)
    return both.sum(dtype=wide(both.dtype)) / (2 * max(n, 1))  # a sum and not a mean: an empty batch gives zero, not NaN
