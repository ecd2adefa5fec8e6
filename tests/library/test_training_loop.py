"""The steps of a training: what is read ahead, what builds a graph, what is written down, when it ends."""

import importlib.util
import json
import threading

import numpy as np
import pytest
import torch
from support import demo_split, ready, with_stream

from xmafast.blocks import checkpointed
from xmafast.cache import FrameCache, build_cache
from xmafast.errors import CacheError, RunError, UsageError
from xmafast.losses import total_loss
from xmafast.methods import METHODS
from xmafast.retriever import Retriever
from xmafast.training import Recipe, Trainer, loop, run, train
from xmafast.training.data import Plan, pick, read_ahead

CPU = torch.device("cpu")
FEATURES = [name for name, method in METHODS.items() if method.on_features]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Eight clips of three frames: seven to train on, three steps of two or three an epoch."""
    folder = tmp_path_factory.mktemp("cache")
    build_cache(demo_split("train", 8), folder / "train.h5", frames=3, sampling="uniform", size=32, workers=1)
    return FrameCache(folder / "train.h5")


SMALL = {"epochs": 2, "batch_size": 2, "train_frames": 1}


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# data


@pytest.mark.parametrize("frames", [0, 2])
def test_batches_that_are_read_ahead_are_those_that_are_read_when_needed(cache, frames):
    plan = Plan(cache, cache.rows, 3, frames, seed=5)
    draws = list(plan.draws(2))
    assert len(draws) == 2 * plan.steps_per_epoch == 6
    for batch, draw in zip(read_ahead(cache, plan.draws(2), CPU), draws, strict=True):
        expected = pick(*cache.read(draw.rows), draw.frames)
        assert batch.draw.pairs == draw.pairs
        assert torch.equal(batch.frames, expected[0])
        assert torch.equal(batch.mask, expected[1])
        assert batch.frames.shape[1] == (frames or 3)


def test_from_any_place_the_same_batches_follow(cache):
    plan = Plan(cache, cache.rows, 3, 2, seed=5)
    draws = list(plan.draws(3))
    for i, draw in enumerate(draws):
        place = type(draw.place)(**json.loads(json.dumps(vars(draw.place))))
        rest = list(plan.draws(3, place))
        assert [d.pairs for d in rest] == [d.pairs for d in draws[i + 1 :]]
        assert all(np.array_equal(a.frames, b.frames) for a, b in zip(rest, draws[i + 1 :], strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("frames", [0, 2])
def test_batches_that_are_uploaded_are_those_of_the_cache(cache, frames):
    plan = Plan(cache, cache.rows, 3, frames, seed=5)
    for batch, draw in zip(read_ahead(cache, plan.draws(20), torch.device("cuda")), plan.draws(20), strict=True):
        expected = pick(*cache.read(draw.rows), draw.frames)
        assert (batch.frames.device.type, batch.mask.device.type) == ("cuda", "cuda")
        batch.frames.float().sum()  # work on the stream that the copy is waited for in
        assert torch.equal(batch.frames.cpu(), expected[0])
        assert torch.equal(batch.mask.cpu(), expected[1])


def test_an_error_of_reading_reaches_the_training_and_the_thread_ends(cache, monkeypatch):
    def breaks(rows, out=None):
        raise CacheError("row 3 is damaged")

    batches = read_ahead(cache, Plan(cache, cache.rows, 2).draws(1), CPU)
    assert next(batches)
    assert any(thread.name.startswith("xmafast-reader") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("xmafast-reader") for thread in threading.enumerate())
    monkeypatch.setattr(cache, "read", breaks)
    with pytest.raises(CacheError, match="row 3 is damaged"):
        next(read_ahead(cache, Plan(cache, cache.rows, 2).draws(1), CPU))
    assert not any(thread.name.startswith("xmafast-reader") for thread in threading.enumerate())


# the graph


@pytest.mark.parametrize("method", ["partial", "disco"])
def test_below_the_lowest_adapter_nothing_is_kept_for_the_backward_pass(demo_backbone, cache, monkeypatch, method):
    options = {"vision_blocks": 1} if method == "disco" else {}
    model = Retriever(demo_backbone, method, **options).train()
    blocks = list(demo_backbone.tower.blocks)
    entered, kept = [], []

    def note(index):
        def hook(module, arguments):
            entered.append((index, arguments[0].requires_grad))

        return hook

    hooks = [block.register_forward_pre_hook(note(i)) for i, block in enumerate(blocks)]
    # a block's forward is written out in xmafast.blocks, so its first norm is what is called
    hooks += [block.ln_1.register_forward_pre_hook(note(i)) for i, block in enumerate(blocks)]
    frames, mask = cache.read(cache.rows[:2])
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(len(entered)) or t, lambda t: t):
        video = model.encode_frames(frames, mask)
    for hook in hooks:
        hook.remove()
    assert {index for index, _ in entered} == set(range(len(blocks)))
    assert not any(grad for index, grad in entered if index < len(blocks) - 1)
    first_of_last = next(i for i, (index, _) in enumerate(entered) if index == len(blocks) - 1)
    assert kept  # something is
    assert min(kept) > first_of_last  # and nothing of the blocks before
    video.sum().backward()
    assert all(p.grad is None for p in demo_backbone.parameters())


@pytest.mark.parametrize("method", ["cross-modal", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m != "cross-modal")])
def test_frozen_weights_get_no_gradients_and_no_state(demo_backbone, cache, method):
    model = (
        Retriever(demo_backbone, method, frames=3, **ready(method))
        if method == "mv-adapter"
        else Retriever(demo_backbone, method, **ready(method))
    )
    if not model.trained:
        pytest.skip("it trains nothing")
    trainer = Trainer(with_stream(model), cache, cache.rows, Recipe(1, 4))
    next(trainer.run())
    assert all(p.grad is None and not p.requires_grad for p in demo_backbone.parameters())
    assert {id(p) for group in trainer.optimizer.param_groups for p in group["params"]} == {id(p) for p in model.trained.values()}


QUICK = ("cross-modal", "partial", "clip-lora", "coop")


@pytest.mark.parametrize(
    "method",
    [*QUICK, *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m not in (*QUICK, *FEATURES) and not METHODS[m].moves_tokens)],
)
def test_blocks_that_are_run_again_give_the_same_gradients(demo_backbone, cache, method):
    torch.manual_seed(0)
    model = with_stream(Retriever(demo_backbone, method, **ready(method)).train())
    with torch.no_grad():
        for p in model.trained.values():  # away from starts at zero
            p.add_(torch.randn_like(p) * 0.02)
    frames, mask = cache.read(cache.rows[:3])
    texts, kept, found = [cache.captions[row][0] for row in cache.rows[:3]], [], []
    for on in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        sizes = []
        with checkpointed(on), torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss = total_loss(model, texts, frames, mask, torch.arange(3))
        kept.append(sum(sizes))
        loss.backward()
        found.append([loss.detach(), *(torch.zeros(()) if p.grad is None else p.grad.clone() for p in model.trained.values())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert kept[1] < kept[0] or method == "projection"  # which is above every block


@pytest.mark.parametrize(("method", "reason"), [("tempme", "depend on those run before"), ("clip-adapter", "nothing to save")])
def test_where_blocks_cannot_be_run_again_it_is_said(demo_backbone, cache, tmp_path, method, reason):
    with pytest.raises(UsageError, match=reason):
        train(cache.path, tmp_path / "run", backbone=demo_backbone, method=method, checkpointing=True, **SMALL)


def test_a_run_with_blocks_run_again_ends_with_the_same_weights(demo_backbone, cache, tmp_path):
    files = []
    for on in (False, True):
        train(cache.path, tmp_path / str(on), backbone=demo_backbone, method="clip-lora", checkpointing=on, **SMALL)
        files.append((tmp_path / str(on) / "last/adapter_model.safetensors").read_bytes())
    assert files[0] == files[1]


# what is written down


def test_every_step_and_epoch_is_in_the_log(demo_backbone, cache, tmp_path):
    trained = train(cache.path, tmp_path / "run", backbone=demo_backbone, profile=True, **SMALL)
    steps, epochs = [r for r in rows(trained.folder) if "loss" in r], [r for r in rows(trained.folder) if "r_sum" in r]
    assert len(steps) == 6
    assert {"loss", "grad_norm", "lr", "videos_per_second", "wait", "step", "epoch"} <= set(steps[0])
    assert all(row["videos_per_second"] > 0 and 0 <= row["wait"] <= 1 and row["grad_norm"] > 0 for row in steps)
    assert [row["epoch"] for row in epochs] == [1, 2]
    assert all(2**26 < row["peak_memory_bytes"] < 2**40 for row in epochs)
    trace = json.loads((trained.folder / "trace.json").read_text())
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert any(name.startswith("ProfilerStep") for name in names)
    assert any("aten::" in name for name in names)


def test_tensorboard_holds_the_same_numbers(demo_backbone, cache, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(cache.path, tmp_path / "run", backbone=demo_backbone, tensorboard=True, **SMALL)
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(row["step"], pytest.approx(row["loss"])) for row in rows(tmp_path / "run") if "loss" in row]
    assert [event.step for event in events.Scalars("validation/t2v R@1")] == [3, 6]


def test_without_its_package_tensorboard_is_refused_before_anything_is_done(cache, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "tensorboard" else real(name, *a))
    with pytest.raises(UsageError, match=r"pip install 'xmafast\[tensorboard\]'"):
        train(cache.path, tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("breaks_at", [1, 5])
def test_a_batch_that_breaks_the_loss_is_written_down_whole(demo_backbone, cache, tmp_path, monkeypatch, breaks_at):
    real, calls = loop.batch_loss, []

    def breaks(*arguments):
        calls.append(arguments[1])
        return real(*arguments) + (float("inf") if len(calls) == breaks_at else 0)

    monkeypatch.setattr(loop, "batch_loss", breaks)
    out = tmp_path / "run"
    with pytest.raises(RunError, match=f"in step {breaks_at} of 6") as error:
        train(cache.path, out, backbone=demo_backbone, **SMALL)
    last = rows(out)[-1]
    assert (last["diverged"], last["step"], last["loss"]) == (True, breaks_at, "inf")
    captions = {caption: cache.ids[row] for row in range(len(cache)) for caption in cache.captions[row]}
    assert last["videos"] == [captions[text] for text in calls[-1]]
    assert f"{out / 'log.jsonl'} names all {len(last['videos'])}" in str(error.value)
    assert ("No checkpoint" in str(error.value)) == (breaks_at == 1)
    if breaks_at > 1:
        assert f"The last good checkpoint is {out / 'checkpoint.safetensors'}, of step 3" in str(error.value)


def test_a_step_that_breaks_changes_no_weight(demo_backbone, cache, monkeypatch):
    trainer = Trainer(Retriever(demo_backbone), cache, cache.rows, Recipe(1, 4))
    before = {name: p.detach().clone() for name, p in trainer.retriever.trained.items()}
    monkeypatch.setattr(loop, "batch_loss", lambda model, *_: sum(p.sum() for p in model.trained.values()) * float("nan"))
    with pytest.raises(loop.Diverged):
        next(trainer.run())
    assert all(torch.equal(p, before[name]) for name, p in trainer.retriever.trained.items())
    assert trainer.done == 0


# early stopping


def test_a_training_ends_when_no_epoch_was_better(demo_backbone, cache, tmp_path, monkeypatch):
    sums = iter([1.0, 3.0, 2.0, 3.0, 9.0])
    monkeypatch.setattr(run, "r_sum", lambda metrics: next(sums))
    trained = train(cache.path, tmp_path / "run", backbone=demo_backbone, **{**SMALL, "epochs": 5, "patience": 2})
    assert trained.metrics["best_epoch"] == 2  # of equal ones the first
    assert [row["epoch"] for row in trained.metrics["epochs"]] == [1, 2, 3, 4]
    assert trained.metrics["early_stopping"] == {"patience": 2, "stopped": True, "epochs_planned": 5}
    assert rows(tmp_path / "run")[0]["steps"] == 15  # the schedule is that of all of them


def test_patience_that_is_not_needed_says_so(demo_backbone, cache, tmp_path):
    trained = train(cache.path, tmp_path / "run", backbone=demo_backbone, **{**SMALL, "patience": 2})
    assert trained.metrics["early_stopping"]["stopped"] is False
    with pytest.raises(UsageError, match="--patience must be at least 0"):
        train(cache.path, tmp_path / "other", backbone=demo_backbone, patience=-1)
