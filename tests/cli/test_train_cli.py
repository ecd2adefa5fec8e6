"""`xmafast train` stopped, resumed, begun with another run's weights and watched, as a user types it."""

import json
import os
import signal
from pathlib import Path

import pytest

from xmafast.training import loop

FEW = ("--epochs", "2", "--batch-size", "2", "--train-frames", "1")


@pytest.fixture
def stopped(call, workspace, monkeypatch):
    """Stop the next training with a signal in its n-th step, by the command's own name: (exit code, its one sentence)."""

    def stop(step, number, *arguments):
        real, calls = loop.batch_loss, []

        def send(*given):
            calls.append(1)
            if len(calls) == step:
                os.kill(os.getpid(), number)
            return real(*given)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "batch_loss", send)
            code, out, err = call("train", *arguments)
        assert not out
        return code, sentence(err)

    return stop


def sentence(err):
    (line,) = [line for line in err.splitlines() if line.startswith("xmafast: ")]
    assert "Traceback" not in err
    return line


def test_a_stopped_run_names_the_command_that_goes_on(call, stopped, weights):
    assert call("train", *FEW, "--out", "runs/whole")[0] == 0
    code, said = stopped(2, signal.SIGTERM, *FEW, "--out", "runs/a b")
    assert code == 143
    assert "after step 2 of 6" in said
    command = said.partition("go on with: ")[2]
    assert command == "xmafast train --resume --out 'runs/a b'"
    code, said = stopped(3, signal.SIGINT, "--resume")  # the newest, and the only one that is not finished
    assert code == 130
    assert "after step 5 of 6" in said
    code, out, err = call("train", "--resume", "--out", "a b", "--json")
    assert code == 0, err
    assert json.loads(out)["run"] == "runs/a b"
    assert "Going on with runs/a b" in err
    assert weights("runs/a b") == weights("runs/whole")
    code, _, err = call("train", "--resume", "--out", "runs/a b")
    assert code == 1
    assert "is finished" in sentence(err)
    code, _, err = call("train", "--resume")
    assert code == 1
    assert "no interrupted run" in sentence(err)


def test_an_interrupted_run_that_is_begun_anew_is_told_from_one_that_goes_on(call, stopped):
    stopped(2, signal.SIGTERM, *FEW, "--out", "runs/x")
    code, _, err = call("train", "--resume", "--lr", "0.25", "--out", "runs/x")
    assert code == 2
    assert "was begun with lr 0.005, not 0.25" in sentence(err)
    code, _, err = call("train", *FEW, "--lr", "0.001", "--out", "runs/x")
    assert code == 0
    assert "is begun anew; to go on with it: xmafast train --resume --out runs/x" in err.replace("\n", " ")


def test_a_run_begins_with_anothers_weights(call, workspace):
    assert call("train", *FEW, "--method", "lora", "--out", "runs/first")[0] == 0
    code, out, err = call("train", *FEW, "--init", "first", "--out", "runs/second", "--patience", "1", "--json")
    assert code == 0, err
    config = json.loads(Path("runs/second/config.json").read_text())
    assert (config["method"], Path(config["init"]).name) == ("lora", "first")
    assert json.loads(out)["early_stopping"]["patience"] == 1


def test_a_trace_and_event_files_say_where_they_are(call, workspace):
    pytest.importorskip("tensorboard")
    code, _, err = call("train", *FEW, "--profile", "--tensorboard", "--out", "runs/x", "--json")
    assert code == 0, err
    assert "Trace: runs/x/trace.json" in err
    assert "tensorboard --logdir runs/x/tensorboard" in err
    assert Path("runs/x/trace.json").is_file()
    assert list(Path("runs/x/tensorboard").glob("events.*"))


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("--resume",), 1, "There is no interrupted run in runs"),
        (("--resume", "--out", "nowhere"), 1, "There is no run nowhere"),
        (("--resume", "--init", "x"), 2, "give one of them"),
        (("--init", "nowhere"), 1, "nowhere does not exist"),
        (("--save-every", "often"), 2, "--save-every is a number of seconds"),
        (("--checkpointing", "--method", "clip-adapter"), 2, "--checkpointing has nothing to save"),
    ],
)
def test_what_cannot_be_done_gets_one_sentence(call, workspace, arguments, code, reason):
    found, out, err = call("train", *arguments)
    assert (found, out) == (code, "")
    assert reason in sentence(err)
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


def test_the_last_blocks_are_trained_from_tokens_that_are_made_offered_or_taken(call, workspace, weights):
    arguments = ("--epochs", "1", "--batch-size", "2", "--blocks", "last:2")
    code, _, err = call("train", *arguments, "--out", "runs/offered")
    assert code == 0
    assert "train with --cache-tokens, or first xmafast cache demo --split train" in err
    code, _, err = call("train", *arguments, "--cache-tokens", "--out", "runs/made")
    assert code == 0
    assert "Making the token cache" in err
    made = next((workspace / "caches" / "demo").glob("tokens-4-demo-*"))
    code, _, err = call("train", *arguments, "--out", "runs/taken")
    assert code == 0
    assert f"{made.name}/train.h5: 2 vision blocks a step" in err
    assert weights("runs/made") == weights("runs/taken")
    config = json.loads(Path("runs/taken/best/adapter_config.json").read_text())
    assert config["at_blocks"] == "last:2"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--blocks", "first:2"), "--blocks is all, or last:K"),
        (("--blocks", "last:9"), "takes a K from 1 to 6"),
        (("--blocks", "last:2", "--method", "full"), "--set freeze=N"),
        (("--cache-tokens",), "--cache-tokens has nothing to make"),
        (("--recipe", "paper"), "cross-modal has no published recipe for 'demo'; it has those for msrvtt"),
        (("--recipe", "paper", "--method", "vpt"), "no recipe of 'vpt' is published here; there are those of cross-modal"),
    ],
)
def test_blocks_and_recipes_that_there_are_not_are_refused_in_one_sentence(call, workspace, arguments, reason):
    code, out, err = call("train", *arguments, "--epochs", "1", "--out", "runs/none")
    assert (code, out) == (2, "")
    assert reason in sentence(err)
    assert not Path("runs/none/config.json").exists()
