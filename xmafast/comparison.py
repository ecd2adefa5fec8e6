"""Two models on the same queries: the difference of every metric, how sure it is, and a paired test of R@1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xmafast.errors import DataError
from xmafast.metrics import sign_flips
from xmafast.ranks import Ranks


def compare(first: Ranks, second: Ranks, topk: Sequence[int] = (1, 5, 10), samples: int = 10_000) -> dict[str, Any]:
    """``second - first``, query by query: both models' ranks must be of the same queries in the same order.

    Returns ``{"difference": {"t2v", "v2t", "R-sum"}, "interval": the same, its 95 % intervals over videos drawn with replacement, "test":
    {"t2v": {"p", "better", "worse", "name"}, "v2t": ...}}``: the exact two-sided p-value that R@1 differs, by flipping the sign of each
    video's difference (``xmafast.metrics.sign_flips``), and how many queries only the second model gets right, or only the first.
    Raises DataError where the queries cannot be the same.
    """
    one, two = first.sides(topk), second.sides(topk)
    if any(not np.array_equal(one[side].video, two[side].video) for side in one):
        raise DataError("The two evaluations have other queries, so that they cannot be compared query by query.")
    tests = {}
    for side in one:
        a, b = one[side].ranks <= 1, two[side].ranks <= 1
        single = len(np.unique(one[side].video)) == len(one[side].video)
        tests[side] = {
            "metric": "R@1",
            "p": sign_flips(a, b, one[side].video),
            "better": int((b & ~a).sum()),
            "worse": int((a & ~b).sum()),
            "name": "McNemar, exact" if single else "sign flips of videos, exact",
        }
    before, after = first.metrics(topk), second.metrics(topk)
    difference = {side: {metric: after[side][metric] - before[side][metric] for metric in before[side]} for side in before}
    return {
        "difference": {**difference, "R-sum": {side: second.r_sum[side] - value for side, value in first.r_sum.items()}},
        **({"interval": second.intervals(topk, samples, minus=first)} if samples else {}),
        "test": tests,
    }
