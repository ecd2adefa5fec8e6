"""Ranks and top-k in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def ranks_of_scores(
    scores: Tensor,  # (N, M)
    positives: Tensor,  # (N,) int64, the column of each row's positive
) -> tuple[Tensor, Tensor]:  # (N,), (N,) int64
    """Per query, how many candidates score above its positive, and how many others tie with it.

    NaN candidates are above nothing. A NaN positive ranks last: all others count as above it.
    """
    own = scores.gather(1, positives[:, None])
    greater = (scores > own).sum(1)
    ties = (scores == own).sum(1) - 1
    lost = own.squeeze(1).isnan()
    return greater.masked_fill(lost, scores.shape[1] - 1), ties.masked_fill(lost, 0)


def topk(
    queries: Tensor,  # (N, D)
    candidates: Tensor,  # (M, D)
    k: int,
) -> tuple[Tensor, Tensor]:  # (N, min(k, M)), (N, min(k, M)) int64
    """The k candidates of largest inner product, best first; ties go to the lower index, NaN comes last."""
    return topk_of_scores(queries @ candidates.T, k)


def topk_of_scores(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``topk`` for scores that are already there: (N, M) -> (N, min(k, M)) twice."""
    k = min(k, scores.shape[1])
    order = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).sort(dim=1, descending=True, stable=True).indices[:, :k]
    return scores.gather(1, order), order
