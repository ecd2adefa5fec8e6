"""The study in short: each claim, and what the records say to it."""

from __future__ import annotations

import numpy as np
from study_plan import ADAPTER, CROSS_MODAL, FULL, ORDER, PARTS, ROWS
from study_results import CHANCE, Rows, difference, need, number, peaks_of, percent_of_full, runs, seconds_of, size_of, table, twins
from study_stats import crossed, over_seeds


def short(records: Rows) -> tuple[str, dict[str, str]]:
    """Each claim, and what the records say to it: the signs of intervals that the sections below have in full."""
    need(records, *PARTS)
    few = size_of(records).sizes[0]
    small = {
        row.name: [records[f"sizes/{row.name} of {few}/{seed}"]["points"] for seed in range(size_of(records).seeds)]
        for row in (FULL, CROSS_MODAL)
    }
    unseen_by = {name: [points[-1]["unseen"] for points in found] for name, found in small.items()}
    gained = over_seeds([points[-1]["unseen"] - points[0]["unseen"] for points in small[FULL.name]])
    apart = {row.name: crossed(*twins(runs(records, "motion", row.name))) for row in ROWS["motion"]}
    seeing = [row.name for row in ROWS["motion"] if row.sees == ORDER]
    blind = [name for name in apart if name not in seeing]
    above = [name for name, value in apart.items() if value.low > CHANCE]
    same = all(records[f"swap/{seed}"]["same_again"] for seed in range(size_of(records).seeds))
    seconds, peaks = (percent_of_full(found, records, CROSS_MODAL.name) for found in (seconds_of, peaks_of))
    saved = seconds.high < 100 and peaks.high < 100
    body = [
        (
            "Fewer than 1 % of the parameters match or beat full fine-tuning",
            {1: "yes: ahead", 0: "as far as is shown: no difference", -1: "no: behind"},
            difference(records, "folds", CROSS_MODAL.name, FULL.name),
        ),
        (
            f"Full fine-tuning overfits small sets ({few} clips): new ones are found no better than before",
            {1: "no: it gains", 0: "yes: it gains nothing that shows", -1: "yes: it loses"},
            gained,
        ),
        (
            "An adapter does so less",
            {1: "yes: ahead on new clips", 0: "no difference is shown", -1: "no: behind on new clips"},
            over_seeds(np.subtract(unseen_by[CROSS_MODAL.name], unseen_by[FULL.name])),
        ),
        (
            "Sharing the up-projection helps",
            {1: "yes", 0: "no effect is shown", -1: "no: it hurts"},
            difference(records, "folds", CROSS_MODAL.name, ADAPTER.name),
        ),
        (
            "Text and images: sharing helps on stills of a new design",
            {1: "yes", 0: "no effect is shown", -1: "no: it hurts"},
            difference(records, "stills", CROSS_MODAL.name, ADAPTER.name),
        ),
        (
            "The adapter against full fine-tuning, where pretraining saw no test emoji",
            {1: "ahead", 0: "no difference is shown", -1: "behind"},
            difference(records, "unseen", CROSS_MODAL.name, FULL.name),
        ),
    ]
    lines = [[claim, words[value.sign], f"{number(value, True)} points of R@1"] for claim, words, value in body]
    lines[4:4] = [
        [
            "Where order matters, mean pooling fails",
            "yes" if not set(blind) & set(above) else "not always",
            f"{len(set(blind) & set(above))} of {len(blind)} rows that see no order are above chance",
        ],
        [
            "There temporal adaptation matters",
            "yes" if set(seeing) <= set(above) else "not always",
            f"{len(set(seeing) & set(above))} of {len(seeing)} rows that see it are above chance",
        ],
        [
            "One backbone serves several data sets",
            "yes" if same else "no",
            "the same ranks after a swap, query by query" if same else "the ranks differ",
        ],
        [
            "Training takes less time and memory",
            "yes" if saved else "not shown",
            f"{seconds.mean:.0f} % of the time, {peaks.mean:.0f} % of the memory of a step",
        ],
    ]
    return table(("claim", "here", ""), lines), {}
