"""Training a method on a frozen backbone, from a frame cache."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmafast import __version__
from xmafast.backbone import Backbone, backbone_for
from xmafast.cache import FrameReader, open_splits
from xmafast.cache.lock import locked
from xmafast.embeddings import Progress
from xmafast.errors import CacheError, RunError, UsageError
from xmafast.evaluation import protocol, r_sum, rank_cache
from xmafast.files import is_scratch, write_atomically
from xmafast.fitting import RULE, fit_memory, remember
from xmafast.frozen import FrozenEmbeddings
from xmafast.headers import SeqTransf
from xmafast.losses import contrastive_loss, total_loss
from xmafast.methods import Plug
from xmafast.methods.memory import Memory
from xmafast.retriever import WEIGHTS, Retriever, best_device

VALIDATION_SHARE, VALIDATION_MOST = 0.1, 1000
WARMUP = 0.1
CONFIG, METRICS = "config.json", "metrics.json"  # a run's first file and its last
CHECKPOINT_RULE = "the epoch of highest R-sum (R@1 + R@5 + R@10, both directions) on the validation split"


@dataclass(frozen=True)
class Recipe:
    """How to optimise: AdamW with float32 masters, linear warm-up over 10 % of the steps, cosine decay to zero.

    Weight decay acts on weights, not on biases. A batch holds ``batch_size`` pairs of video and caption. With ``train_frames``,
    each step sees that many frames of each video, drawn anew and kept in order; 0 is all of them, as published. patch_drop: the share of
    each frame's patches that a step leaves out.
    """

    epochs: int = 5
    batch_size: int = 128
    lr: float = 1e-3
    train_frames: int = 0
    patch_drop: float = 0.0
    weight_decay: float = 0.2
    clip_norm: float = 1.0
    seed: int = 0

    def check(self) -> None:
        for option, low in (("epochs", 1), ("batch_size", 2), ("train_frames", 0)):
            if getattr(self, option) < low:
                raise UsageError(f"--{option.replace('_', '-')} must be at least {low}, not {getattr(self, option)}.")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"--lr must be above 0, not {self.lr}.")


@dataclass(frozen=True)
class Step:
    """One optimiser step: its number of ``steps`` and its epoch of ``epochs`` (both from 1), loss, gradient norm, learning rate."""

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    grad_norm: float
    lr: float


Metrics = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Trained:
    """What a training left: its folder, the retriever of its best epoch, and what is in ``metrics.json``."""

    folder: Path
    retriever: Retriever
    metrics: dict[str, Any]


def train(
    cache: str | Path,
    out: str | Path,
    *,
    method: str | None = "cross-modal",
    plugs: Sequence[Plug] = (),
    backbone: Backbone | str | None = None,
    pretrained: str | None = None,
    header: str | None = None,
    words: int = 32,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    train_frames: int | None = None,
    patch_drop: float = 0.0,
    seed: int = 0,
    impl: str = "auto",
    report: Callable[[Step, Metrics | None], None] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> Trained:
    """Train a method and write a run folder.

    What acts on final embeddings alone (a method on features, a header) is trained on those of the frozen backbone, from its embedding
    cache or computed once. A method that is fitted and not trained leaves a run of one epoch.

    cache: the folder of a data set's caches (with ``train.h5``) or one ``.h5`` file. out: the run's folder; it must not hold a finished
    run or anything else, and one that was interrupted is begun anew. backbone: one in memory or a name; None takes the cache's
    default. method: None trains the header alone, where it is one that trains. plugs: methods that act beside it.
    epochs, batch_size, lr, train_frames: None takes the data set's and the method's defaults. impl: which kernels run, ``auto``,
    ``eager`` or ``triton``. options: the method's, as ``bottleneck=8, shared=16``.

    The epoch that is kept as ``best/`` is chosen on the cache's ``val`` split or, where there is none, on a tenth of the
    training videos (at most 1,000, the same ones for every seed), never on test. ``last/`` is written after every epoch.
    report: called after each step, and after each epoch with the validation metrics. progress: (done, of, what), of what else takes
    time.

    Raises CacheError, UsageError, BackboneError; RunError where the loss is no longer a number.
    """
    cache, out = Path(cache), Path(out)
    _check_free(out)
    split = training_split(cache)
    attributes = split[0].attributes
    if not isinstance(backbone, Backbone):
        backbone = backbone_for(attributes, backbone, pretrained)
    torch.manual_seed(seed)
    options.setdefault("frames", split[0].shape[1])  # positions are made for so many
    retriever = Retriever(backbone, method, header, plugs=plugs, words=words, impl=impl, **options).to(best_device())
    if not retriever.kept:
        raise UsageError("There is nothing to train: without a method, name a header that trains (--header seqTransf).")
    named = _named_lr(attributes, retriever.method.name if retriever.method else retriever.header)
    recipe = Recipe(
        epochs=epochs if epochs is not None else int(attributes.get("epochs", Recipe.epochs)),
        batch_size=batch_size if batch_size is not None else int(attributes.get("batch_size", Recipe.batch_size)),
        lr=lr if lr is not None else named or (retriever.method or SeqTransf).default_lr,
        train_frames=train_frames if train_frames is not None else int(attributes.get("train_frames", Recipe.train_frames)),
        patch_drop=patch_drop,
        seed=seed,
    )
    recipe.check()
    retriever.patch_drop = recipe.patch_drop
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out):
        _empty_folder(out)
        return _run(retriever, recipe, cache, split, out, report, progress)


def _run(
    retriever: Retriever,
    recipe: Recipe,
    cache: Path,
    split: tuple[FrameReader, np.ndarray, FrameReader, np.ndarray],
    out: Path,
    report: Callable[[Step, Metrics | None], None] | None,
    progress: Callable[[int, int, str], None] | None,
) -> Trained:
    """Train, and write the run's folder, from its first file to its last."""
    train_cache, train_rows, val_cache, val_rows = split
    started = time.monotonic()
    frozen, val_frozen = _frozen(retriever, train_cache, val_cache, progress)
    if isinstance(retriever.method, Memory) and frozen:
        remember(retriever.method, frozen, train_cache, train_rows)
    _write_json(
        out / CONFIG,
        {
            "xmafast_version": __version__,
            "torch_version": torch.__version__,
            "cache": str(cache.resolve()),
            "train_videos": len(train_rows),
            "validation_videos": len(val_rows),
            "validation": "the cache's val split" if val_cache is not train_cache else "cut from train",
            "recipe": asdict(recipe),
            "impl": retriever.impl,
            **retriever.config(),
        },
    )
    history: list[dict[str, Any]] = []
    best, rule = -math.inf, CHECKPOINT_RULE
    fitted: dict[str, Any] = {}
    with (out / "log.jsonl").open("w", encoding="utf-8") as log:

        def record(row: dict[str, Any]) -> None:
            log.write(json.dumps(row) + "\n")
            log.flush()

        def stepped(step: Step) -> None:
            record(asdict(step))
            if report:
                report(step, None)

        def ended(epoch: int, validation: Metrics) -> None:
            nonlocal best
            history.append({"epoch": epoch, "validation": validation, "r_sum": r_sum(validation), "seconds": time.monotonic() - started})
            record(history[-1])
            retriever.save(out / "last")
            if history[-1]["r_sum"] > best:
                best = history[-1]["r_sum"]
                retriever.save(out / "best")

        if isinstance(retriever.method, Memory) and val_frozen:
            fitted = fit_memory(retriever, retriever.method, (val_frozen, val_cache, val_rows), record, progress)
            if not retriever.trained:
                rule = RULE.format(count=fitted["tried"])
                ended(1, fitted["validation"])
        try:
            for last_step in fit(retriever, train_cache, train_rows, recipe, stepped, frozen) if retriever.trained else ():
                validation = rank_cache(retriever, val_cache, val_rows, captions=1, frozen=val_frozen).metrics()
                ended(last_step.epoch, validation)
                if report:
                    report(last_step, validation)
        except FloatingPointError as error:
            raise RunError(f"{error} Try --lr {recipe.lr / 10:g}. {out / 'last'} holds the last whole epoch, if there was one.") from error
    kept = max(history, key=lambda row: row["r_sum"])
    metrics = {
        "checkpoint_rule": rule,
        **({"fitted": {key: fitted[key] for key in ("alpha", "beta", "tried")}} if fitted else {}),
        "best_epoch": kept["epoch"],
        "validation": kept["validation"],
        "epochs": history,
        "train_seconds": time.monotonic() - started,
        "protocol": protocol(retriever, val_cache),
        "trainable": retriever.trainable,
        "trainable_percent": 100 * retriever.trainable / retriever.backbone.shape.parameters,
    }
    _write_json(out / METRICS, metrics)
    retriever.restore(out / "best" / WEIGHTS)
    return Trained(out, retriever.eval(), metrics)


