"""Two and three processes on the CPU give what one process gives with the whole batch."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import together
import torch
import torch.nn.functional as F
from support import demo_split

from xmafast.cache import FrameCache, build_cache
from xmafast.distributed import ALONE, Processes
from xmafast.embeddings import VIDEOS_AT_ONCE
from xmafast.errors import UsageError
from xmafast.kernels import info_nce
from xmafast.losses import contrastive_loss, total_loss
from xmafast.methods import METHODS
from xmafast.retriever import Retriever
from xmafast.training import Recipe, Trainer, train
from xmafast.training.checkpoint import read_checkpoint

SMALL = {"epochs": 2, "batch_size": 3, "train_frames": 1, "patch_drop": 0.5, "bottleneck": 4, "shared": 2}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As the processes have: with another number a sum is rounded otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Eight clips of two frames."""
    path = tmp_path_factory.mktemp("cache") / "train.h5"
    build_cache(demo_split("train", 8), path, frames=2, sampling="uniform", size=32, workers=1)
    return path


@pytest.fixture(scope="module")
def crews(tmp_path_factory):
    made = {count: together.Crew(count, tmp_path_factory.mktemp("crew")) for count in (2, 3)}
    yield made
    for crew in made.values():
        crew.close()


# what they send each other


def test_items_are_shared_out_in_order_and_evenly():
    for total in range(8):
        parts = [list(range(total))[Processes(rank, 3).part(total)] for rank in range(3)]
        assert [item for part in parts for item in part] == list(range(total))
        assert [len(part) for part in parts] == Processes(0, 3).counts(total)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("counts", [[2, 2, 2], [4, 0, 2], [0, 0, 1]])
def test_what_is_gathered_goes_back_as_a_sum(crews, counts):
    own = torch.arange(3.0 * sum(counts)).view(-1, 3)
    for found, part in zip(crews[3].all(together.exchanged, own, counts), own.split(counts), strict=True):
        assert torch.equal(found[0], own)
        assert torch.equal(found[1], 6 * part)
        assert found[2].item() == 2


