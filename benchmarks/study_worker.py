"""One job of benchmarks/study.py. Every task returns what is recorded: per-query results, so that any interval can be made of them.

A training takes the last of its epochs, whose number is fixed: nothing is selected, on no split.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import motion
import numpy as np
import torch
from measure import resident_peak
from study_plan import ROWS, Job, Row, Size, rates, row_of
from study_stills import test_stills

from xmafast import Backbone, Retriever, build_cache, load, load_backbone
from xmafast.cache import FeatureCache, FrameCache, build_features
from xmafast.datasets import default_root, demo, load_split
from xmafast.evaluation import Embedded, embed, rank_both, rank_cache
from xmafast.frozen_embeddings import FrozenEmbeddings
from xmafast.ranks import Ranks, r_sum, scores_of
from xmafast.text_prefix import text_prefix
from xmafast.training import Recipe, make_optimizer
from xmafast.training.loop import Trainer, batch_loss

FOLDS, ORDER_SEED = 5, 0
TEST = "test"


class Bench:
    """Where a study works. workspace: caches and trained adapters. stills, unseen: folders that some parts need."""

    def __init__(self, workspace: Path, size: Size, stills: Path | None = None, unseen: Path | None = None) -> None:
        self.workspace, self.size, self.stills, self.unseen = Path(workspace), size, stills, unseen

    def prepare(self) -> None:
        """Make the caches, once, before any job."""
        size, folder = self.size, self.caches
        build_cache(self._all_clips(), folder / "demo.h5", sampling=demo.SAMPLING, size=demo.FRAME_SIZE, frames=size.demo_frames)
        motion.build(folder / "motion", dict(zip(("train", "val", "test"), size.motion, strict=True)))

    def prepare_tokens(self) -> None:
        """What the motion task is trained from, once: tokens before each block that a row adapts first, and frozen embeddings."""
        backbone = the_backbone("demo")
        models = [new(row, backbone, motion.FRAMES, 0) for row in ROWS["motion"] if row.trained]
        if on_features := [model for model in models if model.on_features]:
            FrozenEmbeddings(on_features[0], self.motion("train"))  # kept beside the cache; two jobs must not make it at once
        for block in sorted({model.adapted.first_vision for model in models} - {0}):
            build_features(self.motion("train"), self.token_file(block), backbone, level="tokens", block=block)

    def tokens_for(self, retriever: Retriever) -> FeatureCache | None:
        """What the motion task is trained from; None: the frames, or their embeddings."""
        file = self.token_file(retriever.adapted.first_vision)
        return FeatureCache(file) if file.is_file() and not retriever.on_features else None

    def _all_clips(self) -> Any:
        """Training and test clips in one split, every one with the captions of a training clip."""
        root = default_root("demo", self.workspace)
        train = load_split("demo", root, "train")
        videos = list(train.videos)
        with (demo.ROOT / "captions.jsonl").open(encoding="utf-8") as lines:
            rows = {row["id"]: row for row in map(json.loads, lines)}
        for video in load_split("demo", root, TEST).videos:
            tags = ", ".join(rows[video.id]["tags"])
            label = video.captions[0]
            videos.append(replace(video, captions=(label, tags, f"{label}, {tags}") if tags else (label,)))
        if self.size.demo_clips < len(videos):  # as many of either kind in proportion, to see that it runs
            few = self.size.demo_clips
            videos = videos[: few - few // 4] + videos[-(few // 4) :]
        return replace(train, name="all", videos=videos)

    @property
    def caches(self) -> Path:
        sizes = json.dumps(self.size.as_json(), sort_keys=True).encode()
        return self.workspace / "caches" / hashlib.sha256(sizes).hexdigest()[:8]

    def token_file(self, block: int) -> Path:
        return self.caches / "motion" / f"tokens-{block}" / "train.h5"

    def demo(self) -> FrameCache:
        return opened(self.caches / "demo.h5")

    def motion(self, split: str) -> FrameCache:
        return opened(self.caches / "motion" / f"{split}.h5")

    def demo_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """(training rows, test rows) of the fixed split."""
        with (demo.ROOT / "captions.jsonl").open(encoding="utf-8") as lines:
            tests = {row["id"] for row in map(json.loads, lines) if row["split"] == TEST}
        own = np.array([name in tests for name in self.demo().ids])
        return np.flatnonzero(~own), np.flatnonzero(own)


@cache
def opened(path: Path) -> FrameCache:
    return FrameCache(path)


@cache
def the_backbone(name: str) -> Backbone:
    return load_backbone(name)


def run(job: Job, bench: Bench, known: dict[str, Any]) -> dict[str, Any]:
    """known: what was recorded of earlier stages and is needed, as the motion task's rates."""
    return TASKS[job.task](job, bench, known)