def _frozen(
    retriever: Retriever, train_cache: FrameReader, val_cache: FrameReader, progress: Callable[[int, int, str], None] | None
) -> tuple[FrozenEmbeddings | None, FrozenEmbeddings | None]:
    """(of the training cache, of the validation cache) the frozen embeddings, for what acts on them alone."""
    if not retriever.on_features:
        return None, None
    shown: Progress | None = None if progress is None else lambda done, total: progress(done, total, "frames to embeddings, once")
    frozen = FrozenEmbeddings(retriever, train_cache, shown)
    return frozen, frozen if val_cache is train_cache else FrozenEmbeddings(retriever, val_cache, shown)


def fit(
    retriever: Retriever,
    cache: FrameReader,
    rows: np.ndarray,
    recipe: Recipe,
    stepped: Callable[[Step], None] | None = None,
    frozen: FrozenEmbeddings | None = None,
) -> Iterator[Step]:
    """Train a retriever's method and header on rows of a cache; yields the last step of each epoch, to validate or to stop.

    frozen: the cache's frozen embeddings, where all that is trained acts on them; the backbone is not run then.

    Raises FloatingPointError, naming the step and its videos, where the loss or its gradient is no longer a number.
    """
    each = cache.attributes.get("captions_per_epoch") == "all"
    pairs = [(int(row), i) for row in rows for i in range(len(cache.captions[row]))] if each else None
    steps = recipe.epochs * len(_epoch_batches(cache, rows, pairs, recipe.batch_size, np.random.default_rng()))
    generator = np.random.default_rng(recipe.seed)
    optimizer = _optimizer(retriever, recipe)
    trained = list(retriever.trained.values())
    step = 0
    for epoch in range(1, recipe.epochs + 1):
        retriever.train()
        for batch in _epoch_batches(cache, rows, pairs, recipe.batch_size, generator):
            lr = recipe.lr * _schedule(step, steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss = _loss(retriever, cache, batch, recipe.train_frames, generator, frozen)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(trained, recipe.clip_norm))
            value = loss.item()
            step += 1
            if not (math.isfinite(value) and math.isfinite(norm)):
                ids = ", ".join(cache.ids[row] for row, _ in batch[:8])
                raise FloatingPointError(
                    f"The loss became {value} (gradient norm {norm:g}) in step {step} of {steps}, on the videos {ids}, …."
                )
            optimizer.step()
            done = Step(step, steps, epoch, recipe.epochs, value, norm, lr)
            if stepped:
                stepped(done)
        yield done


