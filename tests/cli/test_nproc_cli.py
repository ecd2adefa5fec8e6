"""`xmafast train` in several processes, started by --nproc and by torchrun, as a user types it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xmafast import launch
from xmafast.errors import UsageError

FEW = ("--epochs", "2", "--batch-size", "3", "--train-frames", "1", "--patch-drop", "0.5")
LONGEST = 300


def start(folder, *command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process):
    out, err = process.communicate(timeout=LONGEST)
    assert "Traceback" not in err
    return process.returncode, out, [line for line in err.splitlines() if line.startswith("xmafast: ")]


def xmafast(folder, *arguments):
    return start(folder, "-m", "xmafast.cli", "train", *arguments)


def member(parent, rank):
    """The process of that rank."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return next(int(pid) for pid in children if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))


def steps(run):
    log = Path(run, "log.jsonl")
    return [row["step"] for line in log.read_text().splitlines() if "step" in (row := json.loads(line))] if log.exists() else []


def until(condition, process):
    deadline = time.monotonic() + LONGEST
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def launched(monkeypatch):
    calls = []

    def launching(count, arguments, resume):
        calls.append((count, arguments, resume))
        return 0

    monkeypatch.setattr(launch, "launch", launching)
    return calls


def test_each_process_gets_the_command_as_it_was_typed(call, workspace, launched):
    code, _, err = call("train", "demo", "--nproc", "3", *FEW, "--micro-batch", "2", "--checkpointing", "--out", "a b", "--json")
    assert code == 0, err
    ((count, arguments, resume),) = launched
    assert (count, resume) == (3, "xmafast train --resume --nproc 3 --out 'a b'")
    assert arguments[0] == "train"
    assert arguments[-2:] == ["--", "caches/demo"]  # found once, by the first of all processes
    options = ["--epochs", "2", "--batch-size", "3", "--micro-batch", "2", "--train-frames", "1", "--patch-drop", "0.5"]
    assert arguments[1:-2] == [*options, "--checkpointing", "--out", "a b", "--json"]
    more = ("--method", "lora", "--plug", "tempme", "--set", "rank=4", "scale=2.0", "--header", "mean", "--resume", "--out", "x")
    code, _, err = call("train", *more, "--nproc", "2")
    assert code == 0, err
    kept = ["--method", "lora", "--plug", "tempme", "--set", "rank=4", "--set", "scale=2.0", "--header", "mean", "--out", "x", "--resume"]
    assert launched[1][1] == ["train", *kept]


def test_what_is_wrong_is_said_once_before_anything_is_started(call, workspace, launched, monkeypatch):
    for arguments, code, reason in (
        (("--method", "nope"), 2, "Unknown method"),
        (("--resume",), 1, "no interrupted run"),
        (("--resume", "--init", "x"), 2, "give one of them"),
    ):
        found, out, err = call("train", "--nproc", "2", *arguments)
        assert (found, out, launched) == (code, "", [])
        assert err.count("xmafast: ") == 1
        assert reason in err
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    code, _, err = call("train", "--nproc", "2")
    assert code == 2
    assert "leave --nproc out" in err


def test_fewer_gpus_than_processes_are_told(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="2 processes need 2 GPUs, and this machine has 1"):
        launch.launch(2, [], "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes of a run in /proc")
def test_a_killed_process_ends_the_job_and_it_is_gone_on_with(workspace, weights):
    given = ("--nproc", "2", *FEW, "--epochs", "8", "--save-every", "1", "--out")
    code, out, said = finish(xmafast(workspace, *given, "runs/whole", "--json"))
    assert (code, said) == (0, [])
    assert json.loads(out)["run"] == "runs/whole"
    for rank, at in ((1, 3), (0, 2)):
        run = f"runs/killed-{rank}"
        process = xmafast(workspace, *given, run)
        until(lambda: len(steps(workspace / run)) >= at, process)  # noqa: B023
        os.kill(member(process.pid, rank), signal.SIGKILL)
        code, out, (sentence,) = finish(process)
        assert (code, out) == (1, "")
        assert f"Process {rank} of 2" in sentence
        assert "was killed by SIGKILL" in sentence
        command = sentence.partition("go on with: ")[2]
        assert command == f"xmafast train --resume --nproc 2 --out {run}"
        assert not (workspace / run / "metrics.json").exists()
        code, _, said = finish(start(workspace, "-m", "xmafast.cli", *command.split()[1:]))
        assert (code, said) == (0, [])
        assert steps(workspace / run) == list(range(1, 17))
        assert weights(run) == weights("runs/whole")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes of a run in /proc")
@pytest.mark.parametrize("to", ["launcher", "one"])
def test_a_signal_stops_all_processes_after_the_same_step(workspace, to):
    process = xmafast(workspace, "--nproc", "2", *FEW, "--epochs", "200", "--out", "runs/x")
    until(lambda: len(steps(workspace / "runs/x")) >= 3, process)
    os.kill(process.pid if to == "launcher" else member(process.pid, 1), signal.SIGTERM)
    code, _, (sentence,) = finish(process)
    assert code == 143
    assert f"after step {steps(workspace / 'runs/x')[-1]} of 400, which is saved" in sentence
    assert "--resume --nproc 2 --out runs/x" in sentence


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes of a run in /proc")
def test_processes_whose_launcher_was_killed_save_and_end(workspace):
    process = xmafast(workspace, "--nproc", "2", *FEW, "--epochs", "200", "--out", "runs/x")
    until(lambda: len(steps(workspace / "runs/x")) >= 3, process)
    members = [member(process.pid, rank) for rank in (0, 1)]
    process.kill()
    deadline = time.monotonic() + LONGEST
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in members):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.communicate()
    assert (workspace / "runs/x/checkpoint.safetensors").exists()


@pytest.mark.slow
def test_plain_torchrun_writes_one_run_with_the_same_weights(workspace, weights):
    assert finish(xmafast(workspace, "--nproc", "2", *FEW, "--out", "runs/whole"))[0] == 0
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "xmafast.cli", "train")
    code, out, said = finish(start(workspace, *command, *FEW, "--json"))
    assert (code, said) == (0, [])
    (run,) = [run for run in (workspace / "runs").iterdir() if run.name != "whole"]
    assert json.loads(out)["run"] == f"runs/{run.name}"
    assert weights(run) == weights("runs/whole")


@pytest.mark.slow
def test_an_error_that_all_processes_meet_is_said_once(workspace):
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "xmafast.cli", "train")
    _, err = start(workspace, *command, "--method", "disco", "--micro-batch", "2").communicate(timeout=LONGEST)
    assert err.count("--micro-batch cannot be used with 'disco'") == 1
    code, _, (sentence,) = finish(xmafast(workspace, "--nproc", "2", "--method", "disco", "--micro-batch", "2"))
    assert code == 2
    assert "--micro-batch cannot be used with 'disco'" in sentence
