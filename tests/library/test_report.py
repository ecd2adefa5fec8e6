"""The report: one file, nothing from elsewhere, text as it is, charts that can be read without colours."""

import copy
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from xmafast.cache import FrameCache
from xmafast.metrics import precision_and_gain
from xmafast.records import Record
from xmafast.report import report_page
from xmafast.report.charts import LABEL_GAP, Series, apart, bars, lines, log_ticks
from xmafast.report.training import training_of

VOID = {"meta", "img", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and gathers attributes and text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.seen, self.text = [], [], []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def of(self, tag):
        return [attrs for name, attrs in self.seen if name == tag]


def one_model(seed, video_of, videos):
    g = np.random.default_rng(seed)
    texts = len(video_of)
    greater = g.integers(0, texts, texts)
    precision, gain = precision_and_gain(greater, np.zeros(texts, int), video_of, texts)
    return {
        "t2v": g.integers(1, videos + 1, texts).astype(float).tolist(),
        "v2t": g.integers(1, videos + 1, videos).astype(float).tolist(),
        "precision": precision.tolist(),
        "gain": gain.tolist(),
        "found": {"t2v": g.integers(0, videos, (texts, 3)).tolist(), "v2t": g.integers(0, texts, (videos, 3)).tolist()},
    }


@pytest.fixture
def cache(small_caches):
    return FrameCache(small_caches / "test.h5")


@pytest.fixture
def record(tmp_path, cache):
    """A run with several captions a video, without a model."""
    videos = len(cache)
    video_of = np.concatenate([np.arange(videos), np.arange(5)])
    run = tmp_path / "first"
    run.mkdir()
    rows = [{"step": i, "loss": 3 / i} for i in range(1, 300)]
    rows += [{"epoch": e, "validation": {"t2v": {"R@1": 10.0 * e}, "v2t": {"R@1": 5.0 * e}}} for e in (1, 2, 3)]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 300, "lo')
    data = {
        "ids": cache.ids,
        "rows": list(range(videos)),
        "captions": [f"caption {i}" for i in range(len(video_of))],
        "video_of": video_of.tolist(),
        "queries": len(video_of),
        "candidates": videos,
        "missing": 1,
        "failed": 0,
        "split": "test",
        "cache": str(cache.path),
        "protocol": {"dataset": "demo", "queries": "multi-caption", "backbone": "demo", "header": "mean"},
        "checkpoint_rule": "the last epoch",
        "trainable": 10,
        "trainable_percent": 1.0,
        "options": {"method": "cross-modal"},
        "recipe": {"epochs": 3},
        "zero_shot": one_model(0, video_of, videos),
        "adapted": one_model(1, video_of, videos),
    }
    return Record(run, data)


def other(record, name="second", seed=2):
    data = copy.deepcopy(record.data)
    data["adapted"] = one_model(seed, np.array(data["video_of"]), data["candidates"])
    return Record(record.run.with_name(name), data)


def test_the_page_is_one_file_with_every_section(record, cache):
    html = report_page([record, other(record)], cache, samples=50, worst=3)
    page = Page(html)
    text = " ".join(page.text)
    for heading in ("Numbers", "R@K and ranks", "Training", "Worst texts", "Worst videos", "How it was measured"):
        assert heading in text
    for column in ("R@1", "MdR", "mAP", "nDCG", "R-sum", "p of R@1"):
        assert column in text
    assert not page.of("script")
    assert not page.of("link")
    assert not re.search(r"(?:src|href|url\()\s*=?\s*[\"']?(?:https?:)?//", html)
    assert all(img["src"].startswith("data:image/jpeg;base64,") and img["alt"] for img in page.of("img"))
    assert page.of("img")
    ids = [attrs["id"] for _, attrs in page.seen if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.of("a")} == set(ids)
    assert "prefers-color-scheme: dark" in html
    assert "1 more missing or failed" in text


def test_one_run_has_no_differences(record, cache):
    text = " ".join(Page(report_page([record], cache, samples=0, worst=0)).text)
    assert "differences" not in text
    assert "Worst texts" not in text
    assert "zero-shot" in text


def test_text_is_shown_and_never_run(record, cache):
    hostile = '<script>alert("1")</script>\'"><img src=x onerror=alert(1)>&amp;'
    data = record.data
    data["captions"] = [hostile] * len(data["captions"])
    data["ids"] = [hostile] * len(data["ids"])
    data["protocol"]["dataset"] = data["options"]["method"] = data["checkpoint_rule"] = hostile
    page = Page(report_page([Record(record.run.with_name('a"<b>&'), data), other(record)], cache, samples=10, worst=2))
    assert not page.of("script")
    assert all("onerror" not in img for img in page.of("img"))
    assert hostile in "".join(page.text)


def test_the_worst_queries_come_first_and_say_what_was_found(record, cache):
    data = record.data
    data["adapted"]["t2v"] = [1.0] * data["queries"]
    data["adapted"]["t2v"][4], data["adapted"]["t2v"][2] = 9.0, 7.0
    html = report_page([record], cache, samples=0, worst=5)
    part = html[html.index('id="worst-texts"') : html.index('id="worst-videos"')]
    assert re.findall(r"<h3>([^<]*)</h3>", part) == ["caption 4", "caption 2"]
    assert f"found caption {data['adapted']['found']['t2v'][4][0]} " in part


def test_a_run_without_a_log_has_no_training(record, cache):
    (record.run / "log.jsonl").unlink()
    assert 'id="training"' not in report_page([record], cache, samples=0, worst=0)


def test_a_log_is_read_to_where_it_was_cut_off(record):
    found = training_of(record.run)
    assert found.validation == [(1, 15.0), (2, 30.0), (3, 45.0)]
    assert len(found.loss) == 100
    assert found.loss[0] == (3, pytest.approx((3 + 1.5 + 1) / 3))
    assert found.loss[-1][0] == 299


@pytest.mark.parametrize("places", [[10, 10, 10], [220, 225, 226, 5], [50.0], [], [3, 100, 101, 99]])
def test_labels_do_not_cover_each_other(places):
    moved = apart(places)
    order = sorted(range(len(places)), key=lambda i: places[i])
    for before, after in pairwise(order):
        assert moved[after] - moved[before] >= LABEL_GAP - 1e-9
    if len(places) == 1:
        assert moved == places


def test_a_chart_names_its_lines_and_has_its_numbers_as_a_table():
    svg = lines(
        "Title <1>", [Series("A", "run a", 1, [(1, 20.0), (2, 30.0), (10, 90.0)]), Series("Z", "none", 0, [])], "K", "found, %", log=True
    )
    page = Page(svg)
    (attrs,) = page.of("svg")
    assert attrs["role"] == "img"
    assert attrs["aria-label"] == "Title <1>: found, % by K"
    assert "90.0" in page.text
    assert "A" in page.text
    assert page.of("table")
    assert lines("empty", [Series("A", "a", 1, [])], "x", "y") == ""
    assert len(Page(bars("b", ["1", "2"], [("a", 1, [1.0, 3.0]), ("b", 2, [0.0, 2.0])], "rank", "%")).of("rect")) == 4


@pytest.mark.parametrize("points", [[(1, 5.0)], [(1, 5.0), (2, 5.0)], [(1, 0.0), (2, 0.0)], [(1, -3.0), (4, 1e9)]])
def test_a_chart_of_few_or_equal_points_stays_inside_its_frame(points):
    for log in (False, True):
        svg = lines("t", [Series("A", "a", 1, points)], "x", "y", log=log)
        numbers = [float(x) for pair in re.findall(r'points="([^"]*)"', svg) for x in re.split("[ ,]", pair)]
        assert all(0 <= x <= 420 for x in numbers)
        assert "nan" not in svg


def test_ticks_are_round_numbers():
    assert log_ticks(1, 50) == [1, 2, 5, 10, 20, 50]
