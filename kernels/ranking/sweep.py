"""Ranks in one sweep over the tiles of a score matrix that never exists as a whole.

A query's positive has a score of its own, and each candidate lies above it, below it, or within the margin of rounding.
The first two are counted; the third, few, are scored again in float64. Both directions read the same tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from xmafast.kernels.ranking.scores import Scores, at_once, finite

TILE = {"cpu": 2**21, "cuda": 2**25}  # floats of a tile: in a core's cache, or enough to fill a GPU
FLAGS = {"cpu": 2**19, "cuda": 2**25}  # floats that a comparison writes at once: they stay in the cache
ROWS = 256  # of a tile at least, so that its product is worth the name
Ranks = tuple[Tensor, Tensor]  # (greater, ties), int64


@dataclass(frozen=True)
class Positives:
    """Which candidate each query looks for, and what does not count against it.

    columns: (N,) int64, the positive's column; outside 0..M-1 where another shard holds it.
    own: (N,) float64, its score, off by up to slack (N,); None: it is exact.
    groups: ids (of queries, of candidates); equal ids leave a pair that is no positive out.
    sets: (N,) int64, the set that a query belongs to as a candidate of the other direction (the texts of one video), sorted;
        None without that direction.
    """

    columns: Tensor
    own: Tensor
    slack: Tensor | None = None
    groups: Ranks | None = None
    sets: Tensor | None = None

    @cached_property
    def alone(self) -> bool:
        """Whether every set has one member."""
        return self.sets is not None and each_its_own(self.sets)

    def left_out(self, n: Tensor, m: Tensor) -> Tensor:
        """Of pairs (n_i, m_i), or of broadcastable grids of them: the positives, and those of one group."""
        out = self.columns[n] == m
        return out if self.groups is None else out | (self.groups[0][n] == self.groups[1][m])

    def exact_pairs(self, exact: Callable[[Tensor, Tensor], Tensor], n: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """The float64 scores of pairs, and of their queries' positives: needed only where a candidate comes close."""
        if self.slack is None:
            return exact(n, m), self.own[n]
        pair, own = exact(torch.cat([n, n]), torch.cat([m, self.columns[n]])).view(2, -1)
        return pair, own

    def of_candidates(self, m: int) -> Positives:
        """The other direction: each candidate's positive is the best of its own queries, and NaN where none is a number."""
        if m and self.alone and len(self.columns) == m and int(self.columns[0]) == 0 and int(self.columns[-1]) == m - 1:
            return Positives(self.columns, self.own, self.slack)  # the diagonal
        here = ((self.columns >= 0) & (self.columns < m) & ~self.own.isnan()).nonzero().squeeze(1)
        at = self.columns[here]
        best = self.own.new_full((m,), torch.nan).scatter_reduce(0, at, self.own[here], "amax", include_self=False)
        query = torch.full_like(best, -1, dtype=torch.int64).scatter(0, at, here)
        slack = None if self.slack is None else torch.zeros_like(best).scatter(0, at, self.slack[here])
        return Positives(query, best, slack)


@dataclass(frozen=True)
class Band:
    """Between what scores a candidate is neither surely above a positive nor surely below it."""

    low: Tensor
    high: Tensor

    @staticmethod
    def around(positives: Positives, error: Tensor, dtype: torch.dtype) -> Band:
        own, error = positives.own, error if positives.slack is None else error + positives.slack
        low, high = own - error, own + error
        if not finite(high):
            # where the margin has no end, everything is close; a NaN positive ranks last whatever it meets, so nothing needs to be
            lost, endless = own.isnan(), error.isinf()
            low = low.masked_fill(endless, -torch.inf).masked_fill(lost, torch.inf)
            high = high.masked_fill(endless | lost, torch.inf)
        infinite = torch.full((), torch.inf, dtype=dtype, device=own.device)
        return Band(torch.nextafter(low.to(dtype), -infinite), torch.nextafter(high.to(dtype), infinite))


@dataclass
class Tally:
    """The counts of one direction: of N queries, or of M candidates in the other."""

    above: Tensor
    ties: Tensor

    @staticmethod
    def empty(n: int, device: torch.device) -> Tally:
        return Tally(*(torch.zeros(n, dtype=torch.int64, device=device) for _ in range(2)))


