"""The k best candidates, streamed: chunks of queries, a shortlist for each, and proof that nothing outside it belongs in.

A shortlist comes from scores that may be off by a known margin. Neighbours that lie within the margin are scored again in
float64, so that duplicates tie and ties go to the lower index; and a query whose k-th best does not beat everything off its
list by more than the margin gets a longer list.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xmafast.kernels.ranking.scores import Scores, at_once

CHUNK = {"cpu": 2**22, "cuda": 2**26}  # floats of a chunk of scores
GROWTH = 4
Shortlister = Callable[[Scores, Tensor, int], "tuple[Tensor, Tensor, Tensor]"]


def select(scores: Scores, k: int, shortlist: Shortlister | None = None) -> tuple[Tensor, Tensor]:
    """(N, k) scores, best first, and their columns (N, k) int64; k is at most M.

    shortlist: ``(scores, rows, take) -> (values (n, t), columns (n, t), bound (n,))`` with the values in descending order, t of at
    least ``take`` and everything off the list scoring at most ``bound``. NaN stands for -inf, and columns of M and more for nothing.
    """
    n, m = scores.shape
    best = torch.empty((n, k), dtype=scores.dtype, device=scores.device)
    index = torch.empty((n, k), dtype=torch.int64, device=scores.device)
    if not (n and k):
        return best, index
    error = scores.errors
    step = max(1, at_once(CHUNK, scores.device) // max(m * scores.width, 1))
    for start in range(0, n, step):
        rows = torch.arange(start, min(start + step, n), device=scores.device)
        take = min(m, k + k // 8 + 4)
        while len(rows):
            values, columns, bound = (shortlist or _whole_rows)(scores, rows, take)
            values, columns = _in_order(scores, rows, values, columns, error[rows])
            sure = (values[:, k - 1] > bound + error[rows]) | torch.tensor(take >= m, device=bound.device)
            best[rows[sure]], index[rows[sure]] = values[sure, :k].to(scores.dtype), columns[sure, :k]
            rows, take = rows[~sure], min(m, take * GROWTH)
    return best, index


def _whole_rows(scores: Scores, rows: Tensor, take: int) -> tuple[Tensor, Tensor, Tensor]:
    s = scores.tile(rows, slice(0, scores.shape[1]))
    values, columns = s.topk(take, dim=1)
    if values.isnan().any():  # topk puts NaN first
        values, columns = s.masked_fill_(s.isnan(), -torch.inf).topk(take, dim=1)
    return values, columns, values[:, -1]


def _in_order(scores: Scores, rows: Tensor, values: Tensor, columns: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """The list with neighbours that rounding may have exchanged, or that may tie, put right: float64 values, then columns."""
    key, real = values.double(), columns < scores.shape[1]
    close = ~(key[:, :-1] - key[:, 1:] > 2 * error[:, None])
    unsure = key.isinf()
    unsure[:, 1:] |= close
    unsure[:, :-1] |= close
    some = unsure.any(1).nonzero().squeeze(1)
    if len(some):
        i, j = (unsure & real)[some].nonzero(as_tuple=True)
        key[some[i], j] = scores.exact(rows[some[i]], columns[some[i], j])
        # stable sorts, the least important key first: index, then numbers before NaN before padding, then score
        score, index = key[some], columns[some]
        place = index.argsort(dim=1, stable=True)
        for order in (2 * (~real[some]).byte() + score.isnan().byte(), -score.nan_to_num(-torch.inf, torch.inf, -torch.inf)):
            place = place.gather(1, order.gather(1, place).argsort(dim=1, stable=True))
        key[some], columns[some] = score.gather(1, place), index.gather(1, place)
    return key, columns
