"""docs/study.md's tables, sentences and figures, each number in them from the records; between markers, so that the rest stays as written.

A block whose runs are not all recorded says so, and how to run them, and its figure is taken away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from study_figures import Mark, curves, ranges
from study_plan import ADAPTER, CROSS_MODAL, FROZEN, FULL, MV_ADAPTER, ORDER, PARTS, ROWS, jobs
from study_results import (
    CHANCE,
    SIDES,
    Missing,
    Rows,
    both,
    difference,
    hits,
    need,
    number,
    peaks_of,
    percent_of_full,
    runs,
    seconds_of,
    size_of,
    table,
    twins,
)
from study_short import short
from study_stats import Interval, crossed, of_another_run, over_seeds

from xmafast.report.charts import Series

FLOOR = 3.0  # points that one run may differ by on another machine, where seeds agree more than that
BLOCK = re.compile(r"(<!-- study:(?P<name>[a-z-]+) -->\n).*?(<!-- /study -->)", re.S)


def write_page(records: Rows, docs: Path) -> None:
    """Fill the blocks of docs/study.md, and write docs/study/NAME.svg for those that have a figure."""
    page, figures = docs / "study.md", docs / "study"
    figures.mkdir(parents=True, exist_ok=True)

    def filled(found: re.Match[str]) -> str:
        name = found["name"]
        try:
            text, drawn = BLOCKS[name](records)
        except Missing as missing:
            text, drawn = str(missing), {}
        for title in FIGURES.get(name, ()):
            path = figures / f"{title}.svg"
            if title in drawn:
                path.write_text(drawn[title], encoding="utf-8")
            else:
                path.unlink(missing_ok=True)
        shown = "".join(f"\n![{_title(drawn[title])}](study/{title}.svg)\n" for title in FIGURES.get(name, ()) if title in drawn)
        return f"{found[1]}{text}\n{shown}{found[3]}"

    page.write_text(BLOCK.sub(filled, page.read_text(encoding="utf-8")), encoding="utf-8")


def verdict(name: str, other: str, value: Interval, unit: str = "points of R@1") -> str:
    if value.sign:
        return f"{name} is {'ahead of' if value.sign > 0 else 'behind'} {other} by {number(Interval(*sorted_by_size(value)))} {unit}"
    return f"between {name} and {other} no difference is shown ({number(value, True)} {unit}, an interval that holds zero)"


def sorted_by_size(value: Interval) -> tuple[float, float, float]:
    """A difference without its sign: a row that is behind by 2 [1, 3]."""
    return (value.mean, value.low, value.high) if value.mean > 0 else (-value.mean, -value.high, -value.low)


def size_cell(run: Rows) -> str:
    return f"{run['trainable']:,} ({run['percent']:.2f} %)" if run["trainable"] else "none"


def said_in_list(parts: Sequence[str]) -> str:
    return "\n".join(f"- {part[:1].upper()}{part[1:]}." for part in parts)


def adapters(records: Rows) -> tuple[str, dict[str, str]]:
    """Adapters against full fine-tuning, on the fixed split and by cross-validation."""
    need(records, "demo", "folds")
    body, marks = [], []
    for row in ROWS["demo"]:
        cells = [row.name, size_cell(runs(records, "demo", row.name)[0])]
        for part in ("demo", "folds"):
            cells += [number(crossed(hits(records, part, row.name, side))) for side in SIDES]
        body.append(cells)
        marks.append(Mark(row.name, crossed(*both(records, "folds", row.name)), 0 if row.name == FULL.name else 1))
    said = []
    for row in (CROSS_MODAL, ADAPTER, MV_ADAPTER):
        percent = runs(records, "demo", row.name)[0]["percent"]
        for part, where in (("demo", "on the fixed split"), ("folds", "by cross-validation")):
            found = difference(records, part, row.name, FULL.name)
            said.append(f"{where}, {verdict(f'{row.name} ({percent:.2f} % of the parameters)', 'full fine-tuning', found)}")
    whole = difference(records, "folds", FULL.name, FROZEN.name).mean
    for row in (CROSS_MODAL, ADAPTER, MV_ADAPTER):
        part_of_it = difference(records, "folds", row.name, FROZEN.name).mean
        said.append(f"by cross-validation, {row.name} gains {part_of_it:.1f} of the {whole:.1f} points that full fine-tuning gains")
    head = ("", "trained", "fixed split, t2v R@1", "v2t R@1", "five folds, t2v R@1", "v2t R@1")
    figure = ranges("R@1 of both directions over all 600 clips", marks, "R@1, both directions, five folds, 95 %")
    return f"{table(head, body)}\n\n{said_in_list(said)}", {"adapters": figure}


def sharing(records: Rows) -> tuple[str, dict[str, str]]:
    need(records, "demo", "folds")
    found = {
        "fixed split": difference(records, "demo", CROSS_MODAL.name, ADAPTER.name),
        "five folds": difference(records, "folds", CROSS_MODAL.name, ADAPTER.name),
    }
    sizes = [runs(records, "demo", row.name)[0]["trainable"] for row in (CROSS_MODAL, ADAPTER)]
    body = [[where, number(value, True), _said_of_sharing(value)] for where, value in found.items()]
    counted = f"Shared, {sizes[0]:,} parameters are trained; not shared, {sizes[1]:,}."
    return f"{table(('', 'shared less not shared, R@1 of both directions', 'seen'), body)}\n\n{counted}", {}


def _said_of_sharing(value: Interval) -> str:
    return {1: "sharing helps", -1: "sharing hurts", 0: "no effect is shown"}[value.sign]


def sizes(records: Rows) -> tuple[str, dict[str, str]]:
    """What full fine-tuning and an adapter make of few clips and of many."""
    need(records, "sizes")
    size = size_of(records)
    body, drawn, said = [], {}, []
    for place, clips in enumerate(size.sizes, 1):
        last: dict[str, dict[str, list[float]]] = {}
        series = []
        for color, row in enumerate(ROWS["sizes"], 1):
            curves_of = [records[f"sizes/{row.name} of {clips}/{seed}"]["points"] for seed in range(size.seeds)]
            last[row.name] = {name: [points[-1][name] for points in curves_of] for name in ("seen", "unseen")}
            gap = over_seeds(np.subtract(last[row.name]["seen"], last[row.name]["unseen"]))
            gain = over_seeds([points[-1]["unseen"] - points[0]["unseen"] for points in curves_of])
            peak = max(np.mean([points[i]["unseen"] for points in curves_of]) for i in range(len(curves_of[0])))
            end = over_seeds(last[row.name]["unseen"])
            body.append(
                [f"{clips}", row.name, number(over_seeds(last[row.name]["seen"])), number(end), number(gap, True), number(gain, True)]
            )
            said.append(
                f"on {clips} clips, {row.name} ends {gap.mean:.1f} points better on what it was trained on than on what it was not, "
                f"and {peak - end.mean:.1f} points below its best"
            )
            for name in ("seen", "unseen"):
                found = [over_seeds([one[i][name] for one in curves_of]) for i in range(len(curves_of[0]))]
                mean = [(points["step"], value.mean) for points, value in zip(curves_of[0], found, strict=True)]
                band = [(max(0.0, value.low), min(100.0, value.high)) for value in found]
                shade = color if name == "unseen" else color + 2
                short = "full" if row.name == FULL.name else "adapter"
                series.append(Series(f"{short}, {'new' if name == 'unseen' else 'own'}", f"{row.name}, {name}", shade, mean, band))
        against = over_seeds(np.subtract(last[CROSS_MODAL.name]["unseen"], last[FULL.name]["unseen"]))
        said.append(f"on {clips} clips, {verdict(CROSS_MODAL.name, FULL.name, against, 'points of R@1 on new clips')}")
        drawn[f"sizes-{place}"] = curves(f"Trained on {clips} clips: R@1 of its own clips and of new ones", series, "step", "R@1")
    head = ("clips", "", "R@1 of its own clips", "of new ones", "gap", "gained on new ones by training")
    return f"{table(head, body)}\n\n{said_in_list(said)}", drawn


def motion(records: Rows) -> tuple[str, dict[str, str]]:
    """What a row tells apart that differs in time alone."""
    need(records, "motion")
    body, marks, told = [], [], {}
    for row in ROWS["motion"]:
        found = runs(records, "motion", row.name)
        apart = crossed(*twins(found))
        told[row.name] = apart
        ranks = np.stack([np.asarray(run["t2v"], dtype=np.float64) for run in found])
        alone = ranks - np.stack([[0.0 if value is None else 1 - value for value in run["twins"]] for run in found])
        rate = "" if found[0]["lr"] is None else f"{found[0]['lr']:.2g}"
        body.append(
            [
                row.name,
                row.sees,
                size_cell(found[0]),
                rate,
                number(apart),
                number(crossed((ranks <= 1) * 100.0)),
                number(crossed((ranks <= 5) * 100.0)),
                number(crossed((alone <= 1) * 100.0)),
            ]
        )
        marks.append(Mark(row.name, apart, 1 if row.sees == ORDER else 0))
    head = ("", "frames are seen", "trained", "lr", "told from the twin, %", "t2v R@1", "R@5", "R@1, twins left out")
    figure = ranges("Captions whose clip is told from its twin", marks, "% told from the twin; 50 is chance", CHANCE)
    return f"{table(head, body)}\n\n{said_in_list(_said_of_motion(told))}", {"motion": figure}


def _said_of_motion(told: dict[str, Interval]) -> list[str]:
    said = []
    for row in ROWS["motion"]:
        value = told[row.name]
        above = Interval(value.mean - CHANCE, value.low - CHANCE, value.high - CHANCE).sign
        how = {1: "more often than chance would", 0: "no more often than chance would", -1: "less often than chance would"}[above]
        said.append(f"{row.name} tells a clip from its twin {how} ({number(value)} %)")
    return said


def swap(records: Rows) -> tuple[str, dict[str, str]]:
    """One backbone in memory, and whichever adapter is asked for."""
    need(records, "swap")
    found = [records[f"swap/{seed}"] for seed in range(size_of(records).seeds)]
    body = []
    for adapter in ("demo", "motion"):
        cells = [f"trained on {adapter}"]
        for task in ("demo", "motion"):
            cells.append(number(crossed(np.stack([(np.asarray(run[f"{adapter} on {task}"]["t2v"]) <= 1) * 100.0 for run in found]))))
        cells += [number(crossed(*twins([run[f"{adapter} on motion"] for run in found]))), f"{found[0][f'{adapter}_bytes'] / 1e6:.1f} MB"]
        body.append(cells)
    same = sum(run["same_again"] for run in found)
    megabytes = found[0]["backbone_bytes"] / 1e6
    said = (
        f"After the other task's adapter had been in, the first one's ranks were the same, query by query, in {same} of {len(found)}. "
        f"The backbone, {megabytes:.1f} MB in memory, is loaded once."
    )
    return f"{table((MV_ADAPTER.name, 'demo, t2v R@1', 'motion, t2v R@1', 'told from the twin, %', 'file'), body)}\n\n{said}", {}


def cost(records: Rows) -> tuple[str, dict[str, str]]:
    """Time of whole trainings and memory of a step, against full fine-tuning."""
    need(records, "demo", "memory")
    body, said = [], []
    for row in ROWS["memory"]:
        time, peak = (percent_of_full(found, records, row.name) for found in (seconds_of, peaks_of))
        mean = f"{np.mean(seconds_of(records, row.name)):.1f} s", f"{np.mean(peaks_of(records, row.name)):.0f} MB"
        body.append([row.name, mean[0], number(time), mean[1], number(peak)])
        if row.name != FULL.name:
            said.append(f"{row.name} takes {time.mean:.0f} % of full fine-tuning's time and {peak.mean:.0f} % of its memory")
    head = ("", "training, seconds of one core", "% of full", "memory of a step", "% of full")
    return f"{table(head, body)}\n\n{said_in_list(said)}", {}


def stills(records: Rows) -> tuple[str, dict[str, str]]:
    pairs = [(CROSS_MODAL.name, row.name) for row in ROWS["stills"] if row is not CROSS_MODAL]
    return _compared(records, "stills", ("t2i R@1", "i2t R@1"), pairs, "Stills of a design that nothing was trained on")


def unseen(records: Rows) -> tuple[str, dict[str, str]]:
    pairs = [(row.name, FROZEN.name) for row in ROWS["unseen"] if row is not FROZEN] + [(CROSS_MODAL.name, FULL.name)]
    return _compared(records, "unseen", ("t2v R@1", "v2t R@1"), pairs, "The test emoji seen by no pretraining in any design")


def _compared(records: Rows, part: str, heads: tuple[str, str], pairs: Sequence[tuple[str, str]], title: str) -> tuple[str, dict[str, str]]:
    """The rows of a part side by side, and of some pairs the difference."""
    need(records, part)
    body, marks = [], []
    for row in ROWS[part]:
        found = runs(records, part, row.name)
        body.append([row.name, size_cell(found[0]), *(number(crossed(hits(records, part, row.name, side))) for side in SIDES)])
        marks.append(Mark(row.name, crossed(*both(records, part, row.name)), 0 if row.name == FULL.name else 1))
    said = [verdict(name, other, difference(records, part, name, other)) for name, other in pairs]
    figure = ranges(title, marks, "R@1, both directions, 95 %")
    return f"{table(('', 'trained', *heads), body)}\n\n{said_in_list(said)}", {part: figure}


def run_on(records: Rows) -> tuple[str, dict[str, str]]:
    if "machine" not in records:
        raise Missing((), 0, len(jobs(PARTS, size_of(records))))
    m = records["machine"]
    done = sum("/" in key for key in records)
    where = f"{m['cpu']}, one thread each; torch {m['torch']}, open_clip {m['open_clip_torch']}"
    return f"{done} runs are [recorded](../benchmarks/results/study.json) ({where}).", {}


BLOCKS: dict[str, Callable[[Rows], tuple[str, dict[str, str]]]] = {
    "short": short,
    "adapters": adapters,
    "sharing": sharing,
    "sizes": sizes,
    "motion": motion,
    "swap": swap,
    "cost": cost,
    "stills": stills,
    "unseen": unseen,
    "run-on": run_on,
}
FIGURES = {
    "adapters": ("adapters",),
    "sizes": ("sizes-1", "sizes-2", "sizes-3"),
    "motion": ("motion",),
    "stills": ("stills",),
    "unseen": ("unseen",),
}


def _title(svg: str) -> str:
    return svg[svg.index("<title>") + 7 : svg.index("</title>")]


def figures_of(key: str, run: Rows) -> dict[str, float]:
    """What a run that is made again is held against."""
    if "points" in run:
        return {"R@1 of new clips": run["points"][-1]["unseen"]}
    found = {f"{side} R@1": 100 * float(np.mean(np.asarray(run[side]) <= 1)) for side in SIDES}
    if key.startswith("motion/"):
        found["told from the twin"] = 100 * float(np.mean([value for value in run["twins"] if value is not None]))
    return found


def check(records: Rows, fresh: Rows, keys: Sequence[str]) -> tuple[list[str], int]:
    """A line for each figure of the runs that were made again, and how many are outside of where the committed runs put one more run.

    Where every run of a row was made again, its mean is held against the interval in the committed table too.
    """
    lines, outside = [], 0
    for key in keys:
        if key not in fresh:
            continue
        row = key.rpartition("/")[0]
        committed = [figures_of(other, run) for other, run in records.items() if other.rpartition("/")[0] == row]
        for name, value in figures_of(key, fresh[key]).items():
            low, high = of_another_run([one[name] for one in committed], FLOOR)
            fits = low <= value <= high
            outside += not fits
            lines.append(f"{key}: {name} {value:.1f}, committed [{low:.1f}, {high:.1f}]{'' if fits else ' OUTSIDE'}")
    for row in dict.fromkeys(key.rpartition("/")[0] for key in keys):
        part, _, name = row.partition("/")
        own = [key for key in records if key.rpartition("/")[0] == row]
        if part == "sizes" or not all(key in fresh for key in own):
            continue
        for side in SIDES:
            interval = crossed(hits(records, part, name, side))
            mean = float(hits({"size": records["size"], **fresh}, part, name, side).mean())
            fits = interval.low <= mean <= interval.high
            outside += not fits
            lines.append(f"{row}: {side} R@1 {mean:.1f}, the table's [{interval.low:.1f}, {interval.high:.1f}]{'' if fits else ' OUTSIDE'}")
    return lines, outside
