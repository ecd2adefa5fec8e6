"""What the study's tables are made of: runs of a row, their hits, and differences between rows, from the records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from study_plan import CONDITIONAL, FULL, PARTS, Size, jobs
from study_stats import Interval, crossed, over_seeds

Rows = dict[str, Any]
SIDES = ("t2v", "v2t")
CHANCE = 50.0


class Missing(Exception):
    """parts: which are not wholly recorded."""

    def __init__(self, parts: Sequence[str], done: int, total: int) -> None:
        recorded = f"({done} of {total} runs are recorded)"
        if tuple(parts) == PARTS:
            super().__init__(f"*To be said when the study is whole {recorded}.*")
            return
        needs = "".join(f" This part is left out unless asked for: {CONDITIONAL[part]}." for part in parts if part in CONDITIONAL)
        super().__init__(f"*Not yet run {recorded}: `{' '.join(['python benchmarks/study.py', *parts])}`.*{needs}")


def need(records: Rows, *parts: str) -> None:
    """Raise Missing where not every run of these parts is recorded."""
    keys = [job.key for job in jobs(parts, size_of(records))]
    done = sum(key in records for key in keys)
    if done < len(keys):
        raise Missing(parts, done, len(keys))


def size_of(records: Rows) -> Size:
    stored = records.get("size")
    return Size(**{key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}) if stored else Size()


def runs(records: Rows, part: str, name: str) -> list[Rows]:
    """A row's runs, by seed. A frozen model's one run stands for every seed."""
    seeds = size_of(records).seeds
    return [records.get(f"{part}/{name}/{seed}") or records[f"{part}/{name}/0"] for seed in range(seeds)]


def hits(records: Rows, part: str, name: str, side: str, k: int = 1) -> np.ndarray:
    """Percent of each seed and query: (seeds, queries). Folds are different queries, and together one seed's."""
    found = [(np.asarray(run[side]) <= k) * 100.0 for run in runs(records, part, name)]
    return np.concatenate(found)[None] if part == "folds" else np.stack(found)


def both(records: Rows, part: str, name: str) -> tuple[np.ndarray, list[int]]:
    """R@1 of both directions, and the item that each query is of, so that its two queries are drawn together."""
    sides = [hits(records, part, name, side) for side in SIDES]
    return np.concatenate(sides, 1), [*range(sides[0].shape[1])] * 2


def difference(records: Rows, part: str, name: str, other: str) -> Interval:
    """Of two rows' R@1 of both directions, query by query and seed by seed."""
    own, groups = both(records, part, name)
    return crossed(own - both(records, part, other)[0], groups)


def twins(found: Sequence[Rows]) -> tuple[np.ndarray, list[int]]:
    """(seeds, captions that need time) in percent, and the pair that each is of: a cache has each clip's twin beside it."""
    keep = [i for i, value in enumerate(found[0]["twins"]) if value is not None]
    return np.array([[run["twins"][i] * 100.0 for i in keep] for run in found]), [i // 2 for i in range(len(keep))]


def number(value: Interval, sign: bool = False) -> str:
    form = "+.1f" if sign else ".1f"
    return f"{value.mean:{form}} [{value.low:{form}}, {value.high:{form}}]"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def seconds_of(records: Rows, name: str) -> list[float]:
    """Of one core, of a row's trainings on the fixed split."""
    return [run["cpu_seconds"] for run in runs(records, "demo", name)]


def peaks_of(records: Rows, name: str) -> list[float]:
    """MB of a training step."""
    return [records[f"memory/{name}/{n}"]["peak_mb"] for n in range(min(3, size_of(records).seeds))]


def percent_of_full(found: Callable[[Rows, str], list[float]], records: Rows, name: str) -> Interval:
    return over_seeds(np.divide(found(records, name), found(records, FULL.name)) * 100)
