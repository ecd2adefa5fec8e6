"""What a run's log says of its training."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from xmafast.ranks import r_sum

POINTS = 120  # of a curve, about as many as can be told apart

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Training:
    """loss: (step, mean loss of the steps since the point before). validation: (epoch, R-sum of both directions)."""

    loss: Points
    validation: Points


def training_of(run: Path) -> Training:
    """Of a run without a log, as an imported one, both are empty; a line that was cut off is left out."""
    steps: Points = []
    epochs: Points = []
    try:
        text = (run / "log.jsonl").read_text(encoding="utf-8")
    except OSError:
        return Training([], [])
    for line in text.splitlines():
        try:
            row = json.loads(line)
            if "validation" in row and "epoch" in row:
                epochs.append((float(row["epoch"]), r_sum(row["validation"])))
            elif "loss" in row and math.isfinite(row["loss"]):
                steps.append((float(row["step"]), float(row["loss"])))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    size = max(1, math.ceil(len(steps) / POINTS))
    parts = [steps[i : i + size] for i in range(0, len(steps), size)]
    return Training([(part[-1][0], sum(loss for _, loss in part) / len(part)) for part in parts], epochs)