# the loss


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("counts", [[3, 2], [5, 0], [2, 2, 1], [1, 4, 0]])
def test_the_shares_of_the_loss_and_its_gradients_sum_to_those_of_one_process(crews, counts, grouped):
    generator = torch.Generator().manual_seed(0)
    queries, candidates = (F.normalize(torch.randn(5, 8, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2))
    groups = torch.tensor([0, 1, 2, 0, 1]) if grouped else None
    leaves = [queries.clone().requires_grad_(), candidates.clone().requires_grad_(), torch.tensor(20.0).double().requires_grad_()]
    loss = info_nce(*leaves, group_ids=None if groups is None else (groups, groups))
    wanted = torch.autograd.grad(loss, leaves)
    found = crews[len(counts)].all(together.shares, queries, candidates, groups, counts)
    assert sum(f[0] for f in found).item() == pytest.approx(loss.item(), abs=1e-13)
    for i in (0, 1):
        assert torch.allclose(torch.cat([f[i + 1] for f in found]), wanted[i], rtol=0, atol=1e-13)
    assert sum(f[3] for f in found).item() == pytest.approx(wanted[2].item(), abs=1e-13)


# the step


def assert_the_same_step(found, wanted, within=2e-6):
    """Within what float32 can promise: logits are cosines times 100, so that one process too is that far from itself in other batches."""
    loss, gradients = wanted
    assert found[0].item() == pytest.approx(loss.item(), rel=within)
    assert {name for name, g in found[1].items() if g is not None} == {name for name, g in gradients.items() if g is not None}
    names = [name for name, g in gradients.items() if g is not None]
    whole = torch.cat([gradients[name].flatten() for name in names]).norm()
    assert whole > 0
    assert torch.cat([(found[1][name] - gradients[name]).flatten() for name in names]).norm() <= within * whole
    for name in names:
        assert (found[1][name] - gradients[name]).norm() <= 3 * within * gradients[name].norm() + 0.1 * within * whole, name


def assert_as_one_process(crews, cache, backbone, method, header, pairs, micro_batch=0, within=2e-6, **options):
    wanted = together.step(ALONE, cache, method, header, pairs, on=backbone, **options)
    for crew in crews.values():
        steps = crew.all(together.step, cache, method, header, pairs, micro_batch, **options)
        assert_the_same_step(steps[0], wanted, within)
        for other in steps[1:]:  # to the bit, or their weights would part
            assert torch.equal(other[0], steps[0][0])
            assert all(g is None if steps[0][1][name] is None else torch.equal(g, steps[0][1][name]) for name, g in other[1].items())


CASES = [
    ("cross-modal", "text-conditioned", 7, 0),
    ("cross-modal", "mean", 7, 0),
    ("cross-modal", "text-conditioned", 3, 0),  # a process of one pair each
    ("mv-adapter", None, 5, 2),  # micro-batches of two pairs in each process
    ("clip-adapter", None, 7, 0),  # on frozen embeddings
]
TRAINED_ALIKE = [name for name in METHODS if METHODS[name].extra_loss is METHODS["lora"].extra_loss]


@pytest.mark.parametrize(("method", "header", "pairs", "micro_batch"), CASES)
def test_a_step_has_the_loss_and_gradients_of_one_process(crews, cache, demo_backbone, method, header, pairs, micro_batch):
    assert_as_one_process(crews, cache, demo_backbone, method, header, pairs, micro_batch)


@pytest.mark.slow
@pytest.mark.parametrize("header", ["text-conditioned", "mean", "seqTransf"])
@pytest.mark.parametrize("method", TRAINED_ALIKE)
def test_a_step_of_every_method_has_the_gradients_of_one_process(crews, cache, demo_backbone, method, header):
    options = {"dropout": 0.0} if method == "clip-lora" else {}
    if method != "hada":  # whose second backbone stands in the test's own process alone
        # encoders round otherwise in batches of another size: some methods' own products carry that beyond 2e-6, in one process too
        assert_as_one_process(crews, cache, demo_backbone, method, header, 7, within=1e-5, **options)


def test_a_process_without_pairs_takes_its_part(crews, cache, demo_backbone):
    pairs = [(0, 0), (1, 0)]
    wanted = together.step(ALONE, cache, "cross-modal", "text-conditioned", 2, on=demo_backbone, pairs=pairs)
    for step in crews[3].all(together.step, cache, "cross-modal", "text-conditioned", 2, pairs=pairs):
        # two pairs tell each other apart, so that all of the gradient is one small exp of a difference of logits, and as uncertain as that
        assert_the_same_step(step, wanted, within=1e-5)


def test_a_methods_own_terms_are_those_of_each_process_by_its_part(crews, cache, demo_backbone):
    model, frames = together.model_of("disco", None, demo_backbone), FrameCache(cache)
    pairs, total = together.pairs_of(frames, 5), 0.0

    def terms(part):
        read = [torch.as_tensor([row for row, _ in part])]
        texts, (x, mask), groups = [frames.captions[row][i] for row, i in part], frames.read(read[0].numpy()), read[0]
        text, video = model.encode_text(texts), model.encode_frames(x, mask)
        own = contrastive_loss(model, text, video, mask, groups)
        return own, total_loss(model, texts, x, mask, groups) - own

    with torch.no_grad():
        total = terms(pairs)[0] + terms(pairs[:3])[1] * 3 / 5 + terms(pairs[3:])[1] * 2 / 5
    found = crews[2].all(together.step, cache, "disco", None, 5)
    assert found[0][0].item() == pytest.approx(total.item(), rel=1e-5)


def test_weights_begin_alike_and_noise_differs(crews, cache):
    found = crews[3].all(together.noise, cache)
    assert all(torch.equal(weights, found[0][0]) for weights, _ in found)
    assert len({tuple(draws.tolist()) for _, draws in found}) == 3


def test_each_reads_only_its_share_of_every_batch(crews, cache):
    found = crews[2].all(together.read_rows, cache, 4)
    for first, second in zip(*found, strict=True):
        assert (len(first), len(second)) == (2, 2)
    assert sorted(row for rows in (*found[0], *found[1]) for row in rows) == list(range(8))


# validation


@pytest.fixture(scope="module")
def two_batches(tmp_path_factory):
    """More videos than are embedded at once: a batch and two videos, so that one of three processes has none."""
    path = tmp_path_factory.mktemp("cache") / "val.h5"
    build_cache(demo_split("train", VIDEOS_AT_ONCE + 2), path, frames=2, sampling="uniform", size=32, workers=1)
    return path


@pytest.mark.parametrize(
    ("method", "header"),
    [("cross-modal", "text-conditioned"), pytest.param("cross-modal", "mean", marks=pytest.mark.slow), ("clip-adapter", None)],
)
def test_ranks_are_exactly_those_of_one_process(crews, two_batches, method, header):
    alone = together.ranks(ALONE, two_batches, method, header)
    assert len(alone[1]) == VIDEOS_AT_ONCE + 2
    assert alone[0].max() > 1
    for crew in crews.values():
        for found in crew.all(together.ranks, two_batches, method, header):
            assert all((a == b).all() for a, b in zip(found, alone, strict=True))


# a run


def weights(run):
    return [hashlib.sha256((run / part / "adapter_model.safetensors").read_bytes()).hexdigest() for part in ("best", "last")]


def test_a_run_is_written_once_and_one_that_was_stopped_ends_the_same(crews, cache, tmp_path):
    (whole, steps), *others = crews[2].all(together.run, cache, tmp_path / "whole", **SMALL)
    assert steps == [1, 2, 2, 3, 4, 4]  # the last step of an epoch twice: after it, and after its validation
    assert [(metrics["best_epoch"], reported) for metrics, reported in others] == [(whole["best_epoch"], [])]
    assert {p.name for p in (tmp_path / "whole").iterdir()} == {"best", "last", "config.json", "metrics.json", "log.jsonl"}
    assert json.loads((tmp_path / "whole/config.json").read_text())["processes"] == 2
    out = tmp_path / "stopped"
    for said, _ in crews[2].all(together.run, cache, out, stop_at=3, rank=1, **SMALL):  # the signal comes to one of them
        assert "Stopped by SIGTERM after step 3 of 4" in said
    tensors, state = read_checkpoint(out)
    assert state.step == 3
    assert not torch.equal(tensors["random.cpu"], tensors["random.cpu.1"])
    crews[2].all(together.run, cache, out, resume=True)
    assert weights(out) == weights(tmp_path / "whole")
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "step" in row] == [1, 2, 3, 4]