Counter = Callable[[Scores, Positives, "list[Band]", Tally, "Tally | None"], bool]


def sweep(scores: Scores, positives: Positives, counter: Counter | None = None) -> tuple[Ranks, Ranks | None]:
    """(greater, ties) of the N queries and, where ``positives.sets`` is given, of the M candidates against the sets.

    counter: a kernel that does the counting; it says False where it cannot, and the tiles are walked here.
    """
    n, m = scores.shape
    rows, columns, other = Tally.empty(n, scores.device), None, None
    bands = [Band.around(positives, scores.errors, scores.dtype)]
    if positives.sets is not None:
        columns, other = Tally.empty(m, scores.device), positives.of_candidates(m)
        bands.append(Band.around(other, scores.candidate_errors, scores.dtype))
    if counter is None or not counter(scores, positives, bands, rows, columns):
        _walk(scores, positives, other, bands, rows, columns)
    _lose(rows, positives.own, lambda i: int((~positives.left_out(i, torch.arange(m, device=scores.device))).sum()))
    if columns is None or other is None or positives.sets is None:
        return (rows.above, rows.ties), None
    sets = positives.sets
    every = torch.arange(n, device=scores.device)
    _lose(columns, other.own, lambda j: len(sets[~positives.left_out(every, j)].unique()))
    return (rows.above, rows.ties), (columns.above, columns.ties)


def settle_rows(scores: Scores, positives: Positives, rows: Tally, n: Tensor, m: Tensor) -> None:
    """Score the pairs (n_i, m_i) in float64 and count them for their queries."""
    keep = ~positives.left_out(n, m)
    n, m = n[keep], m[keep]
    score, own = positives.exact_pairs(scores.exact, n, m)
    rows.above.index_add_(0, n, (score > own).long())
    rows.ties.index_add_(0, n, (score == own).long())


def settle_sets(scores: Scores, positives: Positives, other: Positives, columns: Tally, pairs: Tensor, m: Tensor) -> None:
    """Score whole sets in float64 against candidates, pair by pair (set_i, m_i), each counted once by its best member."""
    assert positives.sets is not None
    if positives.alone:
        keep = ~positives.left_out(pairs, m)
        n, m = pairs[keep], m[keep]
        best, own = other.exact_pairs(lambda video, text: scores.exact(text, video), m, n)
        columns.above.index_add_(0, m, (best > own).long())
        columns.ties.index_add_(0, m, (best == own).long())
        return
    first = torch.searchsorted(positives.sets, pairs)
    count = torch.searchsorted(positives.sets, pairs, right=True) - first
    pair = torch.arange(len(pairs), device=pairs.device)
    if len(pairs) and int(count.amax()) > 1:
        pair = pair.repeat_interleave(count)
        first = torch.arange(len(pair), device=pairs.device) - (count.cumsum(0) - count)[pair] + first[pair]
    keep = ~positives.left_out(first, m[pair])
    n, pair = first[keep], pair[keep]
    score = scores.exact(n, m[pair])
    number = ~score.isnan()
    best = score.new_full((len(pairs),), torch.nan).scatter_reduce(0, pair[number], score[number], "amax", include_self=False)
    own = other.own[m] if other.slack is None else scores.exact(other.columns[m], m)
    columns.above.index_add_(0, m, (best > own).long())
    columns.ties.index_add_(0, m, (best == own).long())


