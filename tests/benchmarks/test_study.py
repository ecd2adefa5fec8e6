"""The study: intervals, records that outlive a stop, and a page in which every number is of the records."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import study
import torch
from PIL import Image
from study_page import BLOCKS, FIGURES, check, write_page
from study_plan import ORDER, PARTS, ROWS, TINY, Size, jobs, rates
from study_records import Records
from study_stats import Interval, crossed, of_another_run, over_seeds
from study_worker import new, told_apart

from xmafast.evaluation import Embedded

ROOT = Path(__file__).parents[2]
SIZE = Size(seeds=2, sizes=(8, 12), points=(0, 4))


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "study.md").write_text((ROOT / "docs" / "study.md").read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def made_up(size=SIZE):
    """Records as a whole study leaves them, of results that are drawn: adapters find more than full fine-tuning."""
    draw = np.random.default_rng(0)

    def ranks(better, queries=40):
        return {side: [int(r) for r in draw.geometric(0.3 + 0.4 * better, queries)] for side in ("t2v", "v2t")}

    def outcome(job):
        if job.task == "rate":
            return {"lr": 1e-3, "r_sum": 1.0}
        if job.task == "curve":
            points = [{"step": step, "seen": 50.0 + step, "unseen": 50.0 - step} for step in (0, 4)]
            return {"points": points, "candidates": 8, "lr": 1e-3}
        if job.task == "memory":
            return {"peak_mb": 200.0 if job.row == "full" else 100.0, "clips": 8, "frames": 4}
        twins = {"twins": [None if i % 10 > 7 else float(draw.random() < 0.9) for i in range(40)]}
        if job.task == "swap":
            found = {f"{adapter} on {task}": ranks(True) | twins for adapter in ("demo", "motion") for task in ("demo", "motion")}
            return found | {"backbone_bytes": 20_000_000, "demo_bytes": 1_000_000, "motion_bytes": 500_000, "same_again": True}
        about = {"trainable": 44_364, "percent": 0.9, "lr": 1e-3, "cpu_seconds": 50.0 if job.row == "full" else 30.0}
        return ranks(job.row not in ("full", "frozen")) | about | (twins if job.part == "motion" else {})

    machine = {"cpu": "a processor", "torch": "2.8", "open_clip_torch": "3.1"}
    return {"size": size.as_json(), "machine": machine} | {job.key: outcome(job) for job in jobs(PARTS, size)}


def test_an_interval_over_seeds_and_queries_holds_the_mean_and_narrows_with_queries():
    draw = np.random.default_rng(0)
    few, many = draw.random((5, 10)), draw.random((5, 1000))
    assert crossed(few).mean == pytest.approx(few.mean())
    assert crossed(few).low < few.mean() < crossed(few).high
    width = [crossed(values).high - crossed(values).low for values in (few, many)]
    assert width[1] < width[0] / 3
    assert width[1] == pytest.approx(2 * 1.96 * 12**-0.5 / (5 * 1000) ** 0.5, rel=1)


def test_seeds_that_differ_widen_an_interval_and_equal_values_have_none():
    flat = np.full((5, 30), 7.0)
    assert crossed(flat) == Interval(7.0, 7.0, 7.0)
    shifted = flat + np.arange(5)[:, None]
    assert crossed(shifted).high - crossed(shifted).low > 1.5
    assert crossed(shifted).sign == 1
    assert crossed(shifted - 9.0).sign == 0
    assert crossed(shifted - 20.0).sign == -1


def test_queries_that_are_drawn_together_count_as_one():
    values = np.repeat(np.random.default_rng(0).random((1, 50)), 2, 1)
    apart, together = crossed(values), crossed(values, np.repeat(np.arange(50), 2))
    assert together.mean == apart.mean
    assert together.high - together.low > 1.25 * (apart.high - apart.low)


def test_students_interval_over_seeds():
    found = over_seeds([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776 * np.std([1, 2, 3, 4, 5], ddof=1) / 5**0.5
    assert found == pytest.approx((3.0, 3.0 - half, 3.0 + half))
    assert over_seeds([4.0]) == (4.0, 4.0, 4.0)
    assert of_another_run([3.0, 3.0], floor=2.0) == (1.0, 5.0)
    low, high = of_another_run([1.0, 5.0], floor=0.0)
    assert low < 1.0 < 5.0 < high


def test_what_is_recorded_is_read_again_and_a_write_that_was_cut_off_is_not(tmp_path):
    records = Records(tmp_path / "results" / "study.json")
    records["demo/full/0"] = {"t2v": [1, 2.5]}
    records["demo/full/1"] = {"t2v": [3]}
    (tmp_path / "results" / "study.json.partial").write_text('{"demo/fu')
    again = Records(tmp_path / "results" / "study.json")
    assert again.rows == {"demo/full/0": {"t2v": [1, 2.5]}, "demo/full/1": {"t2v": [3]}}
    assert len(again.path.read_text().splitlines()) == 4, "a line a run, for a diff to be read"


def test_every_job_has_a_key_of_its_own_and_a_rate_that_was_tuned():
    planned = jobs(PARTS, Size())
    assert len({job.key for job in planned}) == len(planned)
    known = rates()
    for part, rows in ROWS.items():
        assert len({row.name for row in rows}) == len(rows)
        assert all(row.rate in known for row in rows if row.trained)
        for row in rows:
            count = sum(job.row == row.name and job.task == "trained" for job in jobs((part,), Size()))
            assert count == (0 if part in ("sizes", "memory") else 5 if row.trained or part == "folds" else 1)
    assert sum(job.seconds for job in planned) / 60 / 2 < 75, "the whole study has its time"


class Served:
    """Stands for a bench: nothing is made."""

    size = TINY

    def __init__(self, *arguments):
        self.workspace, self.stills, self.unseen = Path(), None, None

    def prepare(self):
        pass

    def prepare_tokens(self):
        pass


def test_a_study_that_was_stopped_runs_what_is_missing_and_no_more(tmp_path, docs, monkeypatch, capsys):
    ran, broken = [], {"demo/full/1"}
    outcomes = made_up(TINY)

    def run(job, bench, known):
        ran.append(job.key)
        if job.key in broken:
            raise RuntimeError("the disk is full")
        return outcomes[job.key]

    monkeypatch.setattr(study, "run", run)
    monkeypatch.setattr(study, "pool", ThreadPoolExecutor)
    monkeypatch.setattr(study, "Bench", Served)
    out = tmp_path / "study.json"
    command = ["study.py", "demo", "--tiny", "--jobs", "2", "--out", str(out), "--docs", str(docs)]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit, match=r"1 runs failed \(demo/full/1\)"):
        study.main()
    assert "disk is full" in capsys.readouterr().err
    assert set(ran) == {job.key for job in jobs(("demo",), TINY)}
    assert "demo/full/1" not in Records(out)
    ran.clear()
    broken.clear()
    study.main()
    assert ran == ["demo/full/1"]
    assert "1 runs, about" in capsys.readouterr().err
    ran.clear()
    study.main()
    assert ran == []
    assert "Not yet run (9 of 19 runs are recorded): `python benchmarks/study.py demo folds`" in (docs / "study.md").read_text()


def test_runs_of_another_size_are_not_mixed(tmp_path, docs, monkeypatch, capsys):
    out = tmp_path / "study.json"
    Records(out)["size"] = Size().as_json()
    monkeypatch.setattr("sys.argv", ["study.py", "--tiny", "--out", str(out), "--docs", str(docs)])
    with pytest.raises(SystemExit):
        study.main()
    assert "holds runs of other sizes" in capsys.readouterr().err


def test_the_page_of_a_whole_study(docs):
    records = made_up()
    before = (docs / "study.md").read_text(encoding="utf-8")
    write_page(records, docs)
    page = (docs / "study.md").read_text(encoding="utf-8")
    assert "ot yet run" not in page
    plain = re.compile(r"<!-- study:.*?<!-- /study -->", re.S)
    assert plain.sub("", page) == plain.sub("", before), "what is written by hand stays"
    ranks = [records[f"demo/cross-modal/{seed}"]["t2v"] for seed in range(2)]
    assert f"| cross-modal | 44,364 (0.90 %) | {100 * np.mean(np.array(ranks) <= 1):.1f} [" in page
    assert "cross-modal (0.90 % of the parameters) is ahead of full fine-tuning by" in page
    assert "| Fewer than 1 % of the parameters match or beat full fine-tuning | yes: ahead | +" in page
    assert "| Full fine-tuning overfits small sets (8 clips): new ones are found no better than before | yes: it loses | -4.0" in page
    assert "cross-modal takes 60 % of full fine-tuning's time and 50 % of its memory" in page.replace("Cross-modal", "cross-modal")
    for name in (figure for names in FIGURES.values() for figure in names if figure != "sizes-3"):
        file = docs / "study" / f"{name}.svg"
        assert f"](study/{name}.svg)" in page
        assert ElementTree.fromstring(file.read_text(encoding="utf-8")).tag.endswith("svg")
        assert ("<polygon" in file.read_text(encoding="utf-8")) == name.startswith("sizes"), "intervals, of curves as bands"
        assert "prefers-color-scheme: dark" in file.read_text(encoding="utf-8")
    assert page == (write_page(records, docs), (docs / "study.md").read_text(encoding="utf-8"))[1], "made twice, it is the same"


def test_a_block_whose_runs_are_not_all_there_says_so_and_has_no_figure(docs):
    records = made_up()
    write_page(records, docs)
    assert (docs / "study" / "motion.svg").is_file()
    del records["motion/st-adapter/1"]
    write_page(records, docs)
    page = (docs / "study.md").read_text(encoding="utf-8")
    planned = len(jobs(("motion",), SIZE))
    assert page.count("Not yet run") == page.count("when the study is whole") == 1
    assert f"Not yet run ({planned - 1} of {planned} runs are recorded): `python benchmarks/study.py motion`" in page
    assert "study/motion.svg" not in page
    assert not (docs / "study" / "motion.svg").exists()


def test_the_page_that_is_committed_is_of_the_records_that_are_committed(docs):
    recorded = ROOT / "benchmarks" / "results" / "study.json"
    write_page(json.loads(recorded.read_text(encoding="utf-8")) if recorded.is_file() else {}, docs)
    assert (docs / "study.md").read_text(encoding="utf-8") == (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    made = {file.name: file.read_text(encoding="utf-8") for file in (docs / "study").iterdir()}
    kept = ROOT / "docs" / "study"
    assert made == ({file.name: file.read_text(encoding="utf-8") for file in kept.iterdir()} if kept.is_dir() else {})
    assert set(re.findall(r"<!-- study:([a-z-]+) -->", (docs / "study.md").read_text(encoding="utf-8"))) == set(BLOCKS)


def test_a_run_that_is_made_again_is_held_against_the_committed_ones():
    records = made_up(replace(SIZE, seeds=5))
    key = "motion/st-adapter/0"
    same, outside = check(records, {key: records[key]}, [key, "demo/full/0"])
    assert outside == 0
    assert len(same) == 3
    worse = records[key] | {"t2v": [40] * 40, "twins": [0.0] * 40}
    lines, outside = check(records, {key: worse}, [key])
    assert outside == 2
    assert sum(line.endswith("OUTSIDE") for line in lines) == 2
    keys = [f"motion/st-adapter/{seed}" for seed in range(5)]
    lines, outside = check(records, {key: records[key] for key in keys}, keys)
    assert outside == 0
    assert lines[-1].startswith("motion/st-adapter: v2t R@1")
    slightly = {key: records[key] | {"t2v": [r + (r == 1 and i % 3 == 0) for i, r in enumerate(records[key]["t2v"])]} for key in keys}
    lines, outside = check(records, slightly, keys)
    assert [line.split(":")[0] for line in lines if line.endswith("OUTSIDE")][-1] == "motion/st-adapter", (
        "of the mean, which is known better"
    )


def test_a_caption_prefers_its_clip_its_twin_or_neither():
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    frames = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]], [[0.0, 1.0]]])
    e = Embedded(text, frames, torch.ones(4, 1, dtype=torch.bool), torch.arange(4), np.arange(4), [])
    assert told_apart(SimpleNamespace(pooling="mean"), e, ["m1a", "m1b", "m2x", "m3a"]) == [1.0, 0.0, None, None]
    even = Embedded(text, frames[[1, 1, 2, 3]], e.mask, e.video_of, e.rows, [])
    assert told_apart(SimpleNamespace(pooling="mean"), even, ["m1a", "m1b", "m2x", "m3x"]) == [0.5, 0.5, None, None]


@pytest.mark.slow
def test_the_whole_study_runs_at_a_tiny_size(tmp_path, docs):
    stills = tmp_path / "stills" / "facebook" / "package" / "img" / "facebook" / "64"
    stills.mkdir(parents=True)
    for i, code in enumerate(("1f408", "2764-fe0f", "2b50")):
        Image.new("RGBA", (64, 64), (40 * i, 200, 90, 255)).save(stills / f"{code}.png")
    out = tmp_path / "study.json"
    where = ["--workspace", tmp_path / "work", "--out", out, "--docs", docs, "--stills", tmp_path / "stills"]
    command = [sys.executable, ROOT / "benchmarks" / "study.py", "--tiny", "--jobs", "2", *where]
    unseen = ["--unseen", ROOT / "xmafast" / "demo" / "backbone"]
    done = subprocess.run([*command, *unseen], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    recorded = json.loads(out.read_text())
    assert {job.key for job in jobs(PARTS, TINY)} <= set(recorded)
    assert "ot yet run" not in (docs / "study.md").read_text(encoding="utf-8")
    assert all(recorded[f"swap/{seed}"]["same_again"] for seed in range(TINY.seeds))
    again = subprocess.run([*command, "--check", "all"], capture_output=True, text=True, timeout=900)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert "OUTSIDE" not in again.stdout
    assert "demo/full/0: t2v R@1" in again.stdout


@pytest.mark.parametrize("row", ROWS["motion"], ids=lambda row: row.name)
def test_a_row_of_the_motion_task_sees_the_order_of_frames_as_the_table_says(row, demo_backbone):
    retriever = new(row, demo_backbone, 4, seed=0).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in retriever.trained.values():  # away from a start at which nothing acts
            parameter += 0.05 * torch.randn_like(parameter)
        frames = torch.randint(0, 256, (2, 4, 96, 96, 3), dtype=torch.uint8)
        mask = torch.ones(2, 4, dtype=torch.bool)
        text = retriever.encode_text(["a dog moving left", "a fish growing"]).float()
        as_drawn, backwards = (
            retriever.similarity(text, retriever.encode_frames(shown, mask).float(), mask) for shown in (frames, frames.flip(1))
        )
    differs = float((as_drawn - backwards).abs().max())
    assert differs > 1e-4 if row.sees == ORDER else differs < 1e-5