def training_split(folder: Path) -> tuple[FrameReader, np.ndarray, FrameReader, np.ndarray]:
    """(training cache, its rows, validation cache, its rows). Raises CacheError where there is nothing to train on."""
    splits = open_splits(folder)
    if "train" not in splits:
        raise CacheError(f"{folder} has no train split (it has: {', '.join(splits)}); cache one with --split train.")
    cache = splits["train"]
    rows = np.array([row for row in cache.rows if cache.captions[row]], dtype=np.int64)
    if "val" in splits:
        val = splits["val"]
        val_rows = np.array([row for row in val.rows if val.captions[row]], dtype=np.int64)
    else:
        val = cache
        order = sorted(rows, key=lambda row: hashlib.sha256(cache.ids[row].encode("utf-8")).digest())
        n = min(VALIDATION_MOST, math.ceil(len(rows) * VALIDATION_SHARE))
        val_rows = np.array(sorted(order[:n]), dtype=np.int64)
        rows = np.setdiff1d(rows, val_rows)
    if len(rows) < 2 or not len(val_rows):
        raise CacheError(
            f"{cache.path} has {len(rows)} decoded videos with captions to train on and {len(val_rows)} to validate with; "
            "at least 2 and 1 are needed. Put the missing videos in place and cache again."
        )
    return cache, rows, val, val_rows


