"""One task of benchmarks/methods.py in a process of its own: python methods_worker.py TASK '{"row": ...}'. Prints JSON."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from measure import interleaved, resident_peak
from methods_rows import BY_NAME, Row, run_folder

from xmafast import Retriever, build_cache, load, load_backbone
from xmafast.cache import open_splits
from xmafast.datasets import default_root, demo, load_split
from xmafast.demo import pretrain
from xmafast.evaluation import rank_both, rank_cache
from xmafast.frozen_embeddings import FrozenEmbeddings
from xmafast.training import Recipe, fit, make_optimizer, train
from xmafast.training.loop import batch_loss

FOLDS, FOLD_SEED = 3, 0


def recipe(job: dict, attributes: Any, **changes: Any) -> Recipe:
    return Recipe(job["epochs"], int(attributes["batch_size"]), train_frames=int(attributes["train_frames"]), **changes)


def new(row: Row) -> Retriever:
    made = Retriever(load_backbone("demo"), row.method, row.header, plugs=row.plugs, **row.options)
    made.patch_drop = row.patch_drop
    return made


def r_sum(metrics: dict) -> float:
    return sum(value for side in metrics.values() for key, value in side.items() if key.startswith("R@"))


def cache(job: dict) -> dict:
    """The demo's caches, made once."""
    folder = Path(job["workspace"]) / "caches" / "demo"
    for name in ("train", "test"):
        split = load_split("demo", default_root("demo", Path(job["workspace"])), name)
        build_cache(split, folder / f"{name}.h5", sampling=demo.SAMPLING, size=demo.FRAME_SIZE)
    return {}


def tune(job: dict) -> dict:
    """R-sum of both directions on a third of the training clips, trained on the other two."""
    split = open_splits(Path(job["workspace"]) / "caches" / "demo")["train"]
    fold = np.sort(np.array_split(np.random.default_rng(FOLD_SEED).permutation(split.rows), FOLDS)[0])
    torch.manual_seed(0)
    retriever = new(BY_NAME[job["row"]])
    frozen = FrozenEmbeddings(retriever, split) if retriever.on_features else None
    try:
        settings = recipe(job, split.attributes, lr=job["lr"], hard_negatives=BY_NAME[job["row"]].hard_negatives)
        for _ in fit(retriever, split, np.setdiff1d(split.rows, fold), settings, frozen=frozen):
            pass
    except FloatingPointError:
        return {"r_sum": 0.0}
    metrics = rank_cache(retriever, split, fold, captions=1).metrics()
    return metrics | {"r_sum": r_sum(metrics)}


def train_one(job: dict) -> dict:
    """A whole `xmafast.train`, and the test clips' metrics."""
    row, folder = BY_NAME[job["row"]], Path(job["workspace"]) / "caches" / "demo"
    out = run_folder(Path(job["workspace"]), row.name, job["seed"])
    shutil.rmtree(out, ignore_errors=True)  # of a run that was cut short before its metrics were recorded
    given = {"method": row.method, "plugs": row.plugs, "header": row.header}
    given |= {"patch_drop": row.patch_drop, "hard_negatives": row.hard_negatives}
    trained = train(folder, out, **given, lr=job["lr"], seed=job["seed"], epochs=job["epochs"], **row.options)
    metrics = rank_cache(trained.retriever, open_splits(folder)["test"]).metrics()
    keys = ("best_epoch", "train_seconds", "trainable", "trainable_percent")
    return metrics | {key: trained.metrics[key] for key in keys} | {"lr": job["lr"]}


def forget(job: dict) -> dict:
    """R@1 over the held-out stills, both directions, before and after; the frozen model must give what its pretraining wrote."""
    folder = Path(job["stills"] or Path(job["workspace"]) / "stills")
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = held_out_stills(folder)
    backbone = load_backbone("demo")
    before = still_recall(Retriever(backbone, None, "mean"), images, labels)
    kept = json.loads((Path(pretrain.__file__).parent / "backbone" / "pretrain.json").read_text())["kept"]
    if any(abs(before[key] - kept[f"{key}_R@1"]) > 1 for key in before):
        sys.exit(f"the stills are not those that pretraining held out: {before}, not {kept}")
    found = {}
    for run in job["runs"]:
        name, _, seed = run.rpartition("/")
        after = still_recall(load(run_folder(Path(job["workspace"]), name, int(seed)), backbone), images, labels)
        found[run] = {"before": before, "after": after}
    return found


def held_out_stills(folder: Path) -> tuple[torch.Tensor, list[str]]:
    """(300, 1, 96, 96, 3) uint8, and their labels: drawn as `pretrain.main` draws them, after it has made its model."""
    pretrain.fetch_stills(folder)
    random.seed(0)
    torch.manual_seed(0)
    emoji, images = pretrain.read_stills(folder)
    held = pretrain.held_out(len(emoji), load_backbone("demo").clip.vocab_size)
    design = torch.arange(pretrain.HELD_OUT) % 2
    frames = (pretrain.on_white(images[held, design]) * 255).round().byte()
    return frames.permute(0, 2, 3, 1)[:, None].contiguous(), [emoji[i]["label"] for i in held.tolist()]


@torch.inference_mode()
def still_recall(retriever: Retriever, images: torch.Tensor, labels: list[str]) -> dict[str, float]:
    mask, own = torch.ones(len(images), 1, dtype=torch.bool), torch.arange(len(images))
    ranks = rank_both(retriever.eval(), retriever.encode_text(labels).float(), retriever.encode_frames(images, mask).float(), mask, own)
    metrics = ranks.metrics([1])
    return {"t2i": metrics["t2v"]["R@1"], "i2t": metrics["v2t"]["R@1"]}


def stepper(job: dict, row: Row) -> Callable[[], object]:
    """One training step on a fixed batch of the demo's size."""
    split = open_splits(Path(job["workspace"]) / "caches" / "demo")["train"]
    torch.manual_seed(0)
    retriever, settings = new(row).train(), recipe(job, split.attributes)
    rows = split.rows[: settings.batch_size]
    frames, mask = split.read(rows)
    frames, mask = frames[:, : settings.train_frames].contiguous(), mask[:, : settings.train_frames]
    texts, groups = [split.captions[r][0] for r in rows], torch.from_numpy(rows)
    optimizer, trained = make_optimizer(retriever, settings), list(retriever.trained.values())
    frozen = FrozenEmbeddings(retriever, split) if retriever.on_features else None  # computed once, and trained on
    if frozen is not None:
        frames = frozen.read(rows)[0][:, : settings.train_frames].contiguous()

    def step() -> None:
        loss = batch_loss(retriever, texts, frames, mask, groups, frozen)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.clip_norm)
        optimizer.step()

    return step


def times(job: dict) -> dict:
    runs = {name: stepper(job, BY_NAME[name]) for name in job["rows"]}
    return {"rows": {name: {"step": time} for name, time in interleaved(runs, "cpu", rounds=5).items()}, "machine": machine()}


def memory(job: dict) -> dict:
    """MB by which the process's peak of two steps exceeds what is resident with the backbone and the batch alone."""
    step = stepper(job, BY_NAME[job["row"]])
    before = resident_peak()
    step()
    step()
    return {"peak_mb": (resident_peak() - before) / 1e6}


TASKS = {"cache": cache, "tune": tune, "train": train_one, "forget": forget, "times": times, "memory": memory}

if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](json.loads(sys.argv[2]))))
