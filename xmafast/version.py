"""Which commit an installation is of: recorded when it was built, asked of git where it is a checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

HOME = Path(__file__).parent
RECORD = "commit.txt"  # beside this file in a wheel and in an sdist; setup.py writes it


def commit() -> str:
    """The commit's first twelve digits, with a + where files were changed after it; empty where it is not known."""
    record = HOME / RECORD
    return record.read_text(encoding="utf-8").strip() if record.is_file() else commit_of(HOME.parent)


def described() -> str:
    """The version, and in brackets the commit where it is known: ``0.1.0 (1a2b3c4d5e6f)``."""
    from xmafast import __version__  # here, since setup.py runs this file where nothing is installed

    known = commit()
    return f"{__version__} ({known})" if known else __version__


def commit_of(root: Path) -> str:
    """What ``root`` has checked out where it is the top of a git checkout; empty elsewhere, as in a folder of another repository."""
    if not (root / ".git").exists() or not (root / "pyproject.toml").is_file():
        return ""
    # both folders are named, so that the variables under which git runs a hook do not stand for another repository
    git = ("git", f"--git-dir={root / '.git'}", f"--work-tree={root}")
    try:
        done = subprocess.run(
            (*git, "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"), capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
