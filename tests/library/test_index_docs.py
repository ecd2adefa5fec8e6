"""The example in docs/search.md, as it stands there."""

import re
import shutil
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_example_of_the_search_page_runs(clips, tmp_path, monkeypatch, capsys):
    [example] = re.findall(r"```python\n(.*?)```", (DOCS / "search.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    assert (tmp_path / "clips").is_dir()
    exec(compile(example, "docs/search.md", "exec"), {"__name__": "example"})
    out = capsys.readouterr().out
    assert "6 items, 0 failed" in out
    assert out.count("True") == 2
    assert "6 unchanged" in out
    assert "1f308.mp4  best at" in out
    shutil.rmtree(tmp_path / "lib.xma")
