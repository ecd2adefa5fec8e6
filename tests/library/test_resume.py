"""A run that is interrupted and gone on with, in the process of the test: what is saved, what is refused, what is said."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import demo_split

from xmafast.cache import build_cache
from xmafast.errors import RunError, UsageError
from xmafast.retriever import load
from xmafast.training import Interrupted, loop, train
from xmafast.training.checkpoint import CHECKPOINT, Cadence, read_checkpoint
from xmafast.training.log import Log

SMALL = {"epochs": 2, "batch_size": 2, "train_frames": 1, "patch_drop": 0.5, "bottleneck": 4, "shared": 2}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Eight clips of two frames: seven to train on, three steps an epoch."""
    folder = tmp_path_factory.mktemp("cache")
    build_cache(demo_split("train", 8), folder / "train.h5", frames=2, sampling="uniform", size=32, workers=1)
    return folder


@pytest.fixture(scope="module")
def whole(cache, demo_backbone, tmp_path_factory):
    return train(cache, tmp_path_factory.mktemp("runs") / "whole", backbone=demo_backbone, **SMALL)


def weights(run):
    return [hashlib.sha256((run / part / "adapter_model.safetensors").read_bytes()).hexdigest() for part in ("best", "last")]


def rows(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def stop_at(last, number=signal.SIGTERM):
    def report(step, validation):
        if step.step == last and validation is None:
            os.kill(os.getpid(), number)

    return report


@pytest.fixture
def interrupted(cache, demo_backbone, tmp_path):
    """A run that was stopped after its fourth step of six."""
    with pytest.raises(Interrupted):
        train(cache, tmp_path / "run", backbone=demo_backbone, report=stop_at(4), **SMALL)
    return tmp_path / "run"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_after_the_step_and_says_how_to_go_on(cache, demo_backbone, tmp_path, whole, number, code):
    run, before = tmp_path / "run", signal.getsignal(number)
    with pytest.raises(Interrupted, match=rf"after step 4 of 6.*xmafast train --resume --out {run}") as error:
        train(cache, run, backbone=demo_backbone, report=stop_at(4, number), **SMALL)
    assert error.value.exit_code == code
    assert signal.getsignal(number) is before
    assert read_checkpoint(run)[1].step == 4
    trained = train(out=run, backbone=demo_backbone, resume=True)
    assert weights(run) == weights(whole.folder)
    assert [row["step"] for row in rows(run) if "step" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["epoch"] for row in rows(run) if "r_sum" in row] == [1, 2]
    assert trained.metrics["train_seconds"] >= trained.metrics["epochs"][1]["seconds"] > trained.metrics["epochs"][0]["seconds"]
    assert not (run / CHECKPOINT).exists()


def test_a_signal_while_an_epoch_is_validated_stops_at_once(cache, demo_backbone, tmp_path, whole, monkeypatch):
    from xmafast.training import validation

    def rank(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the validation went on")

    with monkeypatch.context() as patch:
        patch.setattr(validation, "rank_cache", rank)
        with pytest.raises(Interrupted, match="after step 3 of 6"):
            train(cache, tmp_path / "run", backbone=demo_backbone, **SMALL)
    train(out=tmp_path / "run", backbone=demo_backbone, resume=True)
    assert weights(tmp_path / "run") == weights(whole.folder)
    assert [row["epoch"] for row in rows(tmp_path / "run")] == [row["epoch"] for row in rows(whole.folder)]


def test_stopped_after_every_step_it_still_ends_the_same(cache, demo_backbone, tmp_path, whole):
    run, given = tmp_path / "run", {"cache": cache, **SMALL}
    for step in range(1, 7):
        with pytest.raises(Interrupted):
            train(out=run, backbone=demo_backbone, resume=step > 1, report=stop_at(step), **given)
        given = {}
    train(out=run, backbone=demo_backbone, resume=True)
    assert weights(run) == weights(whole.folder)


def test_a_full_disk_keeps_the_last_checkpoint_and_says_what_to_do(cache, demo_backbone, tmp_path, whole, monkeypatch):
    run, written, write = tmp_path / "run", [], Path.write_bytes

    def fills_up(path, data):
        written.append(path)
        if len(written) > 3:
            write(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fills_up)
        with pytest.raises(RunError, match=r"no room left .* last checkpoint is kept\. Make room, and go on with: xmafast train --resume"):
            train(cache, run, backbone=demo_backbone, save_every="1", **SMALL)
    assert len(written) == 4
    assert read_checkpoint(run)[1].step == 3
    assert not list(run.glob(".*"))
    train(out=run, backbone=demo_backbone, resume=True)
    assert weights(run) == weights(whole.folder)


@pytest.mark.parametrize("fails", ["config.json", "metrics.json"])
def test_a_full_disk_under_the_first_and_the_last_file(cache, demo_backbone, tmp_path, whole, monkeypatch, fails):
    run, write = tmp_path / "run", Path.write_text

    def fills_up(path, *arguments, **options):
        if fails in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fills_up)
        reason = "repeat the command" if fails == "config.json" else "xmafast train --resume"
        with pytest.raises(RunError, match=f"no room left .*{reason}"):
            train(cache, run, backbone=demo_backbone, **SMALL)
    again = {"cache": cache, **SMALL} if fails == "config.json" else {"resume": True}
    train(out=run, backbone=demo_backbone, **again)
    assert weights(run) == weights(whole.folder)


def test_a_full_disk_under_an_adapter_is_said_as_well(cache, demo_backbone, tmp_path, whole, monkeypatch):
    from safetensors import SafetensorError

    from xmafast import retriever

    def fills_up(*_, **__):
        raise SafetensorError('Error while serializing: I/O error: Os { code: 28, kind: StorageFull, message: "No space left on device" }')

    with monkeypatch.context() as patch:
        patch.setattr(retriever, "save_file", fills_up)
        with pytest.raises(RunError, match="last checkpoint is kept"):
            train(cache, tmp_path / "run", backbone=demo_backbone, **SMALL)
    train(out=tmp_path / "run", backbone=demo_backbone, resume=True)
    assert weights(tmp_path / "run") == weights(whole.folder)


def test_a_full_disk_under_the_log_is_said_too(cache, demo_backbone, tmp_path, whole, monkeypatch):
    run, write, count = tmp_path / "run", os.write, []

    def half(file, data):
        count.append(1)
        return write(file, data[:10]) if len(count) == 3 else write(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(RunError, match="no room left"):
            train(cache, run, backbone=demo_backbone, save_every="1", **SMALL)
    train(out=run, backbone=demo_backbone, resume=True)
    assert [row["step"] for row in rows(run) if "step" in row] == [1, 2, 3, 4, 5, 6]  # and every line is JSON


def test_a_log_is_cut_back_and_never_made_longer(tmp_path):
    path = tmp_path / "log.jsonl"
    for keep, row in ((0, {"step": 1}), (100, {"step": 2}), (12, {"step": 3})):
        log = Log(path, keep)
        log.write(row)
        assert log.synced() == path.stat().st_size
        log.close()
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'


WRONG = [
    ({"lr": 0.5}, "was begun with lr 0.005, not 0.5"),
    ({"seed": 1}, "seed 0, not 1"),
    ({"epochs": 3}, "epochs 2, not 3"),
    ({"bottleneck": 8}, "bottleneck 4, not 8"),
    ({"impl": "eager"}, "impl auto, not eager"),
    ({"header": "mean"}, "header text-conditioned, not mean"),
    ({"patience": 1}, "patience 0, not 1"),
    ({"plugs": ["tempme"]}, "plugs"),
    ({"method": "lora"}, "trains cross-modal, not lora"),
    ({"method": None}, "trains cross-modal, not none"),
    ({"pretrained": "none", "backbone": "ViT-B-32"}, "was begun on the weights of demo"),
]


@pytest.mark.parametrize(("given", "reason"), WRONG, ids=lambda value: value if isinstance(value, str) else "-".join(value))
def test_a_run_goes_on_with_what_it_was_begun_with(interrupted, demo_backbone, vit_b32, given, reason):
    before = {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()}
    given = {"backbone": demo_backbone, **given}
    if given["backbone"] == "ViT-B-32":
        given = {"backbone": vit_b32}
    with pytest.raises(UsageError, match=reason):
        train(out=interrupted, resume=True, **given)
    assert {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()} == before


def test_options_that_are_the_same_may_be_given(interrupted, cache, demo_backbone, whole):
    train(cache, interrupted, method="cross-modal", backbone=demo_backbone, seed=0, resume=True, **SMALL)
    assert weights(interrupted) == weights(whole.folder)


def test_another_cache_is_refused_and_the_same_one_elsewhere_is_not(interrupted, cache, demo_backbone, whole, tmp_path):
    for name, size in (("other", 48), ("moved", 32)):
        build_cache(demo_split("train", 8), tmp_path / name / "train.h5", frames=2, sampling="uniform", size=size, workers=1)
    with pytest.raises(UsageError, match=r"the cache .*other is another than"):
        train(tmp_path / "other", interrupted, backbone=demo_backbone, resume=True)
    train(tmp_path / "moved", interrupted, backbone=demo_backbone, resume=True)
    assert weights(interrupted) == weights(whole.folder)


def test_what_cannot_be_gone_on_with_is_said(whole, interrupted, demo_backbone, tmp_path, cache):
    def resume(run):
        train(out=run, backbone=demo_backbone, resume=True)

    with pytest.raises(RunError, match=r"is finished.*xmafast eval"):
        resume(whole.folder)
    with pytest.raises(RunError, match="There is no run"):
        resume(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"holds no config\.json"):
        resume(tmp_path / "empty")
    checkpoint = interrupted / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"checkpoint\.safetensors is damaged"):
        resume(interrupted)
    (interrupted / "config.json").write_text('{"cache": "x"}')
    with pytest.raises(RunError, match="an older version"):
        resume(interrupted)


def test_without_resume_an_interrupted_run_is_begun_anew(interrupted, cache, demo_backbone):
    trained = train(cache, interrupted, backbone=demo_backbone, **{**SMALL, "epochs": 1})
    assert [row["step"] for row in rows(interrupted) if "step" in row] == [1, 2, 3]
    assert trained.metrics["best_epoch"] == 1


def test_a_run_stopped_before_its_first_checkpoint_is_resumed_from_the_start(cache, demo_backbone, tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(cache, tmp_path / "run", backbone=demo_backbone, **SMALL)
    assert not (tmp_path / "run" / CHECKPOINT).exists()
    train(out=tmp_path / "run", backbone=demo_backbone, resume=True)
    assert weights(tmp_path / "run") == weights(whole.folder)


def test_no_pickle_is_in_a_checkpoint(interrupted):
    tensors, state = read_checkpoint(interrupted)
    assert {name.partition(".")[0] for name in tensors} == {"model", "optimizer", "random"}
    assert (state.step, state.place.epoch, state.place.taken, len(state.history)) == (4, 2, 1, 1)
    script = "import sys, pickle; pickle.Unpickler = pickle.loads = pickle.load = None; import pathlib\n"
    script += "from safetensors import safe_open; print(len(safe_open(sys.argv[1], 'pt').keys()))"
    done = subprocess.run([sys.executable, "-c", script, interrupted / CHECKPOINT], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(tensors)


def test_weights_of_a_run_begin_another(whole, cache, demo_backbone, tmp_path):
    new = {"backbone": demo_backbone, "epochs": 1, "batch_size": 2, "lr": 1e-12, "init": whole.folder}
    trained = train(cache, tmp_path / "run", **new)
    best = load(whole.folder, demo_backbone)
    assert trained.retriever.method.options() == best.method.options()  # the model is that run's
    for a, b in zip(best.method.parameters(), trained.retriever.method.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-9
    assert json.loads((tmp_path / "run/config.json").read_text())["init"] == str(whole.folder.resolve())
    with pytest.raises(UsageError, match="trains cross-modal, not lora"):
        train(cache, tmp_path / "other", method="lora", **new)
    with pytest.raises(RunError, match=r"is \(.*\), not \("):
        train(cache, tmp_path / "other", bottleneck=2, **new)
    with pytest.raises(RunError, match="does not exist"):
        train(cache, tmp_path / "other", **{**new, "init": tmp_path / "nowhere"})
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("text", ["", "0", "0s", "1.5", "1m", "-1", "often"])
def test_a_cadence_is_seconds_or_steps(text):
    with pytest.raises(UsageError, match="--save-every"):
        Cadence(text)


def test_steps_and_seconds_say_when_a_checkpoint_is_due(monkeypatch):
    assert [Cadence("3").due(step) for step in range(1, 7)] == [False, False, True, False, False, True]
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    cadence = Cadence("60s")
    now[0] = 159.0
    assert not cadence.due(1)
    now[0] = 160.0
    assert cadence.due(1)
    cadence.saved()
    assert not cadence.due(1)
