"""Which commit `xmafast --version` names: of a checkout, of what was built from one, and of neither."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import xmafast
from xmafast import version

ROOT = Path(__file__).parents[1]
KNOWN = re.compile(rf"xmafast {re.escape(xmafast.__version__)} \(([0-9a-f]{{12}})\)\n")


def run(*command, cwd, **environment):
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def git(folder, *arguments):
    who = ("-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
    return run("git", "-C", folder, *who, *arguments, cwd=folder).strip()


@pytest.fixture
def checkout(tmp_path):
    """A git checkout with one commit."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "pyproject.toml").write_text("")
    git(folder, "init", "--quiet")
    git(folder, "add", "pyproject.toml")
    git(folder, "commit", "--quiet", "--message", "one")
    return folder


def test_a_checkout_is_at_its_commit_with_a_mark_where_files_changed(checkout, monkeypatch):
    commit = git(checkout, "rev-parse", "HEAD")[:12]
    assert version.commit_of(checkout) == commit
    git(checkout, "tag", "v1", "--message", "a tag is no commit")
    assert version.commit_of(checkout) == commit
    (checkout / "pyproject.toml").write_text("changed")
    assert version.commit_of(checkout) == f"{commit}+"
    monkeypatch.setenv("GIT_DIR", str(checkout / "elsewhere"))  # as git sets it for a hook of another repository
    assert version.commit_of(checkout) == f"{commit}+"


def test_a_worktree_is_at_its_own_commit(checkout, tmp_path):
    git(checkout, "worktree", "add", "--quiet", tmp_path / "beside")
    git(tmp_path / "beside", "commit", "--quiet", "--allow-empty", "--message", "two")
    assert version.commit_of(tmp_path / "beside") == git(tmp_path / "beside", "rev-parse", "HEAD")[:12]


def test_no_commit_is_told_where_none_is_known(checkout, tmp_path, monkeypatch):
    (checkout / "vendored").mkdir()
    (checkout / "vendored/pyproject.toml").write_text("")
    assert version.commit_of(checkout / "vendored") == ""  # the commit of another project
    (tmp_path / ".git").mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    assert version.commit_of(tmp_path) == ""  # a broken one
    monkeypatch.setenv("PATH", "")
    assert version.commit_of(checkout) == ""
    monkeypatch.setattr(version, "HOME", tmp_path / "site-packages/xmafast")
    assert version.described() == xmafast.__version__


def test_what_was_recorded_when_it_was_built_counts(checkout, monkeypatch):
    (checkout / "xmafast").mkdir()
    monkeypatch.setattr(version, "HOME", checkout / "xmafast")
    assert version.described() == f"{xmafast.__version__} ({git(checkout, 'rev-parse', 'HEAD')[:12]})"
    (checkout / "xmafast" / version.RECORD).write_text("1a2b3c4d5e6f\n")
    assert version.described() == f"{xmafast.__version__} (1a2b3c4d5e6f)"


@pytest.mark.slow
def test_wheel_and_sdist_record_the_commit_and_a_tarball_of_the_files_has_none(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    clone, tools = tmp_path / "clone", tmp_path / "tools"
    run("git", "clone", "--quiet", ROOT, clone, cwd=tmp_path)
    commit = git(clone, "rev-parse", "HEAD")[:12]
    pip = (sys.executable, "-m", "pip", "--quiet")
    run(*pip, "install", "--target", tools, "setuptools>=77", cwd=tmp_path)

    def installed(source, name):
        site = tmp_path / name
        run(*pip, "install", "--no-deps", "--no-build-isolation", "--target", site, source, cwd=tmp_path, PYTHONPATH=str(tools))
        return run(sys.executable, "-m", "xmafast.cli", "--version", cwd=tmp_path, PYTHONPATH=str(site))

    build = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    run(sys.executable, "-c", build, cwd=clone, PYTHONPATH=str(tools))
    (sdist,) = tmp_path.glob("xmafast-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "kernels/dispatch.py", "cli/app.py", "tests/conftest.py", "xmafast/py.typed", "xmafast/commit.txt"} <= names
    for source, name in ((sdist, "from-sdist"), (clone, "from-clone")):
        found = KNOWN.fullmatch(installed(source, name))
        assert found, name
        assert found[1] == commit
    assert git(clone, "status", "--porcelain") == ""
    run("git", "-C", clone, "archive", "--prefix=plain/", f"--output={tmp_path / 'plain.tar.gz'}", "HEAD", cwd=tmp_path)
    assert installed(tmp_path / "plain.tar.gz", "from-tarball") == f"xmafast {xmafast.__version__}\n"
