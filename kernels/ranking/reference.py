"""Ranks and top-k of a score matrix that is there, and the naive twins of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

UNIT = 32  # candidates that a shortlist takes or leaves together
ROWS = 128  # queries of a kernel's tile: no set of queries may be larger


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


def topk_of_scores(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row, best first: (N, M) -> (N, min(k, M)) twice; ties by the lower index, NaN last."""
    k = min(k, scores.shape[1])
    order = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).sort(dim=1, descending=True, stable=True).indices
    numbers_first = order.gather(1, scores.gather(1, order).isnan().byte().argsort(dim=1, stable=True))[:, :k]
    return scores.gather(1, numbers_first), numbers_first


def count_above(
    s: Tensor,  # (N, M)
    columns: Tensor, sets: Tensor | None, query_groups: Tensor | None, candidate_groups: Tensor | None,
    low_n: Tensor, high_n: Tensor, low_m: Tensor | None, high_m: Tensor | None, capacity: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What ``rank_kernel`` counts and lists, from the whole matrix."""
    n, m = s.shape
    counts = columns[:, None] != torch.arange(m, device=s.device)
    if query_groups is not None and candidate_groups is not None:
        counts &= query_groups[:, None] != candidate_groups

    def judge(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return counts & (s > high), counts & ~(s > high) & ~(s < low)

    above, close = judge(low_n[:, None], high_n[:, None])
    above_n, bits = above.sum(1, dtype=torch.int32), close.long()
    above_m = torch.zeros(1, dtype=torch.int32, device=s.device)
    if low_m is not None and high_m is not None and sets is not None:
        above, close = judge(low_m, high_m)
        bits += 2 * close
        size = int(sets.max()) + 1 if n else 0
        members = torch.zeros((2, size, m), dtype=torch.int32, device=s.device)
        some_above, some_close = members.index_add_(1, sets, torch.stack([above, close]).int())
        above_m = ((some_above > 0) & (some_close == 0)).sum(0, dtype=torch.int32)
    pairs = bits.flatten().nonzero().squeeze(1)
    near = torch.zeros(capacity, dtype=torch.int64, device=s.device)
    near[: min(capacity, len(pairs))] = (4 * pairs + bits.flatten()[pairs])[:capacity]
    return above_n, above_m, near, torch.tensor([len(pairs)], dtype=torch.int32, device=s.device)


def unit_maxima(scores: Tensor) -> Tensor:
    """(N, M) -> (N, ceil(M / UNIT)): the best score of every UNIT candidates in a row; NaN counts as -inf."""
    n, m = scores.shape
    padded = scores.new_full((n, -(-m // UNIT) * UNIT), -torch.inf)
    padded[:, :m] = scores.masked_fill(scores.isnan(), -torch.inf)
    return padded.view(n, -1, UNIT).amax(2)