Batch = list[tuple[int, int]]  # (row, caption of the row)


def _epoch_batches(
    cache: FrameReader, rows: np.ndarray, pairs: Batch | None, batch_size: int, generator: np.random.Generator
) -> list[Batch]:
    """One epoch in random order: every pair, or every video with one caption drawn. A last batch of one joins the one before."""
    if pairs is None:
        pairs = [(row, int(generator.integers(len(cache.captions[row])))) for row in rows]
    order = generator.permutation(len(pairs))
    batches = [[pairs[i] for i in order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        single = batches.pop()
        batches[-1] += single
    return batches


def _loss(
    retriever: Retriever,
    cache: FrameReader,
    batch: Batch,
    train_frames: int,
    generator: np.random.Generator,
    frozen: FrozenEmbeddings | None = None,
) -> Tensor:
    """The loss of a batch, its frames drawn."""
    rows = np.array([row for row, _ in batch])
    frames, mask = (cache if frozen is None else frozen).read(rows)
    if 0 < train_frames < frames.shape[1]:
        drawn = torch.from_numpy(_draw_frames(cache.num_frames[rows], frames.shape[1], train_frames, generator)).to(frames.device)
        frames, mask = frames[torch.arange(len(rows), device=frames.device)[:, None], drawn], mask.gather(1, drawn)
    texts = [cache.captions[row][caption] for row, caption in batch]
    if frozen is None:
        return total_loss(retriever, texts, frames, mask, torch.from_numpy(rows))
    video, text = retriever.on_frames(frames, mask), retriever.on_text(frozen.text(texts))
    return contrastive_loss(retriever, text.float(), video.float(), mask, torch.from_numpy(rows).to(text.device))


def _draw_frames(real: np.ndarray, total: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """For each video ``count`` of its ``total`` frames in order, real ones first: (B,) -> (B, count)."""
    keys = generator.random((len(real), total)) + (np.arange(total) >= real[:, None])
    return np.sort(np.argpartition(keys, count - 1, axis=1)[:, :count], axis=1)


def _named_lr(attributes: Mapping[str, Any], method: str) -> float:
    """The rate that a data set was found to want for a method, or for the one that plugs stand beside; 0 for none."""
    rates = attributes.get("lr", 0.0)
    known = json.loads(rates) if isinstance(rates, str) else {"cross-modal": float(rates)}  # caches once named a single one
    return float(known.get(method.partition("+")[0], 0.0))


def _optimizer(retriever: Retriever, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = list(retriever.trained.values())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-8)


def _schedule(step: int, steps: int) -> float:
    """The share of the peak learning rate in a 0-based step."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _check_free(out: Path) -> None:
    """Raise UsageError unless ``out`` is new, empty, or a run that was interrupted: nothing else is ever overwritten."""
    interrupted = (out / CONFIG).is_file() and not (out / METRICS).exists()
    if out.exists() and (not out.is_dir() or not (interrupted or all(is_scratch(entry) for entry in out.iterdir()))):
        raise UsageError(f"{out} exists already; name another --out, so that no run is overwritten.")


def _empty_folder(out: Path) -> None:
    """An empty folder for a run, which says from its first moment on that it is one."""
    _check_free(out)  # again, now that no other process can be at work in it
    out.mkdir(exist_ok=True)
    for entry in [*(e for e in out.iterdir() if e.name != CONFIG), out / CONFIG]:
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _write_json(path: Path, value: object) -> None:
    write_atomically(path, lambda partial: partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))
