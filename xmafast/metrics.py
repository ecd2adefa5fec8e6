"""Retrieval metrics from ranks, how sure one may be of them, and how sure of a difference. Definitions: docs/evaluation.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SAMPLES_AT_ONCE = 100
DRAWN_AT_ONCE = 2**22  # numbers of the weights of queries that a median is taken with


def rank_of(greater: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """The 1-based rank of each query's positive: the mean of its optimistic and pessimistic rank, which differ only by ties."""
    return np.asarray(greater + 1 + ties / 2, dtype=np.float64)


def precision_and_gain(greater: np.ndarray, ties: np.ndarray, query: np.ndarray, candidates: int) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and nDCG of each query, 0 to 1, from the counts of its positives.

    greater, ties: (P,) how many of all the candidates score above each positive, and how many others as it does. query: (P,) the query
    that a positive belongs to, 0 to Q - 1, each of which has one at least. Returns (Q,) twice.

    With ranks r_1 < ... < r_L of a query's L positives, AP = 1/L sum_j j / r_j, and nDCG = sum_j 1 / log2(1 + r_j) over
    sum_j 1 / log2(1 + j). Where positives tie with others, both are the mean of their values with the positives first and last among
    equals. A positive that is no number ranks last; L of them take the last L places.
    """
    order = np.lexsort((greater, query))
    greater, ties, query = greater[order], ties[order], query[order]
    index = np.arange(len(query))
    starts = np.flatnonzero(np.r_[True, query[1:] != query[:-1]]) if len(query) else index
    place = index - np.repeat(starts, np.diff(np.r_[starts, len(query)]))  # 0-based among the query's positives
    new = np.r_[True, (query[1:] != query[:-1]) | (greater[1:] != greater[:-1])] if len(query) else np.zeros(0, bool)
    blocks = np.flatnonzero(new)  # positives of a query that score the same: just as many are above each
    sizes = np.diff(np.r_[blocks, len(query)])
    size, within = np.repeat(sizes, sizes), index - np.repeat(blocks, sizes)
    lost = (greater == candidates - 1) & (size > 1)  # numbers cannot share the last place
    first = np.where(lost, candidates - size, greater) + within + 1
    last = first + np.where(lost, 0, ties + 1 - size)
    total = np.bincount(query).astype(np.float64)

    def mean(value: np.ndarray) -> np.ndarray:
        return np.bincount(query, weights=value) / total

    precision = mean((place + 1) / first + (place + 1) / last) / 2
    gain = mean(1 / np.log2(1 + first) + 1 / np.log2(1 + last)) / 2
    ideal = mean(1 / np.log2(2.0 + place))
    return precision, gain / ideal


def metrics_of(
    ranks: np.ndarray, topk: Sequence[int] = (1, 5, 10), precision: np.ndarray | None = None, gain: np.ndarray | None = None
) -> dict[str, float]:
    """R@K in percent, median rank MdR and mean rank MnR, of 1-based ranks (N,); with what ``precision_and_gain`` gives also mAP and
    nDCG in percent. NaN without queries."""
    columns = columns_of(ranks, topk, precision, gain)
    median = {"MdR": float(np.median(ranks)) if len(ranks) else float("nan")}
    means = {name: float(column.mean()) if len(column) else float("nan") for name, column in columns.items()}
    recall = {name: means.pop(name) for name in list(means) if name.startswith("R@")}
    return {**recall, **median, **means}


def columns_of(
    ranks: np.ndarray, topk: Sequence[int], precision: np.ndarray | None = None, gain: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The metrics that are means over queries, as what each query adds to them: (N,) each."""
    columns = {f"R@{k}": (ranks <= k) * 100.0 for k in topk} | {"MnR": np.asarray(ranks, dtype=np.float64)}
    if precision is not None and gain is not None:
        columns |= {"mAP": 100 * precision, "nDCG": 100 * gain}
    return columns


@dataclass(frozen=True)
class Side:
    """One direction's queries: their ranks (N,), what each adds to the metrics that are means (``columns_of``), and the video that each
    belongs to, 0 to C - 1, as queries of one video are drawn together."""

    ranks: np.ndarray
    columns: Mapping[str, np.ndarray]
    video: np.ndarray


Intervals = dict[str, dict[str, list[float]]]


