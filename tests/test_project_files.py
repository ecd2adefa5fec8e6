"""The files around the code, which nothing runs here: that they can be read, name one version, and call commands that exist."""

import re
from pathlib import Path

import pytest

import xmafast

yaml = pytest.importorskip("yaml", reason="comes with huggingface_hub")
ROOT = Path(__file__).parents[1]
FILES = [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]


def read(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_one_version_is_named_everywhere():
    assert str(read("CITATION.cff")["version"]) == xmafast.__version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)
    assert newest
    assert newest[1] == xmafast.__version__


def test_make_targets_that_workflows_hooks_and_pages_name_are_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    assert phony
    assert targets == {*phony[1].split()}
    pages = [*FILES, ROOT / ".ci/run", ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / ".github/pull_request_template.md"]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"(?:^ *|run: |entry: |`)make (?:--[a-z-]+ )*([a-z-]+)", text, flags=re.M)
        assert {*named} <= targets, page


def test_workflows_need_no_secret_and_only_publishing_may_write():
    for name in ("ci", "release"):
        path = ROOT / f".github/workflows/{name}.yml"
        workflow = read(path)
        assert "secrets." not in path.read_text(encoding="utf-8")
        assert workflow["permissions"] == {"contents": "read"}
        for title, job in workflow["jobs"].items():
            assert job.get("permissions", {}) == ({"id-token": "write"} if title == "publish" else {})
            assert job["timeout-minutes"] <= 120
    assert read(".github/workflows/release.yml")["jobs"]["publish"]["needs"] == ["build", "try"]


def test_a_bug_report_asks_for_what_doctor_prints():
    fields = {field["id"]: field for field in read(".github/ISSUE_TEMPLATE/bug.yml")["body"]}
    assert "`xmafast doctor`" in fields["doctor"]["attributes"]["label"]
    assert fields["doctor"]["validations"]["required"]
