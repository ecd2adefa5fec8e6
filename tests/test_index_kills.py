"""A library whose update is killed at any moment opens with its previous content, and the update repeated is the whole update."""

import fnmatch
import os
import shutil
import signal
import subprocess
import sys
import time

import indexing
import pytest
from support import demo_split
from test_kills import in_child, server  # noqa: F401 - a fixture

from xmafast.errors import CacheError
from xmafast.index import Index


def kill_at(server, tmp_path, choose):  # noqa: F811
    assert in_child(server, indexing.before, tmp_path / "before") == 0
    shutil.copytree(tmp_path / "before", tmp_path / "whole")
    here, there = server.Pipe()
    assert in_child(server, indexing.change_until, tmp_path / "whole", None, there) == 0
    steps = here.recv()
    old, new = indexing.content(tmp_path / "before" / "lib.xma"), indexing.content(tmp_path / "whole" / "lib.xma")
    assert old != new
    seen = []
    for step in choose(steps):
        folder = tmp_path / "killed"
        shutil.copytree(tmp_path / "before", folder)
        assert in_child(server, indexing.change_until, folder, step) == -signal.SIGKILL, step
        found = indexing.content(folder / "lib.xma")
        assert found in (old, new), f"killed at step {step} of {steps}"
        seen.append(found == new)
        assert not Index(folder / "lib.xma").damaged()
        assert in_child(server, indexing.change_until, folder, None) == 0, f"killed at step {step} of {steps}"
        assert indexing.content(folder / "lib.xma") == new
        assert len(list((folder / "lib.xma").glob("*.rows"))) == 5  # thumbnails, and two of each adapter: nothing is left over
        shutil.rmtree(folder)
    assert seen == sorted(seen)  # the old content, up to one step, and the new one after it
    assert not seen[0]
    return steps


def test_an_update_killed_at_some_steps_leaves_the_library_as_it_was(server, tmp_path):  # noqa: F811
    kill_at(server, tmp_path, lambda steps: [steps // 4, steps - 1])


@pytest.mark.slow
def test_an_update_killed_at_any_step_leaves_the_library_as_it_was(server, tmp_path):  # noqa: F811
    assert kill_at(server, tmp_path, lambda steps: range(1, steps + 1)) > 50


def command(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "xmafast.cli", "index", "clips", "--backbone", "demo", "--frames", "2", "--workers", "1"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def there(folder, sign):
    """Whether a file of this name is below a folder that may come and go meanwhile."""
    return any(fnmatch.filter(files, sign) for _, _, files in os.walk(folder))


def finish(folder):
    process = command(folder)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()


@pytest.mark.slow
def test_a_command_killed_at_work_leaves_the_library_as_it_was(tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    videos = [video.path for video in demo_split("train", 80).videos]
    for video in videos[:10]:
        shutil.copy(video, clips)
    finish(tmp_path)
    old = indexing.content(tmp_path / "lib.xma")
    for video in videos[10:]:
        shutil.copy(video, clips)
    whole = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-whole"))
    shutil.rmtree(whole / "lib.xma")  # all at once
    finish(whole)
    kills = 0
    for sign in ("*.h5.partial", "frames.h5", "*.h5.partial"):  # frames are being decoded; they are being encoded
        process = command(tmp_path)
        while process.poll() is None and not there(tmp_path / "lib.xma" / "work", sign):
            time.sleep(0.002)
        process.kill()
        process.communicate(timeout=60)
        kills += process.returncode == -signal.SIGKILL
        assert process.returncode == 0 or indexing.content(tmp_path / "lib.xma") == old
    assert kills
    finish(tmp_path)
    assert indexing.content(tmp_path / "lib.xma") == indexing.content(whole / "lib.xma")


def test_a_first_indexing_that_was_killed_says_so(tmp_path):
    with indexing.Writer(tmp_path / "lib.xma") as writer:
        new, (frames, pooled) = indexing.item("a"), indexing.made("a")
        writer.add_content(new.hash, [0.0] * len(frames), [b"x"] * len(frames))
        writer.add_vectors(indexing.adapter().model, new.hash, frames, pooled)
    with pytest.raises(CacheError, match="first indexing was interrupted; repeat"):
        Index(tmp_path / "lib.xma")
    indexing.fill(tmp_path / "lib.xma", ["a"])
    assert Index(tmp_path / "lib.xma").ids == ["a"]
