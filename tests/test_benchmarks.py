"""The benchmark of the kernels runs, every row of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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
        assert row["checked"]
        assert row["median_ms"] > 0
        assert row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
    for op, size in {(row["op"], row["size"]) for row in result["rows"]}:
        assert any(row["form"] == "xmafast" for row in result["rows"] if (row["op"], row["size"]) == (op, size))