def begin(threads: int) -> None:
    """Of a process that runs jobs."""
    torch.set_num_threads(threads)


def new(row: Row, backbone: Backbone, frames: int, seed: int) -> Retriever:
    torch.manual_seed(seed)
    options = {"frames": frames, **row.options} if row.method == "mv-adapter" else row.options
    return Retriever(backbone, row.method, row.header, plugs=row.plugs, at_blocks=row.at_blocks, **options)


def fitted(
    retriever: Retriever, frames: FrameCache, rows: np.ndarray, recipe: Recipe, tokens: FeatureCache | None = None
) -> Iterator[tuple[int, float]]:
    """Train; yields (steps done, loss) after each. With ``tokens`` the vision blocks below the adapted ones are not run."""
    retriever.text_prefix = text_prefix(retriever, list(dict.fromkeys(caption for row in rows for caption in frames.captions[row])))
    frozen = FrozenEmbeddings(retriever, frames) if retriever.on_features else None
    try:
        with closing(Trainer(retriever, frames, rows, recipe, frozen, tokens=tokens).run()) as steps:
            for step in steps:
                yield step.step, step.loss
    finally:
        retriever.text_prefix = None


def trained(job: Job, bench: Bench, known: dict[str, Any]) -> dict[str, Any]:
    """Train a row, and rank the clips that it is tested on."""
    row, size = row_of(job.part, job.row), bench.size
    retriever, lr, seconds = _trained(job, row, bench, known)
    found = {"trainable": retriever.trainable, "percent": 100 * retriever.trainable / retriever.backbone.shape.parameters}
    found |= {"lr": lr, "cpu_seconds": round(seconds, 1)}
    if job.part == "motion":
        return found | motion_result(retriever, bench.motion(TEST))
    if job.part == "stills":
        assert bench.stills is not None
        images, labels = test_stills(bench.stills)
        if size.demo_clips < 600:
            images, labels = images[: size.demo_clips], labels[: size.demo_clips]
        return found | as_record(image_ranks(retriever, images, labels))
    return found | as_record(rank_cache(retriever, bench.demo(), _rows(job, bench)[1], captions=1))


def _trained(job: Job, row: Row, bench: Bench, known: dict[str, Any]) -> tuple[Retriever, float | None, float]:
    """(the model, its rate, seconds of CPU that training took), and its adapter kept where another part swaps it."""
    size = bench.size
    backbone = the_backbone(str(bench.unseen) if job.part == "unseen" else "demo")
    retriever = new(row, backbone, motion.FRAMES if job.part == "motion" else size.demo_frames, job.seed)
    if not row.trained:
        return retriever.eval(), None, 0.0
    lr = rate(job, row, known, size)
    frames, tokens = bench.demo(), None
    if job.part == "motion":
        frames = bench.motion("train")
        recipe = Recipe(size.motion_epochs, size.motion_batch, lr, seed=job.seed)
        tokens = bench.tokens_for(retriever)
    elif job.part == "stills":
        recipe = Recipe(size.still_epochs, size.batch, lr, train_frames=1, seed=job.seed)
    else:
        recipe = Recipe(size.demo_epochs, size.batch, lr, train_frames=size.train_frames, seed=job.seed)
    rows = frames.rows if job.part == "motion" else _rows(job, bench)[0]
    began = time.process_time()
    for _ in fitted(retriever, frames, rows, recipe, tokens):
        pass
    seconds = time.process_time() - began
    if job.part in ("demo", "motion") and row.method == "mv-adapter":
        retriever.save(adapter_folder(bench, job.part, job.seed))
    return retriever.eval(), lr, seconds


def _rows(job: Job, bench: Bench) -> tuple[np.ndarray, np.ndarray]:
    """(trained on, tested on) of the demo's clips."""
    if job.part != "folds":
        return bench.demo_rows()
    rows = bench.demo().rows
    fold = np.sort(np.array_split(np.random.default_rng(ORDER_SEED).permutation(rows), FOLDS)[job.seed % FOLDS])
    return np.setdiff1d(rows, fold), fold