def _walk(scores: Scores, positives: Positives, other: Positives | None, bands: list[Band], rows: Tally, columns: Tally | None) -> None:
    n, m = scores.shape
    floats = at_once(TILE, scores.device) // scores.width
    width = max(1, min(m, floats // ROWS))
    starts = _cuts(positives.sets, n, max(ROWS, floats // width))
    for left in range(0, m, width):
        span = slice(left, min(left + width, m))
        for start, stop in pairwise(starts):
            part = slice(start, stop)
            s = scores.tile(part, span)
            if positives.groups is not None:  # below everything but -inf, where the settling knows them again
                s = s.masked_fill(positives.groups[0][part, None] == positives.groups[1][None, span], -torch.inf)
            high, low = bands[0].high[part, None], bands[0].low[part, None]
            above, close = _tally(s, low, high, 1)
            rows.above[part] += above
            if positives.groups is None:  # a group took its positives out
                close -= _within(positives.columns[part], span)
            if (some := close.nonzero().squeeze(1)).numel():
                t = s[some]
                i, j = (~(t > high[some]) & ~(t < low[some])).nonzero(as_tuple=True)
                settle_rows(scores, positives, rows, some[i] + start, j + left)
            if columns is None or other is None or positives.sets is None:
                continue
            best, sets = _by_set(s, positives.sets[part])
            high, low = bands[1].high[span], bands[1].low[span]
            above, close = _tally(best, low, high, 0)
            columns.above[span] += above
            if positives.groups is None:
                close -= _within(other.columns[span], part)
            if (some := close.nonzero().squeeze(1)).numel():
                t = best[:, some]
                i, j = (~(t > high[some]) & ~(t < low[some])).nonzero(as_tuple=True)
                settle_sets(scores, positives, other, columns, sets[i], some[j] + left)


def _tally(s: Tensor, low: Tensor, high: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """How many scores are above the band, and how many in it or NaN, along one axis."""
    n, m = s.shape
    step = max(1, at_once(FLAGS, s.device) // max(1, m))
    flags = s.new_empty(min(n, step), m)  # sums of 0.0 and 1.0 are exact, and several times as fast as those of booleans
    above, below = s.new_empty(2, n) if dim else s.new_zeros(2, m)
    for start in range(0, n, step):
        part = slice(start, min(start + step, n))
        for side, compare, limit in ((above, torch.gt, high), (below, torch.lt, low)):
            found = compare(s[part], limit[part] if dim else limit, out=flags[: part.stop - start])
            if dim:
                torch.sum(found, 1, out=side[part])
            else:
                side += found.sum(0)
    return above.long(), (s.shape[dim] - above - below).long()


def each_its_own(sets: Tensor) -> bool:
    """Whether sorted sets, or a part of them, have one member each."""
    return not len(sets) or int(sets[-1] - sets[0]) == len(sets) - 1


def _within(places: Tensor, part: slice) -> Tensor:
    """1 where a positive lies in this part: always close to its own score, it is not to be looked at again."""
    inside: Tensor = ((places >= part.start) & (places < part.stop)).long()
    return inside


def _cuts(sets: Tensor | None, n: int, rows: int) -> list[int]:
    """Row starts, and n, of parts of about so many rows that cut no set in two."""
    if sets is None or n == 0 or each_its_own(sets):
        return [*range(0, n, rows), n] if n else [0]
    ends = torch.cat([(sets[1:] != sets[:-1]).nonzero().squeeze(1) + 1, torch.tensor([n], device=sets.device)]).tolist()
    cuts, last = [0], 0
    for end in ends:
        if end - cuts[-1] > rows and last > cuts[-1]:
            cuts.append(last)
        last = end
    return [*cuts, n]


def _by_set(s: Tensor, sets: Tensor) -> tuple[Tensor, Tensor]:
    """(n, m) scores -> the best of each set (g, m), and the sets (g,). NaN stays NaN, to be looked at again."""
    if each_its_own(sets):
        return s, sets
    unique, counts = torch.unique_consecutive(sets, return_counts=True)
    if (counts == counts[0]).all():
        return s.view(len(unique), int(counts[0]), -1).amax(1), unique
    member = torch.arange(len(unique), device=s.device).repeat_interleave(counts)
    best = s.new_full((len(unique), s.shape[1]), -torch.inf)
    return best.scatter_reduce_(0, member[:, None].expand_as(s), s, "amax"), unique


def _lose(tally: Tally, own: Tensor, others: Callable[[Tensor], int]) -> None:
    """A positive that is no number ranks last: all others count as above it."""
    if math.isnan(float(own.sum())):
        for i in own.isnan().nonzero().squeeze(1):
            tally.above[i], tally.ties[i] = others(i), 0
