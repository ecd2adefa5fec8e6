"""The table of benchmarks/methods.py, on a terminal and as Markdown for docs/methods.md."""

from __future__ import annotations

from typing import Any

import numpy as np
from methods_rows import Row
from rich.console import Console
from rich.table import Table

HEADS = ("", "trained", "lr", "t2v R@1", "R@5", "R@10", "MnR", "v2t R@1", "R@5", "R@10", "MnR", "time", "memory", "stills kept")
REFERENCE = "full"


def show(records: dict[str, Any], rows: list[Row], seeds: list[int]) -> bool:
    """Print both forms; whether every row is there."""
    lines = [cells(records, row, seeds) for row in rows]
    table = Table(*HEADS, title="150 test clips, mean of seeds (standard deviation); time and memory against full fine-tuning")
    for line in lines:
        table.add_row(*line)
    Console(width=200).print(table)
    print("\n".join(["| " + " | ".join(HEADS) + " |", "|" + " --- |" * len(HEADS), *("| " + " | ".join(line) + " |" for line in lines)]))
    return all("–" not in line for line in lines)


def cells(records: dict[str, Any], row: Row, seeds: list[int]) -> list[str]:
    runs = [records[key] for seed in seeds if (key := f"train/{row.name}/{seed}") in records]
    forgot = [records[key] for seed in seeds if (key := f"forget/{row.name}/{seed}") in records]
    out = [row.name]
    lr = "none" if row.lr is None else f"{runs[0]['lr']:g}" if runs else "–"
    out += [f"{runs[0]['trainable']:,} ({runs[0]['trainable_percent']:.2f} %)" if runs else "–", lr]
    for side in ("t2v", "v2t"):
        for key in ("R@1", "R@5", "R@10", "MnR"):
            values = [run[side][key] for run in runs]
            spread = f" ({np.std(values, ddof=1):.1f})" if key == "R@1" and len(values) > 1 else ""
            out.append(f"{np.mean(values):.1f}{spread}" if len(values) == len(seeds) else "–")
    if row.lr is None:
        out += ["none", "none"]
    else:
        out += _cost(records, row)
    kept = [sum(f["after"].values()) / sum(f["before"].values()) for f in forgot]
    out.append(f"{100 * np.mean(kept):.0f} %" if len(kept) == len(seeds) else "–")
    return out


def _cost(records: dict[str, Any], row: Row) -> list[str]:
    """Time of a step and peak memory, against the reference row's."""
    own, full = records.get(f"cost/{row.name}"), records.get(f"cost/{REFERENCE}")
    if not own or not full:
        return ["–", "–"]
    return [f"{own['step']['median_ms'] / full['step']['median_ms']:.2f}", f"{own['peak_mb'] / full['peak_mb']:.2f}"]
