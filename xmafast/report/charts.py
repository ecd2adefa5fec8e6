"""Charts as inline SVG: lines and grouped bars, each with its numbers as a table for who cannot see it.

Colours are the page's style's, by class: ``c0`` is what the others are measured against, ``c1`` on are the series. Every line is named
at its end, so that no colour has to be told from another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 66, 14, 44
LABEL_GAP = 14


@dataclass(frozen=True)
class Series:
    """label: short, at the end of its line. name: in full, in the table. color: 0 for the reference, 1 on for the others.

    band: (low, high) of each point, shaded behind the line; empty for none.
    """

    label: str
    name: str
    color: int
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = ()


def lines(title: str, series: Sequence[Series], x_name: str, y_name: str, *, log: bool = False, zero: bool = False) -> str:
    """A line for each series. log: of the x axis. zero: whether the y axis begins there."""
    series = [one for one in series if one.points]
    if not series:
        return ""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points] + [end for one in series for ends in one.band for end in ends]
    low, high, y_ticks = _range(0.0 if zero else min(ys), max(ys))
    x_ticks = log_ticks(min(xs), max(xs)) if log else _whole_ticks(min(xs), max(xs))

    def place(x: float, y: float) -> tuple[float, float]:
        start, end, at = (math.log(v) if log else v for v in (min(xs), max(xs), x))
        across = (at - start) / (end - start) if end > start else 0.5
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [_grid(y_ticks, lambda y: place(min(xs), y)[1])]
    for x in x_ticks:
        at = place(x, low)[0]
        parts.append(f'<text class="tick" x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_short(x)}</text>')
    ends = []
    for one in series:
        if one.band:
            lows = [(x, low) for (x, _), (low, _) in zip(one.points, one.band, strict=True)]
            highs = [(x, high) for (x, _), (_, high) in zip(one.points, one.band, strict=True)]
            edge = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in [*lows, *reversed(highs)]))
            parts.append(f'<polygon class="band c{one.color}" points="{edge}"/>')
    for one in series:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in one.points))
        parts.append(f'<polyline class="line c{one.color}" points="{path}"/>')
        x, y = place(*one.points[-1])
        parts.append(f'<circle class="dot c{one.color}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        ends.append((y, x, one))
    for y, (_, x, one) in zip(apart([end[0] for end in ends]), ends, strict=True):
        parts.append(f'<text class="name c{one.color}" x="{x + 7:.1f}" y="{y + 4:.1f}">{escape(one.label)}</text>')
    shown = x_ticks if log else sorted(set(xs))
    shown = shown if len(shown) <= 12 else [shown[round(i * (len(shown) - 1) / 11)] for i in range(12)]
    rows = [[_short(x), *(_value(dict(one.points).get(x)) for one in series)] for x in shown]
    return _figure(title, "".join(parts), x_name, y_name, [x_name, *(one.name for one in series)], rows)


def bars(title: str, groups: Sequence[str], series: Sequence[tuple[str, int, Sequence[float]]], x_name: str, y_name: str) -> str:
    """Groups of bars; a series is (name, color, a value for each group)."""
    low, high, ticks = _range(0.0, max((value for _, _, values in series for value in values), default=1.0))
    right = WIDTH - 12
    step = (right - LEFT) / max(1, len(groups))
    width = min(26.0, step * 0.8 / max(1, len(series)))

    def height(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [_grid(ticks, height, right)]
    for i, group in enumerate(groups):
        middle = LEFT + (i + 0.5) * step
        parts.append(f'<text class="tick" x="{middle:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(group)}</text>')
        for j, (name, color, values) in enumerate(series):
            x, top = middle + (j - len(series) / 2) * width, height(values[i])
            parts.append(
                f'<rect class="bar c{color}" x="{x + 0.5:.1f}" y="{top:.1f}" width="{width - 1:.1f}" '
                f'height="{max(0.0, HEIGHT - BOTTOM - top):.1f}"><title>{escape(name)}, {escape(group)}: {values[i]:.1f}</title></rect>'
            )
            if width >= 18:
                parts.append(f'<text class="tick" x="{x + width / 2:.1f}" y="{top - 4:.1f}" text-anchor="middle">{values[i]:.0f}</text>')
    rows = [[group, *(_value(values[i]) for _, _, values in series)] for i, group in enumerate(groups)]
    return _figure(title, "".join(parts), x_name, y_name, [x_name, *(name for name, _, _ in series)], rows)


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... within a range."""
    ticks = [float(m * 10**e) for e in range(9) for m in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def apart(places: Sequence[float]) -> list[float]:
    """Heights of labels, moved as little as needed for none to cover another, and kept inside the chart."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + LABEL_GAP)
    bottom = float(HEIGHT - BOTTOM)
    for i in reversed(order):
        moved[i] = min(moved[i], bottom)
        bottom = moved[i] - LABEL_GAP
    return moved


def _range(low: float, high: float) -> tuple[float, float, list[float]]:
    """A range of whole steps around the values, and its ticks. One value alone is seen against zero."""
    if not high > low:
        low, high = min(low, 0.0), max(high, 0.0)
    if not high > low:
        high = 1.0
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(step * m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    ticks = [round(i * step, 10) for i in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def _whole_ticks(low: float, high: float) -> list[float]:
    ticks = [tick for tick in _range(low, high)[2] if low <= tick <= high and float(tick).is_integer()]
    return ticks if len(ticks) > 1 else [low, high] if high > low else [low]


def _grid(ticks: Sequence[float], height: Callable[[float], float], right: float = WIDTH - RIGHT) -> str:
    parts = []
    for tick in ticks:
        y = height(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    return "".join(parts)


def _figure(title: str, inside: str, x_name: str, y_name: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    axes = (
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>'
        f'<text class="axis" transform="translate(12 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_name)}</text>"
    )
    table = "".join(
        f"<tr><th scope=row>{escape(row[0])}</th>" + "".join(f"<td>{escape(c)}</td>" for c in row[1:]) + "</tr>" for row in rows
    )
    heads = "".join(f"<th scope=col>{escape(name)}</th>" for name in head)
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: {escape(y_name)} by {escape(x_name)}">'
        f"{inside}{axes}</svg>"
        f'<details><summary>As a table</summary><div class="wide" tabindex="0" role="region" aria-label="{escape(title)}, as a table">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{table}</tbody></table></div></details></figure>"
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
