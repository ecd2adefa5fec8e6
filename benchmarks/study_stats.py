"""Means and their 95 % intervals: over seeds and queries, and over seeds alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

SAMPLES = 4000
T_95 = (0.0, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)  # two-sided, by degrees of freedom


class Interval(NamedTuple):
    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 where all of it lies above 0, -1 where all lies below, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def crossed(values: np.ndarray, groups: Sequence[int] | None = None, samples: int = SAMPLES) -> Interval:
    """Mean of values (seeds, queries) and its interval, both seeds and queries drawn with replacement.

    groups: (queries,) which of them are drawn together, as a clip and its twin. One seed alone is not drawn. Where seeds and queries
    differ by chance alone both draws count it, so that an interval is rather too wide than too narrow.
    """
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    seeds, queries = values.shape
    of = np.arange(queries) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    count = int(of.max()) + 1
    sums = np.stack([np.bincount(of, row, count) for row in values])
    sizes = np.bincount(of, minlength=count)
    of_groups, of_seeds = _drawn(count, samples, 0), _drawn(seeds, samples, 1)
    means = ((of_seeds @ sums) * of_groups).sum(1) / (seeds * (of_groups @ sizes))
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))


@cache
def _drawn(count: int, samples: int, seed: int) -> np.ndarray:
    """(samples, count): how often each is drawn."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), samples)


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean and Student's interval. One value alone has no width that could be known, and none is claimed."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return Interval(mean, mean, mean)
    half = T_95[min(len(array) - 1, len(T_95) - 1)] * float(array.std(ddof=1)) / len(array) ** 0.5
    return Interval(mean, mean - half, mean + half)


def of_another_run(values: Sequence[float], floor: float) -> tuple[float, float]:
    """Where one more run is expected, 95 %, after these: what a run that is made again is held against.

    floor: the least half width, since machines round differently and few seeds may agree by chance.
    """
    array = np.asarray(values, dtype=np.float64)
    half = floor
    if len(array) > 1:
        half = max(floor, T_95[min(len(array) - 1, len(T_95) - 1)] * float(array.std(ddof=1)) * (1 + 1 / len(array)) ** 0.5)
    return float(array.mean()) - half, float(array.mean()) + half
