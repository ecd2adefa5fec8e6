"""docs/python.md: its blocks run in order, as a notebook."""

import re
import shutil
from pathlib import Path

import pytest

import xmafast

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.mark.usefixtures("capsys")
def test_the_pages_blocks_run_in_order(small_caches, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_caches, tmp_path / "caches" / "demo")
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 8
    space: dict = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"docs/python.md, block {number}", "exec"), space)
    assert space["result"]["queries"] == 12
    assert space["record"].data["metrics"]["adapted"]["t2v"]["R@1"] == pytest.approx(space["result"]["t2v"]["R@1"])
    assert (tmp_path / "shared-adapter" / "README.md").is_file()


def test_the_page_names_calls_that_are_there():
    text = PAGE.read_text(encoding="utf-8")
    listed = re.findall(r"^    xmafast\.(\w+) ", text, re.MULTILINE)
    assert {"load_backbone", "Retriever", "FrameCache", "train", "evaluate", "load"} <= set(listed)
    assert set(listed) <= set(xmafast.__all__)
