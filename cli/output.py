"""What a command prints: results on stdout, progress and remarks on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# no markup and no emoji codes: a caption with [brackets] or :colons: is shown as it is
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


def note(text: str) -> None:
    """A remark for a person, on stderr."""
    err.print(Text(text))


def print_json(value: Any) -> None:
    """One JSON value on stdout; a metric that is not a number becomes null."""
    sys.stdout.write(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and value != value else value


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {self.unit}/s")


@contextmanager
def bar(title: str, unit: str, *, notes: bool = False) -> Iterator[Callable[..., None]]:
    """A progress bar with time left; yields ``update(done, total, note="")``. With ``notes``, a remark instead of the rate."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(10 if notes else 30),
        MofNCompleteColumn(),
        *(() if notes else (_Rate(unit),)),
        TextColumn("left"),
        TimeRemainingColumn(),
        *((TextColumn("{task.fields[note]}"),) if notes else ()),
    )
    progress = Progress(*columns, console=err, transient=False)
    task = progress.add_task(title, total=None, note="")

    def update(done: int, total: int, note: str = "") -> None:
        if total > 0:  # a bar of nothing would leave an empty line
            progress.start()
            progress.update(task, completed=done, total=total, note=note)

    try:
        yield update
    finally:
        progress.stop()


def metrics_table(title: str, rows: list[tuple[str, dict[str, Any]]], topk: list[int]) -> Table:
    """Both directions of one or several models; a row is (name, {"t2v": ..., "v2t": ..., "interval"?: ..., "R-sum"?: ...}).

    R-sum, mAP and nDCG have a column where some row has them. ``"signed"`` marks a row of differences.
    """
    # made to fit a terminal of 80 columns, where a squeezed table would cut the names of its rows
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("", overflow="fold", min_width=min(16, max(len(name) for name, _ in rows)))
    columns = [*(f"R@{k}" for k in topk), "MdR", "MnR"]
    columns += [name for name in ("mAP", "nDCG") if any(name in metrics["v2t"] for _, metrics in rows)]
    columns += ["R-sum"] if any("R-sum" in metrics for _, metrics in rows) else []
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for direction, label in (("t2v", "text to video"), ("v2t", "video to text")):
        for name, metrics in rows:
            form = "+.1f" if metrics.get("signed") else ".1f"
            values, interval = dict(metrics[direction]), dict(metrics.get("interval", {}).get(direction, {}))
            if "R-sum" in metrics:
                values["R-sum"] = metrics["R-sum"][direction]
                ends = metrics.get("interval", {}).get("R-sum", {}).get(direction)
                interval["R-sum"] = ends
            table.add_row(label, name, *(_cell(values.get(column), interval.get(column), form) for column in columns))
            label = ""
        table.add_section()
    return table


def _cell(value: float | None, interval: list[float] | None, form: str) -> str:
    if value is None:
        return ""
    if not interval:
        return f"{value:{form}}"
    low, high = (f"{end:{form}}" for end in interval)
    return f"{value:{form}} [{low}, {high}]"
