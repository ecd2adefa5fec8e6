"""The whole thing as a newcomer meets it: the wheel, the README, the demo's promise over three seeds."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(*command, cwd, **environment):
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_wheel_works_from_elsewhere_and_leaves_no_other_module(tmp_path):
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT, cwd=tmp_path)
    (wheel,) = tmp_path.glob("xmafast-*.whl")
    assert wheel.stat().st_size < 25_000_000
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"xmafast"}
    assert sum(name.endswith(".mp4") for name in names) == 600
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", site, wheel, cwd=tmp_path)

    def xmafast(*arguments):
        return run(sys.executable, "-m", "xmafast.cli", *arguments, cwd=tmp_path, PYTHONPATH=str(site))

    where = run(sys.executable, "-c", "import xmafast.kernels; print(xmafast.kernels.__file__)", cwd=tmp_path, PYTHONPATH=str(site))
    assert Path(where.strip()).is_relative_to(site)
    assert json.loads(xmafast("cache", "demo", "--limit", "6", "--json"))["done"] == 12
    assert json.loads(xmafast("eval", "--zero-shot", "--json"))["queries"] == 6
    assert json.loads(xmafast("methods", "--json"))[0]["trainable"] == 519_168


def test_the_readmes_python_runs(tmp_path):
    run(sys.executable, "-m", "xmafast.cli", "cache", "demo", "--limit", "60", cwd=tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"\n## Python\n\n((?:    .*\n|\n)+)", readme)
    assert block
    code = re.sub(r"^    ", "", block.group(1), flags=re.M)
    (tmp_path / "snippet.py").write_text(code)
    assert "'t2v'" in run(sys.executable, "snippet.py", cwd=tmp_path)


@pytest.mark.alone  # its figures are those of both cores
def test_three_seeds_keep_the_promised_gain_over_zero_shot(tmp_path):
    out = tmp_path / "demo.json"
    run(sys.executable, ROOT / "benchmarks" / "demo.py", "--workspace", tmp_path, "--out", out, cwd=tmp_path)
    result = json.loads(out.read_text())
    assert result["trainable"] / result["backbone_parameters"] < 0.05
    gain = result["mean"]["t2v"]["gain"]
    assert gain["R@1"][0] >= 6
    assert gain["R-sum"][0] >= 15
