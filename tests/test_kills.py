"""Killed at any moment, a command leaves no row that is marked done and is not, and finishes when it is repeated."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from multiprocessing import forkserver
from pathlib import Path

import killing
import numpy as np
import pytest

from xmafast.cache import FrameCache, Status
from xmafast.cache.features import kind_of
from xmafast.errors import CacheError
from xmafast.methods import METHODS

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes of a killed run in /proc")
COLUMNS = ("status", "num_frames", "timestamps", "bytes", "checksum", "error", "source")


def assert_done_rows_are_intact(folder):
    """Of every cache that opens; a partial that does not is the next command's to make anew."""
    for file in [*folder.rglob("*.h5"), *folder.rglob("*.h5.partial")]:
        try:
            cache = kind_of(file)(file)
        except CacheError:
            assert file.suffix == ".partial", f"{file} is finished and does not open"
            continue
        damaged = [cache.ids[row] for row in cache.rows if not cache.intact(row)]
        assert not damaged, f"{file} marks {damaged} as done"


def contents(folder):
    """Every file by its name, and of caches, adapters and logs what is in them."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(file.relative_to(folder))
        found[name] = file.read_bytes() if file.name == "adapter_model.safetensors" else None
        if file.name == "log.jsonl":
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            found[name] = [(row.get("step"), row.get("epoch"), row.get("loss"), row.get("r_sum")) for row in rows]
        if file.suffix == ".h5":
            cache = kind_of(file)(file)
            exact = isinstance(cache, FrameCache)  # a batch of other rows rounds a backbone's features otherwise
            columns = {c: np.array(getattr(cache, c)) for c in (*COLUMNS, *cache._small()) if exact or c != "checksum"}
            data = {"data": np.array(cache.data)} if exact else {"near": np.array(cache.data)}
            attributes = {k: v for k, v in cache.attributes.items() if k != "source_sha256"}  # a merge has one from its shards'
            found[name] = {"ids": cache.ids, "captions": cache.captions, "attributes": attributes, **columns, **data}
    return found


def assert_same(found, wanted):
    assert sorted(found) == sorted(wanted)  # nothing is missing, and nothing is left over
    for name, what in wanted.items():
        if not isinstance(what, dict):
            assert found[name] == what, name
            continue
        for key, value in what.items():
            if key == "near":
                assert np.allclose(found[name][key], value, rtol=1e-4, atol=1e-5), (name, key)
            else:
                assert np.array_equal(found[name][key], value), (name, key)


# at every step, in a process


@pytest.fixture(scope="module")
def server():
    """Forks processes that have everything imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killing"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(killing.__file__).parent), os.environ.get("PYTHONPATH", "")]))
        forkserver.ensure_running()  # of sys.path it would know nothing
    return context