def rate(job: Job, row: Row, known: dict[str, Any], size: Size) -> float:
    assert row.rate is not None
    demo_rate = rates()[row.rate]
    if job.part != "motion":
        return demo_rate
    keys = {factor: f"motion-lr/{row.name}/{factor:.3g}" for factor in size.rates}
    if missing := [key for key in keys.values() if key not in known]:
        raise RuntimeError(f"{missing[0]} is not recorded; run the part motion first")
    tried = {factor: known[key]["r_sum"] for factor, key in keys.items()}
    return demo_rate * max(tried, key=lambda factor: tried[factor])


def motion_rate(job: Job, bench: Bench, known: dict[str, Any]) -> dict[str, Any]:
    """R-sum on the motion task's validation clips after a short training with one rate."""
    row, size = row_of(job.part, job.row), bench.size
    assert row.rate is not None
    lr = rates()[row.rate] * dict(job.extra)["factor"]
    retriever = new(row, the_backbone("demo"), motion.FRAMES, 0)
    tokens = bench.tokens_for(retriever)
    frames = bench.motion("train")
    try:
        for _ in fitted(retriever, frames, frames.rows, Recipe(size.motion_tune_epochs, size.motion_batch, lr), tokens):
            pass
    except FloatingPointError:
        return {"lr": lr, "r_sum": 0.0}
    return {"lr": lr, "r_sum": round(r_sum(rank_cache(retriever.eval(), bench.motion("val")).metrics()), 3)}