def intervals(
    sides: Mapping[str, Side],
    samples: int,
    *,
    seed: int = 0,
    minus: Mapping[str, Side] | None = None,
    sums: Mapping[str, Sequence[str]] | None = None,
) -> Intervals:
    """95 % percentile intervals of every metric of every side, over videos drawn with replacement, each with all its queries.

    A draw is the same for all sides, which must be about the same videos. minus: another model's for the same queries; the intervals
    are then those of the paired difference. sums: what to add up over metrics, as ``{"t2v": ["R@1", "R@5"]}`` whose total is
    ``{"R-sum": {"t2v": ..., "both": ...}}``.
    """
    generator = np.random.default_rng(seed)
    videos = max((int(side.video.max()) + 1 for side in sides.values() if len(side.video)), default=0)
    drawn: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in sides}
    if not videos:
        return {}
    biggest = max(len(side.ranks) for side in sides.values())
    step = max(1, min(SAMPLES_AT_ONCE, DRAWN_AT_ONCE // biggest))
    models = [_Summed(side, videos) for side in sides.values()]
    others = None if minus is None else [_Summed(minus[name], videos) for name in sides]
    for start in range(0, samples, SAMPLES_AT_ONCE):
        picks = generator.integers(0, videos, (min(SAMPLES_AT_ONCE, samples - start), videos))
        weights = np.stack([np.bincount(row, minlength=videos) for row in picks]).astype(np.float64)
        for i, name in enumerate(sides):
            for part in np.array_split(weights, -(-len(weights) // step)):
                values = models[i].of(part)
                if others is not None:
                    values = {
                        metric: value - other for (metric, value), other in zip(values.items(), others[i].of(part).values(), strict=True)
                    }
                for metric, value in values.items():
                    drawn[name].setdefault(metric, []).append(value)
    whole = {name: {metric: np.concatenate(parts) for metric, parts in side.items()} for name, side in drawn.items()}
    found = {name: {metric: _ends(values) for metric, values in side.items()} for name, side in whole.items()}
    if sums:
        total = {name: np.sum([whole[name][metric] for metric in metrics], axis=0) for name, metrics in sums.items()}
        found["R-sum"] = {name: _ends(value) for name, value in total.items()} | {"both": _ends(np.sum(list(total.values()), axis=0))}
    return found


def _ends(values: np.ndarray) -> list[float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return [float(low), float(high)]


class _Summed:
    """A side's columns added up by video, and its queries in the order of their ranks."""

    def __init__(self, side: Side, videos: int) -> None:
        self.names = list(side.columns)
        self.sums = np.stack([np.bincount(side.video, weights=side.columns[name], minlength=videos) for name in self.names], axis=1)
        self.sizes = np.bincount(side.video, minlength=videos).astype(np.float64)
        order = np.argsort(side.ranks, kind="stable")
        self.ranks, self.video = np.asarray(side.ranks, dtype=np.float64)[order], side.video[order]

    def of(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """(S, C) how often each video is drawn -> each metric (S,)."""
        means = (weights @ self.sums) / (weights @ self.sizes)[:, None]
        return {**{name: means[:, i] for i, name in enumerate(self.names)}, "MdR": self._medians(weights)}

    def _medians(self, weights: np.ndarray) -> np.ndarray:
        count = weights[:, self.video].cumsum(1)  # queries up to each rank
        total = count[:, -1]
        low = np.array([np.searchsorted(row, (n + 1) // 2) for row, n in zip(count, total, strict=True)])
        high = np.array([np.searchsorted(row, n // 2 + 1) for row, n in zip(count, total, strict=True)])
        return np.asarray((self.ranks[low] + self.ranks[high]) / 2)


def bootstrap(
    ranks: np.ndarray, topk: Sequence[int], samples: int, *, seed: int = 0, minus: np.ndarray | None = None
) -> dict[str, list[float]]:
    """95 % percentile intervals of R@K, MdR and MnR, over queries drawn with replacement.

    With ``minus`` (the ranks of another model for the same queries) the paired difference ``ranks - minus`` is resampled.
    """

    def side(values: np.ndarray) -> dict[str, Side]:
        return {"": Side(values, columns_of(values, topk), np.arange(len(values)))}

    return intervals(side(ranks), samples, seed=seed, minus=None if minus is None else side(minus)).get("", {})


def sign_flips(first: np.ndarray, second: np.ndarray, video: np.ndarray) -> float:
    """The two-sided p-value of a paired permutation test: that two models with the same number of hits differ by this many or more.

    first, second: (N,) bool, the hits of two models for the same queries. video: (N,) the video of each. Were the models alike, every
    video's difference in hits would be as likely with the other sign. The distribution of their sum over all signs is computed
    whole, so the p-value is exact and nothing is drawn; where every video has one query it is McNemar's exact test.
    """
    difference = np.bincount(video, weights=first.astype(np.float64) - second).round().astype(np.int64)
    steps = np.abs(difference[difference != 0])
    reach = int(steps.sum())
    chance = np.zeros(2 * reach + 1)
    chance[reach] = 1.0
    for step in steps:
        moved = np.zeros_like(chance)
        moved[step:] += 0.5 * chance[:-step]
        moved[:-step] += 0.5 * chance[step:]
        chance = moved
    far = np.abs(np.arange(-reach, reach + 1)) >= abs(int(difference.sum()))
    return min(1.0, float(chance[far].sum()))
