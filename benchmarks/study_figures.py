"""The study's figures as files of SVG that read on light and on dark ground: means with their intervals, and curves.

Curves are the charts of xmafast.report, with its style; a page's style does not reach into an image, so that each file carries its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from study_stats import Interval

from xmafast.report.charts import Series, lines
from xmafast.report.style import STYLE

WIDTH, LEFT, RIGHT, TOP, ROW, BOTTOM = 640, 210, 96, 14, 26, 44
ROOM = 64  # for the curves' names, which are longer here than in a report
PALETTE = STYLE[: STYLE.index("* { box-sizing")] + STYLE[STYLE.index("svg text {") : STYLE.index(".cards {")]
OWN = (
    "svg { background: var(--back); } .whisker { stroke-width: 2; } "
    ".band { opacity: .14; } .guide { stroke: var(--soft); stroke-dasharray: 3 3; }"
)
FILLS = " ".join(f".mark.c{i}, .band.c{i} {{ fill: var(--c{i}); }} .whisker.c{i} {{ stroke: var(--c{i}); }}" for i in range(8))


class Mark(NamedTuple):
    """A line of a figure. color: as in xmafast.report.charts, 0 for what the others are measured against."""

    name: str
    value: Interval
    color: int


def ranges(title: str, marks: Sequence[Mark], x_name: str, guide: float | None = None) -> str:
    """Means as dots with their 95 % intervals as lines, one under the other. guide: a value to be seen against, as chance."""
    ends = [end for mark in marks for end in (mark.value.low, mark.value.high)] + ([] if guide is None else [guide])
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 50, 100) if (max(ends) - min(ends)) / step <= 7)
    low, high = min(ends) // step * step, -(-max(ends) // step) * step
    high = high if high > low else low + step
    bottom = TOP + ROW * len(marks)

    def place(x: float) -> float:
        return LEFT + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    parts = []
    for i in range(round((high - low) / step) + 1):
        x = place(low + i * step)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{low + i * step:g}</text>')
    if guide is not None:
        parts.append(f'<line class="guide" x1="{place(guide):.1f}" x2="{place(guide):.1f}" y1="{TOP}" y2="{bottom}"/>')
    for i, (name, value, color) in enumerate(marks):
        y = TOP + ROW * (i + 0.5)
        parts.append(f'<text x="{LEFT - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<line class="whisker c{color}" x1="{place(value.low):.1f}" x2="{place(value.high):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="mark c{color}" cx="{place(value.mean):.1f}" cy="{y}" r="4.5"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 12}" y="{y + 4:.1f}">{value.mean:.1f}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{bottom + 36}" text-anchor="middle">{escape(x_name)}</text>')
    return _file(title, WIDTH, bottom + BOTTOM, "".join(parts))


def curves(title: str, series: Sequence[Series], x_name: str, y_name: str) -> str:
    found = re.search(r'<svg viewBox="0 0 (\d+) (\d+)"[^>]*>(.*?)</svg>', lines(title, series, x_name, y_name, zero=True), re.S)
    if not found:
        raise ValueError(f"{title}: there is nothing to draw.")
    return _file(title, int(found[1]) + ROOM, int(found[2]), found[3])


def _file(title: str, width: int, height: int, inside: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title><style>{PALETTE}{OWN} {FILLS}</style>{inside}</svg>\n'
    )
