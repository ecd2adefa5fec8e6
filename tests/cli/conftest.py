"""The command line as a user and as a script call it."""

import pytest

from xmafast.cli import main


@pytest.fixture
def call(capfd, tmp_path, monkeypatch):
    """Run xmafast in an empty workspace: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        capfd.readouterr()
        try:
            main([str(a) for a in arguments])
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capfd.readouterr()
        return code, out, err

    return run