def curve(job: Job, bench: Bench, known: dict[str, Any]) -> dict[str, Any]:
    """R@1, text to video, of clips that are trained on and of clips that are not, in groups of as many, as training goes on."""
    row, size, clips = row_of(job.part, job.row), bench.size, int(dict(job.extra)["clips"])
    assert row.rate is not None
    train, test = bench.demo_rows()
    order = np.random.default_rng([ORDER_SEED, job.seed])
    rows = np.sort(order.permutation(train)[:clips])
    many = min(size.watched, len(rows), len(test) // 2)
    seen = [np.sort(order.permutation(rows)[:many])]
    unseen = [np.sort(part) for part in np.split(order.permutation(test)[: 2 * many], 2)]
    batch = min(32, size.batch)
    epochs = max(1, round(size.steps / -(-len(rows) // batch)))
    retriever = new(row, the_backbone("demo"), size.demo_frames, job.seed)
    recipe = Recipe(epochs, batch, rates()[row.rate], train_frames=size.train_frames, seed=job.seed)
    points: list[dict[str, float]] = []

    def measured(step: int, loss: float | None) -> None:
        point = {"step": step} if loss is None else {"step": step, "loss": round(loss, 4)}
        for name, groups in (("seen", seen), ("unseen", unseen)):
            found = [rank_cache(retriever.eval(), bench.demo(), group, captions=1).metrics([1])["t2v"]["R@1"] for group in groups]
            point[name] = round(float(np.mean(found)), 3)
        points.append(point)

    measured(0, None)
    last = 0, 0.0
    for done, loss in fitted(retriever, bench.demo(), rows, recipe):
        last = done, loss
        if done in size.points:
            prefix, retriever.text_prefix = retriever.text_prefix, None
            measured(done, loss)
            retriever.text_prefix = prefix
    if points[-1]["step"] != last[0]:
        measured(*last)
    return {"points": points, "candidates": many, "lr": recipe.lr}


def swap(job: Job, bench: Bench, known: dict[str, Any]) -> dict[str, Any]:
    """Adapters of two data sets in turn on one backbone: each on both, and the first one again, which must give the same ranks."""
    backbone = the_backbone("demo")
    folders = {}
    for name in ("demo", "motion"):
        folders[name] = adapter_folder(bench, name, job.seed)
        if not (folders[name] / "adapter_config.json").is_file():  # of a workspace that is gone
            own = Job("", name, "trained", job.row, job.seed)
            _trained(own, row_of(name, job.row), bench, known)
    found: dict[str, Any] = {"backbone_bytes": sum(p.numel() for p in backbone.clip.parameters()) * 4}
    ranks: dict[str, Ranks] = {}
    for adapter in ("demo", "motion", "again"):
        folder = folders["demo" if adapter == "again" else adapter]
        retriever = load(folder, backbone).eval()
        ranks[f"{adapter} on demo"] = rank_cache(retriever, bench.demo(), bench.demo_rows()[1], captions=1)
        if adapter != "again":
            found[f"{adapter} on motion"] = motion_result(retriever, bench.motion(TEST))
            found[f"{adapter}_bytes"] = sum(file.stat().st_size for file in folder.iterdir())
    again = ranks.pop("again on demo")
    same = all(np.array_equal(getattr(again, side), getattr(ranks["demo on demo"], side)) for side in ("t2v", "v2t"))
    return found | {name: as_record(value) for name, value in ranks.items()} | {"same_again": same}


def adapter_folder(bench: Bench, part: str, seed: int) -> Path:
    return bench.caches / "adapters" / f"{part}-{seed}"


def memory(job: Job, bench: Bench, known: dict[str, Any]) -> dict[str, Any]:
    """MB of a training step, in a process of its own."""
    arguments = [job.row, str(bench.workspace), json.dumps(bench.size.as_json())]
    done = subprocess.run([sys.executable, __file__, *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{job.key} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_of_step(name: str, workspace: Path, size: Size) -> dict[str, float]:
    """MB by which the process's peak of two steps exceeds what is resident with the backbone and the batch alone."""
    torch.set_num_threads(1)
    bench = Bench(workspace, size)
    retriever = new(row_of("memory", name), the_backbone("demo"), size.demo_frames, 0).train()
    frames = bench.demo()
    rows = bench.demo_rows()[0][: size.batch]
    pixels, mask = frames.read(rows)
    texts, groups = [frames.captions[row][0] for row in rows], torch.from_numpy(rows)
    optimizer = make_optimizer(retriever, Recipe())
    before = resident_peak()
    for _ in range(2):
        loss = batch_loss(retriever, texts, pixels, mask, groups)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return {"peak_mb": round((resident_peak() - before) / 1e6, 1), "clips": len(rows), "frames": pixels.shape[1]}


def as_record(ranks: Ranks) -> dict[str, list[float]]:
    """Ranks of every query, halves where candidates tie."""
    return {side: [int(rank) if rank == int(rank) else float(rank) for rank in getattr(ranks, side)] for side in ("t2v", "v2t")}


@torch.inference_mode()
def image_ranks(retriever: Retriever, images: torch.Tensor, labels: list[str]) -> Ranks:
    mask, own = torch.ones(len(images), 1, dtype=torch.bool), torch.arange(len(images))
    return rank_both(retriever, retriever.encode_text(labels).float(), retriever.encode_frames(images, mask).float(), mask, own)


@torch.inference_mode()
def motion_result(retriever: Retriever, frames: FrameCache) -> dict[str, Any]:
    """Ranks, and for each caption whose clip has a twin whether the clip scores above it: 1, 0, or 0.5 where they tie."""
    e = embed(retriever, frames, captions=1)
    ranks = rank_both(retriever, e.text, e.frames, e.mask, e.video_of)
    return as_record(ranks) | {"twins": told_apart(retriever, e, [frames.ids[row] for row in e.rows])}


def told_apart(retriever: Retriever, e: Embedded, ids: list[str]) -> list[float | None]:
    """None for a caption whose clip has no twin."""
    scores = scores_of(retriever, e.text, e.frames, e.mask)
    table = scores.tile(slice(0, scores.shape[0]), slice(0, scores.shape[1]))
    place = {name: i for i, name in enumerate(ids)}
    found: list[float | None] = []
    for i, name in enumerate(ids):
        twin = place.get(motion.twin_of(name) or "")
        found.append(None if twin is None else float(np.sign(float(table[i, i] - table[i, twin])) + 1) / 2)
    return found


TASKS: dict[str, Callable[[Job, Bench, dict[str, Any]], dict[str, Any]]] = {
    "trained": trained,
    "rate": motion_rate,
    "curve": curve,
    "swap": swap,
    "memory": memory,
}

if __name__ == "__main__":
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(sys.argv[3]).items()}
    print(json.dumps(peak_of_step(sys.argv[1], Path(sys.argv[2]), Size(**given))))
