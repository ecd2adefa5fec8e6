"""Retrieval metrics from ranks, and how sure one may be of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
    draws = generator.integers(0, len(ranks), (samples, len(ranks)))
    result = {}
    for k in topk:
        hits = (ranks <= k).astype(np.float64) - (0 if minus is None else (minus <= k))
        low, high = np.percentile(hits[draws].mean(1) * 100, [2.5, 97.5])
        result[f"R@{k}"] = [float(low), float(high)]
    return result
