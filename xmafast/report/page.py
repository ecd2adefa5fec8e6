"""The page: what is on it, in which order."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from xmafast import __version__
from xmafast.cache import FrameReader
from xmafast.comparison import compare
from xmafast.evaluation import summary
from xmafast.ranks import Ranks
from xmafast.records import Record
from xmafast.report.charts import Series, bars, lines
from xmafast.report.style import STYLE
from xmafast.report.training import training_of

COLORS = 6
FROZEN = (0, 7)  # their colours
CURVE = 50  # the largest K of the curves
BINS = (1, 5, 10, 50, 100)
SHOWN, SIDE = 4, 128  # frames of a video, and their size in pixels
SIDES = {"t2v": "Text to video", "v2t": "Video to text"}


def report_page(
    records: Sequence[Record],
    cache: FrameReader,
    *,
    topk: Sequence[int] = (1, 5, 10),
    samples: int = 10_000,
    worst: int = 12,
    title: str | None = None,
) -> str:
    """HTML of one file: no network, no script. ``records`` are of the same queries, on ``cache``.

    samples: of the intervals. worst: how many of the queries with the highest mean rank are shown, each direction.
    """
    models = _models(records)
    data = records[0].data
    names = ", ".join(dict.fromkeys(record.name for record in records))
    title = title or f"{names} on {data['protocol']['dataset']}/{data['split']}"
    lead = (
        f"{data['queries']} captions, {data['candidates']} videos"
        + (f", {lost} more missing or failed" if (lost := data["missing"] + data["failed"]) else "")
        + f"; {data['protocol']['queries']} protocol."
    )
    sections = {
        "numbers": ("Numbers", _numbers(models, topk, samples) + (_differences(models, topk, samples) if len(records) > 1 else "")),
        "curves": ("R@K and ranks", _curves(models)),
        "training": ("Training", _training(records)),
        "worst-texts": ("Worst texts", _worst_texts(records, cache, worst)),
        "worst-videos": ("Worst videos", _worst_videos(records, cache, worst)),
        "how": ("How it was measured", _how(records)),
    }
    sections = {key: value for key, value in sections.items() if value[1]}
    links = "".join(f'<a href="#{key}">{escape(name)}</a>' for key, (name, _) in sections.items())
    body = "\n".join(
        f'<section aria-labelledby="{key}"><h2 id="{key}">{escape(name)}</h2>{inside}</section>' for key, (name, inside) in sections.items()
    )
    keys = "".join(f"<li>{model.key} {escape(model.name)}</li>" for model in models)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}: xmafast report</title><style>{STYLE}</style></head>\n"
        f'<body><header><h1>{escape(title)}</h1><p class="soft">{escape(lead)}</p><ul class="keys">{keys}</ul>'
        f'<nav aria-label="On this page">{links}</nav></header>\n<main>{body}</main>\n'
        f'<footer><p class="soft">xmafast {escape(__version__)}</p></footer></body></html>\n'
    )


class _Model:
    """A row of the tables and a line of the charts."""

    def __init__(self, label: str, name: str, color: int, ranks: Ranks) -> None:
        self.label, self.name, self.color, self.ranks = label, name, color, ranks

    @property
    def key(self) -> str:
        return f'<span class="key c{self.color}">{escape(self.label)}</span>'


def _models(records: Sequence[Record]) -> list[_Model]:
    """The runs, after the frozen models that they start from, each of these once."""
    frozen: list[_Model] = []
    for record in records:
        ranks, said = record.ranks("zero_shot"), record.data["protocol"]
        if not any(np.array_equal(ranks.t2v, other.ranks.t2v) and np.array_equal(ranks.v2t, other.ranks.v2t) for other in frozen):
            name = f"zero-shot {said['backbone']}, {said['header']} header"
            frozen.append(_Model(f"Z{len(frozen) + 1}", name, FROZEN[min(len(frozen), len(FROZEN) - 1)], ranks))
    if len(frozen) == 1:
        frozen[0].label = "Z"
    runs = [_Model(_letter(i), record.name, i % COLORS + 1, record.ranks()) for i, record in enumerate(records)]
    return frozen + runs


def _letter(i: int) -> str:
    return chr(ord("A") + i) if i < 26 else str(i + 1)


def _numbers(models: Sequence[_Model], topk: Sequence[int], samples: int) -> str:
    rows = [(model, summary(model.ranks, topk, samples)) for model in models]
    tables = "".join(_metric_table(side, [(model.key, model.name, found) for model, found in rows]) for side in SIDES)
    about = "R@K, mAP, nDCG and R-sum (R@1 + R@5 + R@10) in percent. "
    about += f"In small, 95 % intervals of {samples:,} draws of the videos with all their queries." if samples else ""
    return f'<p class="soft">{about}</p>{tables}'


def _metric_table(side: str, rows: Sequence[tuple[str, str, dict[str, Any]]], form: str = ".1f", caption: str = "") -> str:
    columns = [*rows[0][2][side], "R-sum"]
    heads = "".join(f"<th scope=col>{escape(column)}</th>" for column in columns)
    lines = []
    for key, name, found in rows:
        interval = found.get("interval", {})
        cells = []
        for column in columns:
            value = found["R-sum"][side] if column == "R-sum" else found[side][column]
            ends = (interval.get("R-sum", {}) if column == "R-sum" else interval.get(side, {})).get(side if column == "R-sum" else column)
            small = f"<small>{ends[0]:{form}} to {ends[1]:{form}}</small>" if ends else ""
            cells.append(f"<td>{value:{form}}{small}</td>")
        test = found.get("test")
        cells += [f"<td>{test[side]['p']:.3g}<small>{test[side]['better']} won, {test[side]['worse']} lost</small></td>"] if test else []
        lines.append(f"<tr><th scope=row>{key} <span class=full>{escape(name)}</span></th>{''.join(cells)}</tr>")
    heads += "<th scope=col>p of R@1</th>" if rows[0][2].get("test") else ""
    label = f"{SIDES[side]}{caption}"
    return (
        f'<h3>{escape(label)}</h3><div class="wide" tabindex="0" role="region" aria-label="{escape(label)}">'
        f"<table><thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _differences(models: Sequence[_Model], topk: Sequence[int], samples: int) -> str:
    runs = [model for model in models if model.color not in FROZEN]
    first = runs[0]
    rows = []
    for model in runs[1:]:
        found = compare(first.ranks, model.ranks, topk, samples)
        rows.append(
            (f"{model.key} less {first.key}", "", {**found["difference"], "interval": found.get("interval", {}), "test": found["test"]})
        )
    tables = "".join(_metric_table(side, rows, "+.1f", ", differences") for side in SIDES)
    return (
        f"{tables}<p class=soft>Differences are paired, query by query; p is the exact two-sided one of a sign test of R@1, not "
        "corrected for how many runs are compared.</p>"
    )


def _curves(models: Sequence[_Model]) -> str:
    parts = []
    for side, name in SIDES.items():
        top = min(CURVE, max(2, len(models[0].ranks.v2t)))
        series = []
        for model in models:
            ranks = getattr(model.ranks, side)
            points = [(float(k), float((ranks <= k).mean() * 100)) for k in range(1, top + 1)]
            series.append(Series(model.label, model.name, model.color, points))
        parts.append(lines(f"{name}: R@K", series, "K", "queries found, %", log=True))
    for side, name in SIDES.items():
        ends = [0, *(b for b in BINS if b < len(models[0].ranks.v2t)), float("inf")]
        groups = [_bin(low, high) for low, high in pairwise(ends)]
        shown = []
        for model in models:
            ranks = getattr(model.ranks, side)
            shares = [float(((ranks > low) & (ranks <= high)).mean() * 100) for low, high in pairwise(ends)]
            shown.append((model.name, model.color, shares))
        parts.append(bars(f"{name}: where the right one ranks", groups, shown, "rank", "queries, %"))
    return f'<div class="pair">{"".join(parts)}</div>'


def _bin(low: float, high: float) -> str:
    if high == float("inf"):
        return f"> {low:g}"
    return f"{high:g}" if high - low == 1 else f"{low + 1:g}–{high:g}"


def _training(records: Sequence[Record]) -> str:
    found = [training_of(record.run) for record in records]
    series = [
        [
            Series(_letter(i), record.name, i % COLORS + 1, points)
            for i, (record, points) in enumerate(zip(records, of, strict=True))
            if points
        ]
        for of in ([one.loss for one in found], [one.validation for one in found])
    ]
    charts = lines("Training loss", series[0], "step", "loss", zero=True)
    charts += lines("Validation R-sum, both directions", series[1], "epoch", "R-sum, %")
    rules = dict.fromkeys(str(record.data["checkpoint_rule"]) for record in records if record.data["checkpoint_rule"])
    about = f"<p class=soft>Kept: {escape('; '.join(rules))}.</p>" if rules else ""
    return f'{about}<div class="pair">{charts}</div>' if charts else ""


def _worst(records: Sequence[Record], side: str, count: int) -> list[int]:
    """The queries of highest mean rank over the runs, those that every run ranks first left out."""
    mean = np.mean([getattr(record.ranks(), side) for record in records], axis=0)
    order = np.argsort(-mean, kind="stable")[:count]
    return [int(i) for i in order if mean[i] > 1]


def _worst_texts(records: Sequence[Record], cache: FrameReader, count: int) -> str:
    data, frames = records[0].data, _Frames(cache, records[0].data["rows"])
    ranks = [record.ranks().t2v for record in records]
    cards = []
    for i in _worst(records, "t2v", count):
        right = data["video_of"][i]
        parts = [f'<p><span class="right">Right</span> <small>{escape(data["ids"][right])}</small></p>{frames.of(right)}']
        for j, record in enumerate(records):
            best = record.found("t2v")[i]
            others = " / ".join(_caption(data, v) for v in best[1:])
            found = f"{escape(_caption(data, best[0]))} <small>{escape(data['ids'][best[0]])}</small>"
            parts.append(f"<p>{_key(records, j)} rank {ranks[j][i]:g} · found {found}</p>{frames.of(best[0])}")
            parts += [f"<p class=soft>then {escape(others)}</p>"] if others else []
        cards.append(f'<li class="card"><h3>{escape(data["captions"][i])}</h3>{"".join(parts)}</li>')
    return f'<ul class="cards">{"".join(cards)}</ul>' if cards else ""


def _worst_videos(records: Sequence[Record], cache: FrameReader, count: int) -> str:
    data, frames = records[0].data, _Frames(cache, records[0].data["rows"])
    ranks = [record.ranks().v2t for record in records]
    cards = []
    for v in _worst(records, "v2t", count):
        own = [caption for caption, of in zip(data["captions"], data["video_of"], strict=True) if of == v]
        more = f" (and {len(own) - 3} more)" if len(own) > 3 else ""
        parts = [frames.of(v), f'<p><span class="right">Right</span> · {escape(" / ".join(own[:3]))}{more}</p>']
        for j, record in enumerate(records):
            best = [f"{data['captions'][t]}" for t in record.found("v2t")[v]]
            parts.append(f"<p>{_key(records, j)} rank {ranks[j][v]:g} · found {escape(' / '.join(best))}</p>")
        cards.append(f'<li class="card"><h3>{escape(data["ids"][v])}</h3>{"".join(parts)}</li>')
    return f'<ul class="cards">{"".join(cards)}</ul>' if cards else ""


def _key(records: Sequence[Record], j: int) -> str:
    return f'<span class="key c{j % COLORS + 1}">{_letter(j)}</span>' if len(records) > 1 else ""


def _caption(data: dict[str, Any], video: int) -> str:
    return str(next((c for c, of in zip(data["captions"], data["video_of"], strict=True) if of == video), ""))


class _Frames:
    """The frames of a video as small images in the page itself."""

    def __init__(self, cache: FrameReader, rows: Sequence[int]) -> None:
        self.cache, self.rows = cache, rows

    def of(self, video: int) -> str:
        frames = self.cache.frames_of(self.rows[video])
        picked = frames[np.unique(np.linspace(0, len(frames) - 1, min(SHOWN, len(frames))).round().astype(int))] if len(frames) else []
        name = escape(self.cache.ids[self.rows[video]])
        images = []
        for i, frame in enumerate(picked, 1):
            jpeg = io.BytesIO()
            Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(jpeg, "JPEG", quality=80)
            source = base64.b64encode(jpeg.getvalue()).decode("ascii")
            images.append(f'<img src="data:image/jpeg;base64,{source}" alt="{name}, frame {i} of {len(picked)}">')
        return f'<div class="frames">{"".join(images)}</div>'


def _how(records: Sequence[Record]) -> str:
    """Protocol, options and recipe of each run, a row for each fact."""
    facts: list[dict[str, str]] = []
    for record in records:
        data = record.data
        shown: dict[str, Any] = {"run": str(record.run), "cache": data["cache"], **data["protocol"]}
        shown |= {
            "checkpoint rule": data["checkpoint_rule"],
            "trained parameters": f"{data['trainable']:,} ({data['trainable_percent']:.2f} %)",
        }
        shown |= {f"option {key}": value for key, value in data["options"].items() if key != "rerank"}
        shown |= {f"recipe {key}": value for key, value in (data["recipe"] or {}).items()}
        facts.append({key: str(value) for key, value in shown.items() if value not in (None, [], {})})
    keys = list(dict.fromkeys(key for of in facts for key in of))
    heads = "".join(f"<th scope=col>{_key(records, j)} {escape(record.name)}</th>" for j, record in enumerate(records))
    lines = "".join(
        f"<tr><th scope=row>{escape(key)}</th>" + "".join(f"<td>{escape(of.get(key) or '')}</td>" for of in facts) + "</tr>" for key in keys
    )
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Protocol and options"><table class="facts">'
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
    )