def test_a_run_can_be_gone_on_with_in_other_numbers(crews, cache, tmp_path, demo_backbone):
    out = tmp_path / "run"
    crews[2].all(together.run, cache, out, stop_at=1, **SMALL)
    crews[3].all(together.run, cache, out, stop_at=2, resume=True)
    trained = train(out=out, backbone=demo_backbone, resume=True)
    assert len(trained.metrics["epochs"]) == 2


@pytest.mark.parametrize(("videos", "count"), [(VIDEOS_AT_ONCE + 2, 3), (5, 2)])
def test_hard_negatives_are_those_of_one_process(crews, two_batches, videos, count):
    rows = list(range(videos))
    alone = together.negatives(ALONE, two_batches, rows, count)
    assert alone.shape == (videos, count)
    assert all(np.array_equal(found, alone) for found in crews[3].all(together.negatives, two_batches, rows, count))


# micro-batches


@pytest.mark.parametrize(
    ("method", "header"),
    [("cross-modal", "text-conditioned"), pytest.param("mv-adapter", "mean", marks=pytest.mark.slow), ("clip-adapter", None)],
)
def test_micro_batches_have_the_gradients_of_the_whole_batch(cache, demo_backbone, method, header):
    wanted = together.step(ALONE, cache, method, header, 7, on=demo_backbone)
    for size in (3, 6) if header == "text-conditioned" else (2,):
        assert_the_same_step(together.step(ALONE, cache, method, header, 7, size, on=demo_backbone), wanted)
    assert torch.equal(together.step(ALONE, cache, method, header, 7, 7, on=demo_backbone)[0], wanted[0])


def test_a_learnt_temperature_gets_its_gradient_too(cache, demo_backbone):
    whole, parts = (together.step(ALONE, cache, "full", "mean", 7, size, on=demo_backbone) for size in (0, 3))
    name = next(name for name in whole[1] if name.endswith("logit_scale"))
    assert whole[1][name].item() == pytest.approx(parts[1][name].item(), rel=2e-4)  # a sum that nearly cancels
    assert whole[1][name].abs() > 0


def test_both_passes_of_a_micro_batch_see_the_same_noise(cache, demo_backbone):
    """Dropout and dropped patches: the gradients are those of micro-batches that are held with their graphs, one after the other."""
    frames, model = FrameCache(cache), together.model_of("clip-lora", "mean", demo_backbone, dropout=0.5)
    model.patch_drop = 0.5
    pairs = together.pairs_of(frames, 5)
    rows = torch.tensor([row for row, _ in pairs])
    x, mask = frames.read(rows.numpy())
    torch.manual_seed(7)
    made = []
    for start in (0, 2, 4):
        part = slice(start, start + 2)
        video = model.encode_frames(x[part], mask[part])
        made.append((model.encode_text([frames.captions[row][i] for row, i in pairs[part]]), video))
    text, video = (torch.cat(parts) for parts in zip(*made, strict=True))
    loss = contrastive_loss(model, text, video, mask, rows)
    loss.backward()
    wanted = loss.detach(), {name: p.grad for name, p in model.trained.items()}
    found = together.step(ALONE, cache, "clip-lora", "mean", 5, 2, on=demo_backbone, dropout=0.5, patch_drop=0.5)
    assert_the_same_step(found, wanted)


def test_a_run_in_micro_batches_is_resumed_with_them(cache, demo_backbone, tmp_path):
    given = {"backbone": demo_backbone, **SMALL, "batch_size": 4, "micro_batch": 2}
    train(cache, tmp_path / "run", **given)
    assert json.loads((tmp_path / "run/config.json").read_text())["recipe"]["micro_batch"] == 2


@pytest.mark.parametrize("method", ["disco", "coupled"])
def test_own_terms_of_a_whole_batch_are_refused_in_micro_batches(cache, demo_backbone, tmp_path, method):
    with pytest.raises(UsageError, match=f"--micro-batch cannot be used with '{method}', whose own loss terms"):
        train(cache, tmp_path / "run", backbone=demo_backbone, method=method, micro_batch=2)
    with pytest.raises(UsageError, match=f"'{method}'"):
        train(cache, tmp_path / "run", backbone=demo_backbone, method="lora", plugs=[method], micro_batch=2)
    assert not Path(tmp_path / "run").exists()


def test_without_others_nothing_is_waited_for(cache, demo_backbone):
    trainer = Trainer(Retriever(demo_backbone), FrameCache(cache), FrameCache(cache).rows, Recipe(1, 4))
    assert trainer.processes.alone
    ALONE.wait()
    assert ALONE.say("é") == "é"
