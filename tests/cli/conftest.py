"""The command line as a user and as a script call it."""

import pytest
from support import demo_split

from xmafast.cache import build_cache
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


@pytest.fixture(scope="session")
def eight(tmp_path_factory):
    """A cache of eight clips of two frames, read only: with --batch-size 2 three steps an epoch, with 3 two."""
    folder = tmp_path_factory.mktemp("cache") / "demo"
    build_cache(demo_split("train", 8), folder / "train.h5", frames=2, sampling="uniform", size=32, workers=1)
    return folder


@pytest.fixture
def workspace(tmp_path, eight):
    """The empty workspace of ``call``, with that cache."""
    (tmp_path / "caches").mkdir()
    (tmp_path / "caches" / "demo").symlink_to(eight)
    return tmp_path


@pytest.fixture
def weights(workspace):
    """The bytes of a run's last weights."""
    return lambda run: (workspace / run / "last" / "adapter_model.safetensors").read_bytes()