def in_child(server, target, *arguments):
    process = server.Process(target=target, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def kill_at_steps(server, tmp_path, name, choose):
    assert in_child(server, killing.whole, name, tmp_path / "whole") == 0
    wanted = contents(tmp_path / "whole")
    assert in_child(server, killing.prepare, name, tmp_path / "before") == 0
    shutil.copytree(tmp_path / "before", tmp_path / "counted")
    here, there = server.Pipe()
    assert in_child(server, killing.at_step, name, tmp_path / "counted", None, there) == 0
    steps = here.recv()
    assert_same(contents(tmp_path / "counted"), wanted)
    for step in choose(steps):
        folder = tmp_path / "killed"
        shutil.copytree(tmp_path / "before", folder)
        assert in_child(server, killing.at_step, name, folder, step) == -signal.SIGKILL, step
        assert_done_rows_are_intact(folder)
        assert in_child(server, killing.at_step, name, folder, None) == 0, f"killed at step {step} of {steps}"
        assert_same(without_lock_of_a_finished_run(contents(folder)), wanted)
        shutil.rmtree(folder)
    return steps


def without_lock_of_a_finished_run(found):
    """A run that has its metrics is finished, and refused: a lock or a checkpoint that it still left holds nobody up."""
    left = {"runs/x.lock", "runs/x/checkpoint.safetensors"} if "runs/x/metrics.json" in found else set()
    return {name: what for name, what in found.items() if name not in left}


@pytest.mark.slow
@pytest.mark.parametrize("name", killing.WORKS)
def test_work_killed_at_any_step_is_finished_by_repeating_it(server, tmp_path, name):
    steps = kill_at_steps(server, tmp_path, name, lambda steps: range(1, steps + 1))
    assert steps > 5


@pytest.mark.parametrize("name", [pytest.param("jpeg", marks=pytest.mark.slow), "merge of jpeg", "train", "train, resumed"])
def test_work_killed_at_some_steps_is_finished_by_repeating_it(server, tmp_path, name):
    kill_at_steps(server, tmp_path, name, lambda steps: {steps // 2} if name == "train, resumed" else {2, steps // 2, steps - 2})


# at a step of training, and resumed


def sha256(run):
    return {part: hashlib.sha256((run / part / "adapter_model.safetensors").read_bytes()).hexdigest() for part in ("best", "last")}


QUICK = ("cross-modal", "clip-adapter")


@pytest.mark.parametrize("method", [*QUICK, *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m not in QUICK)])
def test_a_run_killed_at_a_step_and_resumed_ends_with_the_same_weights(server, tmp_path, method):
    killing.frames(tmp_path, rows=6)
    options = killing.options_of(method)
    if method == "stream":
        options["stream"] = killing.stream(tmp_path)
    assert in_child(server, killing.train_until, tmp_path, tmp_path / "whole", options, None, "60s") == 0
    generator = np.random.default_rng(zlib.crc32(method.encode()))
    run, last, every = tmp_path / "killed", int(generator.integers(2, 7)), str(generator.choice(["1", "2", "60s"]))
    assert in_child(server, killing.train_until, tmp_path, run, options, last, every) == -signal.SIGKILL
    assert not (run / "metrics.json").exists()
    assert in_child(server, killing.train_until, tmp_path, run, options, None, every, True) == 0
    assert sha256(run) == sha256(tmp_path / "whole"), f"killed at step {last}, saved every {every}"
    assert contents(run) == contents(tmp_path / "whole")


# at any moment, from the command line


OPTIONS = ("--size", "64", "--frames", "4", "--limit", "40", "--workers", "2")
FRAMES = ("cache", "demo", *OPTIONS)
JPEG = (*FRAMES, "--codec", "jpeg", "--split", "train")
TRAIN = ("train", "demo", "--epochs", "1", "--batch-size", "8", "--out", "runs/x")
# name -> (commands before, the command, files at whose appearance it is killed, kills)
COMMANDS = {
    "cache": ((), FRAMES, ("*.lock", "*.partial.new", "*.partial", "train.h5", "test.h5.partial", "problems.csv"), 18),
    "cache in jpeg": ((), JPEG, ("*.partial", "*.packed", "train.h5", "problems.csv"), 8),
    "cache of a shard": ((), (*JPEG, "--shard", "2/3"), ("*.partial.new", "*.partial", "*.packed"), 6),
    "merge": (
        [(*JPEG, "--shard", f"{i}/3") for i in (1, 2, 3)],
        ("merge", "demo"),
        ("*.lock", "train.h5.new", "*.partial", "*.packed", "train.h5"),
        8,
    ),
    "embeddings": (
        (),
        (*FRAMES, "--level", "embeddings"),
        ("train.h5", "embeddings*/*.lock", "embeddings*/*.partial", "test.h5.partial"),
        7,
    ),
    "train": ([FRAMES], TRAIN, ("x.lock", "log.jsonl", "last/*", "best/*", "metrics.json"), 5),
}
LONGEST = 300  # seconds that a command may take on the slowest machine: no test depends on it


def start(command, folder):
    return subprocess.Popen(
        [sys.executable, "-m", "xmafast.cli", *command],
        cwd=folder,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(command, folder, refused=False):
    process = start(command, folder)
    _, err = process.communicate(timeout=LONGEST)
    assert (process.returncode != 0 and b"no run is overwritten" in err) if refused else process.returncode == 0, err.decode()


def processes(session):
    """(process, parent) of those of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state not in "ZX":
            found.append((int(stat.parent.name), int(parent)))
    return found


def moment(generator, files, seconds):
    """When to kill, as a question to ask of the folder: so many rows done, a file there, or a share of the whole duration over."""
    kind = generator.choice(["rows", "file", "file", "time"])
    rows, file, share, pause = generator.integers(1, 40), generator.choice(files), generator.random(), generator.random() * 0.02
    began = time.monotonic()

    def reached(folder):
        if kind == "time":
            return time.monotonic() - began > share * seconds
        if kind == "file":
            if any(folder.rglob(str(file))):
                time.sleep(pause)
                return True
            return False
        for partial in folder.rglob("*.partial"):
            try:
                if kind_of(partial)(partial).count(Status.DONE) >= rows:
                    return True
            except (CacheError, OSError):
                pass
        return False

    return reached


def kill(command, folder, reached, victim, generator):
    """Whether the command was still at work when its moment had come. What else it had begun ends by itself."""
    process = start(command, folder)
    while process.poll() is None and not reached(folder):
        time.sleep(0.002)
    workers = [one for one, parent in processes(process.pid) if parent == process.pid]
    if victim == "worker" and workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(generator.choice(workers)), signal.SIGKILL)
        process.communicate(timeout=LONGEST)
        assert process.returncode == 0
        return True
    running = process.poll() is None
    if running:
        (os.kill if victim == "parent" else os.killpg)(process.pid, signal.SIGKILL)
    process.communicate(timeout=LONGEST)
    deadline = time.monotonic() + LONGEST
    while processes(process.pid):
        assert time.monotonic() < deadline, f"of a killed command there are left {processes(process.pid)}"
        time.sleep(0.02)
    assert running or process.returncode == 0
    return running


def kill_and_repeat(tmp_path, name, kills):
    before, command, files, _ = COMMANDS[name]
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    prepared, whole = tmp_path / "prepared", tmp_path / "whole"
    prepared.mkdir()
    for each in before:
        finish(each, prepared)
    shutil.copytree(prepared, whole)
    began = time.monotonic()
    finish(command, whole)
    seconds = time.monotonic() - began
    wanted = contents(whole)
    done = 0
    # a frame row that failed since its worker was killed is tried again by the command without --level
    victims = ["all", "all", "parent", "all" if name == "embeddings" else "worker"]
    for attempt in range(4 * kills):
        folder = tmp_path / f"killed-{attempt}"
        shutil.copytree(prepared, folder)
        for victim in generator.choice(victims, 2):  # killed, repeated and killed, repeated
            finished = not kill(command, folder, moment(generator, files, seconds), victim, generator)
            assert_done_rows_are_intact(folder)
            if finished:
                break
            done += 1
            if (folder / "runs/x/metrics.json").exists() or done == kills:
                break
        finish(command, folder, refused=(folder / "runs/x/metrics.json").exists())
        assert_same(without_lock_of_a_finished_run(contents(folder)), wanted)
        if done == kills:
            return
    raise AssertionError(f"{4 * kills} times it was quicker than the kill")


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_at_random_is_finished_by_repeating_it(tmp_path, name):
    kill_and_repeat(tmp_path, name, COMMANDS[name][-1])


def test_a_command_killed_twice_is_finished_by_repeating_it(tmp_path):
    kill_and_repeat(tmp_path, "cache in jpeg", 2)
