"""Retrieval metrics from ranks, and how sure one may be of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SAMPLES_AT_ONCE = 100


def rank_of(greater: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """The 1-based rank of each query's positive: the mean of its optimistic and pessimistic rank, which differ only by ties."""
    return np.asarray(greater + 1 + ties / 2, dtype=np.float64)


def metrics_of(ranks: np.ndarray, topk: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """R@K in percent, median rank MdR and mean rank MnR, of 1-based ranks (N,); NaN without queries."""
    if not len(ranks):
        return {**{f"R@{k}": float("nan") for k in topk}, "MdR": float("nan"), "MnR": float("nan")}
    recall = {f"R@{k}": float((ranks <= k).mean() * 100) for k in topk}
    return {**recall, "MdR": float(np.median(ranks)), "MnR": float(ranks.mean())}


def bootstrap(
    ranks: np.ndarray, topk: Sequence[int], samples: int, *, seed: int = 0, minus: np.ndarray | None = None
) -> dict[str, list[float]]:
    """95 % percentile intervals of R@K, in points, over queries drawn with replacement.

    With ``minus`` (the ranks of another model for the same queries) the paired difference ``ranks - minus`` is resampled.
    """
    generator = np.random.default_rng(seed)
    hits = np.stack([(ranks <= k) - (0.0 if minus is None else (minus <= k) * 1.0) for k in topk])  # (K, N)
    means = np.concatenate(
        [  # a few samples at a time: the draws of 10,000 samples of 60,000 queries would take gigabytes
            hits[:, generator.integers(0, len(ranks), (min(SAMPLES_AT_ONCE, samples - start), len(ranks)))].mean(-1)
            for start in range(0, samples, SAMPLES_AT_ONCE)
        ],
        axis=1,
    )
    low, high = np.percentile(means * 100, [2.5, 97.5], axis=1)
    return {f"R@{k}": [float(low[i]), float(high[i])] for i, k in enumerate(topk)}
