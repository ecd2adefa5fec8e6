"""Ranks in one sweep over the tiles of a score matrix that never exists as a whole.

A query's positive has a score of its own, and each candidate lies above it, below it, or within the margin of rounding.
The first two are counted; the third, few, are scored again in float64. Both directions read the same tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from xmafast.kernels.ranking.scores import Scores, at_once

TILE = {"cpu": 2**20, "cuda": 2**25}  # floats of a tile: in a core's cache, or enough to fill a GPU
ROWS = 256  # of a tile at least, so that its product is worth the name
Ranks = tuple[Tensor, Tensor]  # (greater, ties), int64


@dataclass(frozen=True)
class Positives:
    """Which candidate each query looks for, and what does not count against it.

    columns: (N,) int64, the positive's column; outside 0..M-1 where another shard holds it. own: (N,) float64, its score.
    groups: ids (of queries, of candidates); equal ids leave a pair that is no positive out. sets: (N,) int64, the set that a
    query belongs to as a candidate of the other direction (the texts of one video), sorted; None without that direction.
    """

    columns: Tensor
    own: Tensor
    groups: Ranks | None = None
    sets: Tensor | None = None

    def left_out(self, n: Tensor, m: Tensor) -> Tensor:
        """Of pairs (n_i, m_i), or of broadcastable grids of them: the positives, and those of one group."""
        out = self.columns[n] == m
        return out if self.groups is None else out | (self.groups[0][n] == self.groups[1][m])


@dataclass(frozen=True)
class Band:
    """Between what scores a candidate is neither surely above a positive nor surely below it."""

    low: Tensor
    high: Tensor

    @staticmethod
    def around(own: Tensor, error: Tensor, dtype: torch.dtype) -> Band:
        # where the margin has no end, everything is close; a NaN positive ranks last whatever it meets, so nothing needs to be
        lost, endless = own.isnan(), error.isinf()
        low = (own - error).masked_fill(endless, -torch.inf).masked_fill(lost, torch.inf)
        high = (own + error).masked_fill(endless | lost, torch.inf)
        infinite = own.new_full((), torch.inf).to(dtype)
        return Band(torch.nextafter(low.to(dtype), -infinite), torch.nextafter(high.to(dtype), infinite))


@dataclass
class Tally:
    """The counts of one direction: of N queries, or of M candidates in the other."""

    above: Tensor
    ties: Tensor

    @staticmethod
    def empty(n: int, device: torch.device) -> Tally:
        return Tally(*(torch.zeros(n, dtype=torch.int64, device=device) for _ in range(2)))


Counter = Callable[[Scores, Positives, Band, "Band | None", Tally, "Tally | None"], bool]


def sweep(scores: Scores, positives: Positives, counter: Counter | None = None) -> tuple[Ranks, Ranks | None]:
    """(greater, ties) of the N queries and, where ``positives.sets`` is given, of the M candidates against the sets.

    counter: a kernel that does the counting; it says False where it cannot, and the tiles are walked here.
    """
    n, m = scores.shape
    errors, dtype = scores.errors(), scores.dtype
    rows = Tally.empty(n, scores.device)
    row_band = Band.around(positives.own, errors[0], dtype)
    columns, column_band, own = None, None, None
    if positives.sets is not None:
        columns = Tally.empty(m, scores.device)
        own = best_of(positives, m)
        column_band = Band.around(own, errors[1], dtype)
    if counter is None or not counter(scores, positives, row_band, column_band, rows, columns):
        _walk(scores, positives, own, row_band, column_band, rows, columns)
    _lose(rows, positives.own.isnan(), lambda i: int((~positives.left_out(i, torch.arange(m, device=scores.device))).sum()))
    if columns is None or own is None or positives.sets is None:
        return (rows.above, rows.ties), None
    sets = positives.sets
    every = torch.arange(n, device=scores.device)
    _lose(columns, own.isnan(), lambda j: len(sets[~positives.left_out(every, j)].unique()))
    return (rows.above, rows.ties), (columns.above, columns.ties)


def best_of(positives: Positives, m: int) -> Tensor:
    """The best score among each candidate's own queries, (M,) float64; NaN where it has none that is a number."""
    here = (positives.columns >= 0) & (positives.columns < m) & ~positives.own.isnan()
    best = positives.own.new_full((m,), torch.nan)
    return best.scatter_reduce(0, positives.columns[here], positives.own[here], "amax", include_self=False)


def settle_rows(scores: Scores, positives: Positives, rows: Tally, n: Tensor, m: Tensor) -> None:
    """Score the pairs (n_i, m_i) in float64 and count them for their queries."""
    keep = ~positives.left_out(n, m)
    n, m = n[keep], m[keep]
    score, own = scores.exact(n, m), positives.own[n]
    rows.above.index_add_(0, n, (score > own).long())
    rows.ties.index_add_(0, n, (score == own).long())


