"""The benchmarks of the kernels and of the cache run, every row of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_rooflines_of_the_page_are_those_of_the_results():
    command = [sys.executable, ROOT / "benchmarks" / "roofline.py"]
    made = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert made.count("\n") > 15
    assert f"<!-- roofline -->\n{made}\n<!-- /roofline -->" in page, "python benchmarks/roofline.py --write"


@pytest.mark.slow
def test_the_benchmark_of_frozen_mlps_runs_and_agrees(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "frozen_mlp.py", "--rows", "8", "--width", "16", "--out", tmp_path / "out.json"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["activation"] for row in rows] == ["GELU", "QuickGELU"]
    assert all(row["xmafast"] > 0 and row["autograd"] > 0 for row in rows)


@pytest.mark.slow
def test_every_row_of_the_kernels_benchmark_runs_and_agrees(tmp_path):
    out = tmp_path / "quick.json"
    command = [sys.executable, ROOT / "benchmarks" / "kernels.py", "--device", "cpu", "--quick", "--out", out]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(out.read_text())
    assert {row["op"] for row in result["rows"]} >= {"adapter", "adapter-backward", "patches", "ranks-both", "topk", "info-nce"}
    for row in result["rows"]:
        assert row["state"] == "measured", row
        assert row["checked"] or row["form"].startswith("the product alone"), row
        assert row["median_ms"] > 0
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
    for op, size in {(row["op"], row["size"]) for row in result["rows"]}:
        assert any(row["form"] == "xmafast" for row in result["rows"] if (row["op"], row["size"]) == (op, size))


@pytest.mark.slow
def test_every_row_of_the_cache_benchmark_runs_and_gives_the_caches_frames(tmp_path):
    out = tmp_path / "quick.json"
    command = [sys.executable, ROOT / "benchmarks" / "cache.py", "--quick", "--work", tmp_path, "--out", out]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(tmp_path.iterdir()) == [out], "what it wrote beside its results is gone"
    rows = json.loads(out.read_text())["rows"]
    forms = {(row["section"], row["form"]) for row in rows}
    assert forms >= {
        ("build", "build_cache"),
        ("build", "bare decoder"),
        ("build", "PyAV"),
        ("read", "FrameCache.read(rows, out)"),
        ("read", "FrameCache.read(rows)"),
        ("read", "FrameDataset, a loop"),
        ("read", "folder, JPEG q95"),
        ("bytes", "cache, raw"),
    }
    optional = {"OpenCV", "LMDB, raw", "LMDB, JPEG q95", "WebDataset, raw"}
    assert optional <= {form for _, form in forms}, "a rival that is missing is said to be"
    for row in rows:
        if row["form"] in optional and row["state"] == "not installed":
            continue
        assert row["state"] == "measured", row
        if row["section"] == "bytes":
            assert row["bytes_per_video"] > 0
            continue
        assert row["checked"] or row["form"] == "np.copyto, the machine"
        assert row["videos_per_s"] > 0
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
    assert len({row["case"] for row in rows if row["section"] == "build"}) == 2


@pytest.mark.slow
def test_every_row_of_the_metrics_benchmark_runs_and_agrees(tmp_path):
    out = tmp_path / "quick.json"
    command = [sys.executable, ROOT / "benchmarks" / "metrics.py", "--quick", "--out", out]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(out.read_text())
    assert {row["form"] for row in result["rows"]} >= {"xmafast, from embeddings", "xmafast, from a matrix", "xmafast, mAP and nDCG"}
    for row in result["rows"]:
        assert row["checked"]
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]


@pytest.mark.slow
def test_every_row_of_the_training_benchmark_runs(tmp_path):
    out = tmp_path / "quick.json"
    command = [sys.executable, ROOT / "benchmarks" / "train.py", "--quick", "--out", out]
    done = subprocess.run(
        [*command, "--sections", "methods", "prefix", "adapter", "loop"], cwd=tmp_path, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(out.read_text())
    forms = {(row["method"], row["form"]) for row in result["methods"]}
    assert forms == {(method, form) for method in ("full", "cross-modal", "mv-adapter", "lora") for form in ("xmafast", "eager fp32")}
    for row in [*result["methods"], *result["prefix"]]:
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
    flops = {row["method"]: row["step_flops"] for row in result["methods"]}
    assert flops["cross-modal"] < 0.8 * flops["full"], "no weight gradient of a frozen weight"
    (adapter,), (loop,) = result["adapter"], result["loop"]
    assert adapter["backbone_untouched"]
    assert loop["videos_per_s"] > 0
