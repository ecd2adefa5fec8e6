"""Triton's own interpreter runs the kernels on the CPU: float32 and float16, ragged shapes.

In a process of its own, since the switch must be set before a kernel is defined, and breaks compiling.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
CHECKS = sorted((Path(__file__).parent / "interpreted").glob("check_*.py"))


QUICK = ("check_bottleneck", "check_ranking", "check_frames")  # the others share their walks with these


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=() if p.stem in QUICK else pytest.mark.slow, id=p.stem.removeprefix("check_")) for p in CHECKS],
)
def test_kernels_under_the_interpreter(path):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "TRITON_DEFAULT_FP_FUSION": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