def settle_sets(scores: Scores, positives: Positives, own: Tensor, columns: Tally, pairs: Tensor, m: Tensor) -> None:
    """Score whole sets in float64 against candidates, pair by pair (set_i, m_i), each counted once by its best member."""
    assert positives.sets is not None
    first = torch.searchsorted(positives.sets, pairs)
    count = torch.searchsorted(positives.sets, pairs, right=True) - first
    pair = torch.arange(len(pairs), device=pairs.device).repeat_interleave(count)
    n = torch.arange(len(pair), device=pairs.device) - (count.cumsum(0) - count)[pair] + first[pair]
    keep = ~positives.left_out(n, m[pair])
    n, pair = n[keep], pair[keep]
    score = scores.exact(n, m[pair])
    number = ~score.isnan()
    best = score.new_full((len(pairs),), torch.nan).scatter_reduce(0, pair[number], score[number], "amax", include_self=False)
    columns.above.index_add_(0, m, (best > own[m]).long())
    columns.ties.index_add_(0, m, (best == own[m]).long())


def _walk(
    scores: Scores, positives: Positives, own: Tensor | None, row_band: Band, column_band: Band | None, rows: Tally, columns: Tally | None
) -> None:
    n, m = scores.shape
    floats = at_once(TILE, scores.device) // scores.width
    width = max(1, min(m, floats // ROWS))
    starts = _cuts(positives.sets, n, max(ROWS, floats // width))
    for left in range(0, m, width):
        span = slice(left, min(left + width, m))
        for start, stop in pairwise(starts):
            part = slice(start, stop)
            s = scores.tile(part, span)
            _leave_out(s, positives, part, span)
            high, low = row_band.high[part, None], row_band.low[part, None]
            above, close = _tally(s, low, high, 1)
            rows.above[part] += above
            if (some := close.nonzero().squeeze(1)).numel():
                t = s[some]
                i, j = (~(t > high[some]) & ~(t < low[some])).nonzero(as_tuple=True)
                settle_rows(scores, positives, rows, some[i] + start, j + left)
            if columns is None or column_band is None or own is None or positives.sets is None:
                continue
            best, sets = _by_set(s, positives.sets[part])
            high, low = column_band.high[span], column_band.low[span]
            above, close = _tally(best, low, high, 0)
            columns.above[span] += above
            if (some := close.nonzero().squeeze(1)).numel():
                t = best[:, some]
                i, j = (~(t > high[some]) & ~(t < low[some])).nonzero(as_tuple=True)
                settle_sets(scores, positives, own, columns, sets[i], some[j] + left)


def _tally(s: Tensor, low: Tensor, high: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """How many scores are above the band, and how many in it or NaN, along one axis."""
    flags = torch.empty_like(s)  # sums of 0.0 and 1.0 are exact, and several times as fast as those of booleans
    above = torch.gt(s, high, out=flags).sum(dim).long()
    return above, s.shape[dim] - above - torch.lt(s, low, out=flags).sum(dim).long()


def _cuts(sets: Tensor | None, n: int, rows: int) -> list[int]:
    """Row starts, and n, of parts of about so many rows that cut no set in two."""
    if sets is None or n == 0:
        return [*range(0, n, rows), n] if n else [0]
    ends = torch.cat([(sets[1:] != sets[:-1]).nonzero().squeeze(1) + 1, torch.tensor([n], device=sets.device)]).tolist()
    cuts, last = [0], 0
    for end in ends:
        if end - cuts[-1] > rows and last > cuts[-1]:
            cuts.append(last)
        last = end
    return [*cuts, n]


def _leave_out(s: Tensor, positives: Positives, rows: slice, columns: slice) -> None:
    """-inf at the positives and within groups: below everything but -inf, where the settling knows them again."""
    if positives.groups is not None:
        s.masked_fill_(positives.groups[0][rows, None] == positives.groups[1][None, columns], -torch.inf)
    column = positives.columns[rows] - columns.start
    here = ((column >= 0) & (column < s.shape[1])).nonzero().squeeze(1)
    s[here, column[here]] = -torch.inf


def _by_set(s: Tensor, sets: Tensor) -> tuple[Tensor, Tensor]:
    """(n, m) scores -> the best of each set (g, m), and the sets (g,). NaN stays NaN, to be looked at again."""
    unique, counts = torch.unique_consecutive(sets, return_counts=True)
    if len(unique) == len(sets):
        return s, unique
    if (counts == counts[0]).all():
        return s.view(len(unique), int(counts[0]), -1).amax(1), unique
    member = torch.arange(len(unique), device=s.device).repeat_interleave(counts)
    best = s.new_full((len(unique), s.shape[1]), -torch.inf)
    return best.scatter_reduce_(0, member[:, None].expand_as(s), s, "amax"), unique


def _lose(tally: Tally, lost: Tensor, others: Callable[[Tensor], int]) -> None:
    """A positive that is no number ranks last: all others count as above it."""
    for i in lost.nonzero().squeeze(1):
        tally.above[i], tally.ties[i] = others(i), 0
