"""What may happen to a cache while it is written, and afterwards."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from support import demo_split

from xmafast.cache import FrameCache, Status, build_cache, repair, verify
from xmafast.cache.lock import locked
from xmafast.errors import CacheError

OPTIONS = {"frames": 2, "sampling": "uniform", "size": 32, "workers": 1}
BUILD = "from support import demo_split; from xmafast.cache import build_cache; import sys, resource"


def damage(path, row, byte=100):
    frames = FrameCache(path, writable=True).frames
    frames[row].reshape(-1)[byte] ^= 1
    frames.flush()


def python(*arguments, **options):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(["tests", os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env, **options)


def test_one_changed_bit_is_found_and_mended(tmp_path):
    path = tmp_path / "train.h5"
    build_cache(demo_split("train", 6), path, **OPTIONS)
    before = np.array(FrameCache(path).frames)
    assert verify(path).intact == 6
    damage(path, 3)
    found = verify(path)
    assert found.damaged == [FrameCache(path).ids[3]]
    assert (found.intact, found.open) == (5, 0)
    summary = repair(path, found, workers=1)
    assert (summary.done, summary.present) == (1, 5)
    assert np.array_equal(FrameCache(path).frames, before)
    assert verify(path).intact == 6


def test_a_changed_timestamp_is_found_too(tmp_path):
    path = tmp_path / "train.h5"
    build_cache(demo_split("train", 3), path, **OPTIONS)
    timestamps = FrameCache(path, writable=True).timestamps
    timestamps[1, 0] += 1
    timestamps.flush()
    assert len(verify(path).damaged) == 1


def test_rows_that_move_to_another_list_stay_verifiable(tmp_path):
    split = demo_split("train", 6)
    build_cache(split, tmp_path / "train.h5", **OPTIONS)
    build_cache(replace(split, videos=split.videos[::-1]), tmp_path / "train.h5", **OPTIONS)
    assert verify(tmp_path / "train.h5").intact == 6


def test_a_second_writer_is_refused_and_a_crash_leaves_no_lock(tmp_path):
    path = tmp_path / "train.h5"
    with locked(path):
        code = f"{BUILD}; build_cache(demo_split('train', 2), {str(path)!r}, workers=1)"
        done = python("-c", code)
        assert done.returncode == 1
        assert f"is being written by process {os.getpid()}; wait for it to end" in done.stderr
    dead = python(
        "-c", f"from xmafast.cache.lock import _take; import os, pathlib; _take(pathlib.Path({str(path)!r})); os.kill(os.getpid(), 9)"
    )
    assert dead.returncode == -9
    with locked(path):
        pass
    assert not list(tmp_path.glob("*.lock"))


@pytest.mark.skipif(sys.platform == "win32", reason="limits a process with resource.setrlimit")
@pytest.mark.slow
def test_a_full_disk_stops_with_what_was_done_intact(tmp_path):
    """A limit on the file's size stands for the disk: the layout fits under it, and of the frames the first rows alone do."""
    path, split = tmp_path / "train.h5", demo_split("train", 8)
    build_cache(replace(split, videos=[replace(v, path=None) for v in split.videos]), path, **OPTIONS)  # every row is missing
    cache = FrameCache(path)
    room = cache.offset + 3 * int(np.prod(cache.shape[1:]))
    done = python(
        "-c",
        f"{BUILD}; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
        f"build_cache(demo_split('train', 8), {str(path)!r}, frames=2, sampling='uniform', size=32, workers=1)",
    )
    assert done.returncode == 1
    assert "There is no room left for" in done.stderr.splitlines()[-1]
    assert "what was decoded is kept" in done.stderr.splitlines()[-1]
    found = verify(path)
    assert (found.intact, found.damaged) == (3, [])
    assert build_cache(split, path, **OPTIONS).done == 5
    assert verify(path).intact == 8
    assert (FrameCache(path).status == Status.DONE).all()


def test_repair_without_the_videos_says_what_is_missing(tmp_path):
    split = demo_split("train", 3)
    path = tmp_path / "train.h5"
    build_cache(replace(split, dataset="folder", root=tmp_path / "gone"), path, **OPTIONS)
    damage(path, 0)
    with pytest.raises(Exception, match="gone"):
        repair(path, verify(path))
    assert FrameCache(path).status[0] == Status.TODO


def test_a_cache_of_an_older_format_is_refused(tmp_path):
    import h5py

    path = tmp_path / "train.h5"
    build_cache(demo_split("train", 2), path, **OPTIONS)
    with h5py.File(path, "r+") as file:
        file.attrs["schema"] = 1
    with pytest.raises(CacheError, match="has cache format 1, and this version reads 3; cache again"):
        FrameCache(path)


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_so_and_keeps_its_rows_open(tmp_path):
    script, path = tmp_path / "script.py", tmp_path / "train.h5"
    call = f"build_cache(demo_split('train', 4), {str(path)!r}, **{OPTIONS!r})"
    script.write_text(f"{BUILD}\n{call}\n")
    run = python(str(script), timeout=60)
    assert "call build_cache under `if __name__ == '__main__':`" in run.stderr
    assert not FrameCache(path.with_name("train.h5.partial")).count(Status.FAILED)
