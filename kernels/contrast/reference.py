"""Symmetric InfoNCE in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def info_nce(
    queries: Tensor,  # (N, D) unit vectors
    candidates: Tensor,  # (M, D) unit vectors
    scale: float | Tensor,
    *,
    group_ids: tuple[Tensor, Tensor] | None = None,  # (N,), (M,)
    offset: int = 0,
) -> Tensor:  # scalar
    """The mean of the cross-entropies of both directions, over the N positives: query i's is candidate i + offset.

    ``scale`` multiplies the cosines (100, not its logarithm). With ``group_ids``, candidates of the query's own group other
    than its positive are left out of its denominator, and so in the other direction: captions of one video are no negatives.
    """
    return info_nce_from_scores(queries @ candidates.T, scale, group_ids=group_ids, offset=offset)


def info_nce_from_scores(
    scores: Tensor,  # (N, M)
    scale: float | Tensor,
    *,
    group_ids: tuple[Tensor, Tensor] | None = None,
    offset: int = 0,
) -> Tensor:
    """``info_nce`` for cosines that a similarity header has already formed."""
    n = scores.shape[0]
    logits = scores * scale
    index = torch.arange(n, device=scores.device)
    positive = logits[index, index + offset]
    if group_ids is not None:
        same = group_ids[0][:, None] == group_ids[1][None]
        same[index, index + offset] = False
        logits = logits.masked_fill(same, -torch.inf)
    rows = logits.logsumexp(1) - positive
    columns = logits[:, offset : offset + n].logsumexp(0) - positive
    return (rows.mean() + columns.mean()) / 2
