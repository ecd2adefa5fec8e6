"""A whole training, from a cache to a run folder, and from a run that was interrupted to its end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from xmafast.backbone import Backbone
from xmafast.cache import FeatureCache
from xmafast.cache.lock import locked
from xmafast.distributed import Lost, Processes, joined, orphaned
from xmafast.embeddings import Progress
from xmafast.errors import RunError, UsageError
from xmafast.evaluation import protocol, r_sum
from xmafast.frozen_embeddings import FrozenEmbeddings
from xmafast.methods import Plug
from xmafast.methods.memory import Memory
from xmafast.retriever import WEIGHTS, Retriever
from xmafast.text_prefix import TextPrefix, text_prefix
from xmafast.training.checkpoint import (
    CHECKPOINT,
    Cadence,
    State,
    full_disk_told,
    read_checkpoint,
    resume_command,
    write_checkpoint,
)
from xmafast.training.folder import check_free, clear_scratch, empty_folder, write_json
from xmafast.training.gradients import check_micro_batch
from xmafast.training.log import LOG, Log, NoLog, Profile, TensorBoard, peak_memory, require_tensorboard
from xmafast.training.loop import Diverged, Step, Trainer
from xmafast.training.memory_fit import RULE, fit_memory, remember
from xmafast.training.recipe import Recipe
from xmafast.training.settings import (
    CONFIG,
    METRICS,
    UNSET,
    Settings,
    Unset,
    begin_with,
    build,
    check_same,
    config_of,
    read_config,
    settings_of_adapter,
    settings_of_run,
)
from xmafast.training.split import Split, training_split
from xmafast.training.stopping import Interrupted, Stop, StopSignals
from xmafast.training.tokens import check_tokens, resumed_tokens, tokens_for
from xmafast.training.validation import Metrics, mean_of, validate

CHECKPOINT_RULE = "the epoch of highest R-sum (R@1 + R@5 + R@10, both directions) on the validation split"

CAPTIONS_AT_ONCE = 256
SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO = 2.0  # seconds

Report = Callable[[Step, Metrics | None], None]
Shown = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Trained:
    """What a training left: its folder, the retriever of its best epoch, and what is in ``metrics.json``."""

    folder: Path
    retriever: Retriever
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Watch:
    """How a run is watched, which changes nothing in what it leaves."""

    report: Report | None = None
    progress: Shown | None = None
    tensorboard: bool = False
    profile: bool = False
    tell: Callable[[str], None] | None = None


def train(
    cache: str | Path | Sequence[str | Path] | None = None,
    out: str | Path | None = None,
    *,
    method: str | Unset | None = UNSET,
    plugs: Sequence[Plug] | None = None,
    backbone: Backbone | str | None = None,
    pretrained: str | None = None,
    header: str | None = None,
    words: int | None = None,
    at_blocks: str | None = None,
    cache_tokens: bool | None = None,
    recipe: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    micro_batch: int | None = None,
    lr: float | None = None,
    train_frames: int | None = None,
    patch_drop: float | None = None,
    seed: int | None = None,
    patience: int | None = None,
    hard_negatives: int | None = None,
    impl: str | None = None,
    checkpointing: bool | None = None,
    stream: str | Path | None = None,
    resume: bool = False,
    init: str | Path | None = None,
    save_every: str = "60s",
    report: Report | None = None,
    progress: Shown | None = None,
    tell: Callable[[str], None] | None = None,
    tensorboard: bool = False,
    profile: bool = False,
    **options: Any,
) -> Trained:
    """Train a method and write a run folder (docs/training.md).

    What acts on final embeddings alone (a method on features, a header) is trained on those of the frozen backbone, from its embedding
    cache or computed once. A method that is fitted and not trained leaves a run of one epoch.

    cache: the folder of a data set's caches (with ``train.h5``) or one ``.h5`` file, or several: one adapter is trained on all of them,
    each batch on one, and the epoch is kept whose R-sum is highest on average. out: the run's folder; it must not hold a finished
    run or anything else, and one that was interrupted is begun anew. backbone: one in memory or a name; None takes the cache's
    default. method: ``cross-modal`` where none is named; None trains the header alone, where it is one that trains. plugs: methods that
    act beside it. words: the most tokens of a caption, 32.

    at_blocks: ``all``, or ``last:K`` to adapt the last K vision blocks and the text blocks that pair with them alone. cache_tokens: what a
    run on the last blocks trains from; None takes the token cache where it is there and fits, True makes it where it is not, False trains
    from the frames. recipe: ``default``, or ``paper`` for the method's published one on the data set (``xmafast.training.recipes``), which
    fills in what is not said, the backbone too.

    epochs, batch_size, lr, train_frames: None takes the data set's and the method's defaults. micro_batch: how many pairs of a batch are
    held with their graph at once; the gradients are those of the whole batch (``xmafast.training.gradients``). hard_negatives: of the
    videos that the model takes for one, at the beginning of an epoch, how many are put into its batch; 0, the default, draws batches at
    random (``xmafast.training.negatives``). patience: ends after that many epochs without a better R-sum on validation. impl: which
    kernels run, ``auto``, ``eager`` or ``triton``. checkpointing: run blocks again in the backward pass, in less memory. stream: the file
    of another stream's features (``xmafast.StreamFile``), for a method that reads one. options: the method's, as ``bottleneck=8,
    shared=16``.

    The epoch that is kept as ``best/`` is chosen on the cache's ``val`` split or, where there is none, on a tenth of the
    training videos (at most 1,000, the same ones for every seed), never on test. ``last/`` is written after every epoch.

    resume: go on with the run in ``out`` from its last checkpoint, or from its beginning where it has none; what is not given is taken
    from its ``config.json``, and what is given must be what it was begun with. On a CPU it ends with the weights that it would have had
    without the interruption, to the bit. save_every: how often a checkpoint is written beside each epoch's, seconds as ``60s`` or steps as
    ``200``. init: a run whose weights this new one begins with; its model is the default. SIGTERM and SIGINT end the training with its
    step, save, and raise Interrupted.

    In processes that ``torchrun`` or ``xmafast.launch`` has started, each takes its share of every batch, and of each validation; the
    first one alone writes the folder, which all of them see, and calls ``report`` and ``progress`` (docs/scaling.md).

    report: called after each step, and after each epoch with the validation metrics. progress: (done, of, what), of what else takes
    time. tell: called with a sentence, on what is taken or could be. tensorboard: write event files too. profile: write a trace of a few
    steps for Chrome's viewer.

    Raises CacheError, UsageError, BackboneError; RunError where the loss is no longer a number, the disk is full, or there is no run to
    resume.
    """
    cadence = Cadence(save_every)
    if tensorboard:
        require_tensorboard()
    if out is None:
        raise UsageError("A training needs a folder for its run: out.")
    out = Path(out)
    given = {
        "epochs": epochs,
        "batch_size": batch_size,
        "micro_batch": micro_batch,
        "lr": lr,
        "train_frames": train_frames,
        "patch_drop": patch_drop,
        "seed": seed,
        "patience": patience,
        "hard_negatives": hard_negatives,
        "recipe": recipe,
    }
    settings = Settings(
        method=method,
        plugs=plugs,
        options=options,
        header=header,
        words=words,
        backbone=backbone,
        pretrained=pretrained,
        impl=impl,
        checkpointing=checkpointing,
        init=None if init is None else str(Path(init).resolve()),
        stream=None if stream is None else str(Path(stream).resolve()),
        recipe={name: value for name, value in given.items() if value is not None},
        at_blocks=at_blocks,
        tokens=cache_tokens,
    )
    with joined() as processes:
        watch = Watch(report, progress, tensorboard, profile, tell) if processes.first else Watch()
        return _train(out, cache, settings, resume, watch, cadence, processes)


def _train(
    out: Path,
    cache: str | Path | Sequence[str | Path] | None,
    settings: Settings,
    resume: bool,
    watch: Watch,
    cadence: Cadence,
    processes: Processes,
) -> Trained:
    """``train``, as one of the processes that do it."""
    stored: dict[str, Any] | None = None
    if resume:
        stored = read_config(out)
        settings = settings.over(settings_of_run(stored, out), f"The run {out}")
        cache = stored["cache"] if cache is None else cache
    else:
        if processes.first:
            check_free(out)
        if settings.init is not None:
            settings = settings.over(settings_of_adapter(settings.init), f"The run {settings.init}")
    if cache is None:
        raise UsageError("A training needs a cache: the folder of a data set's caches, or one .h5 file.")
    caches = [Path(cache)] if isinstance(cache, (str, Path)) else [Path(path) for path in cache]
    split = training_split(caches)
    if stored is None:
        settings = settings.as_published(split)
    torch.manual_seed(int(settings.recipe.get("seed", Recipe.seed)))
    retriever, chosen = build(settings, split)
    if settings.tokens and stored is None:
        check_tokens(retriever, split.cache)
    if chosen.micro_batch:
        check_micro_batch(retriever)
    if settings.init is not None and not (resume and (out / CHECKPOINT).is_file()):
        begin_with(retriever, settings.init)
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out) if processes.first else nullcontext(), full_disk_told(out):
        if not processes.first:
            pass
        elif stored is None:
            empty_folder(out)
        else:
            read_config(out)  # again, now that no other process can be at work in it
            clear_scratch(out)
        processes.wait()
        return _Run(retriever, chosen, settings, caches, split, out, watch, cadence, processes).go(stored)


class _Run:
    """A training in its folder: what it has come to, and the writing of it."""

    def __init__(
        self,
        retriever: Retriever,
        recipe: Recipe,
        settings: Settings,
        caches: Sequence[Path],
        split: Split,
        out: Path,
        watch: Watch,
        cadence: Cadence,
        processes: Processes,
    ) -> None:
        self.retriever, self.recipe, self.settings, self.caches, self.split = retriever, recipe, settings, caches, split
        self.out, self.watch, self.cadence, self.processes = out, watch, cadence, processes
        self.began = time.monotonic()  # and as much earlier as the run has been trained before
        self.history: list[dict[str, Any]] = []
        self.fitted: dict[str, Any] = {}
        self.saved: int | None = None  # the step of the last checkpoint
        self.stop = StopSignals(echo=0.0 if processes.alone else ECHO)

    def go(self, stored: dict[str, Any] | None) -> Trained:
        """From the first file of the run to its last; stored: the config.json of one that is gone on with."""
        self.frozen, self.val_frozen = self._frozen()
        memory = self.retriever.method if isinstance(self.retriever.method, Memory) else None
        if memory is not None and self.frozen:
            remember(memory, self.frozen, self.split.cache, self.split.rows)
        if self.frozen:
            self._embed_captions(self.frozen)
        self.tokens = self._tokens() if stored is None else None
        cached = bool(self.settings.tokens) if stored else self.tokens is not None
        config = config_of(self.retriever, self.recipe, self.settings, self.caches, self.split, cached)
        config |= {"processes": self.processes.count}
        if stored is None:
            self._write(CONFIG, config)
        else:
            check_same(self.out, stored, config)
            self.tokens = resumed_tokens(self.retriever, self.split.cache, self.out) if cached else None
        self.retriever.text_prefix = self._text_prefix()
        self.trainer = Trainer(
            self.retriever,
            self.split.cache,
            self.split.rows,
            self.recipe,
            self.frozen,
            checkpointing=bool(self.settings.checkpointing),
            tokens=self.tokens,
            processes=self.processes,
        )
        self.trainer.asks = self._asks
        if (progress := self.watch.progress) is not None:
            self.trainer.progress = lambda done, total: progress(done, total, "looking for hard negatives")
        log_bytes = self._restore() if stored is not None else 0
        self.processes.wait()  # for all to have read the checkpoint
        with ExitStack() as open_files:
            self.log = open_files.enter_context(closing(Log(self.out / LOG, log_bytes) if self.processes.first else NoLog()))
            self.board = self.trace = None
            if self.watch.tensorboard:
                self.board = open_files.enter_context(closing(TensorBoard(self.out, self.trainer.done)))
            if memory is not None and self.val_frozen and self.saved is None:
                validation = (self.val_frozen, self.split.val_cache, self.split.val_rows)
                self.fitted = fit_memory(self.retriever, memory, validation, self.log.write, self.watch.progress)
            if not self.retriever.trained:
                self._ended(1, self.fitted["validation"])
            elif not self._finished():
                if self.watch.profile and self.trainer.done < self.trainer.steps:
                    self.trace = open_files.enter_context(closing(Profile(self.out, self.trainer.steps - self.trainer.done)))
                self._train()
        return self._finish()

    def _frozen(self) -> tuple[FrozenEmbeddings | None, FrozenEmbeddings | None]:
        """(of the training cache, of the validation cache) the frozen embeddings, for what acts on them alone."""
        if not self.retriever.on_features:
            return None, None
        progress = self.watch.progress
        shown: Progress | None = None if progress is None else lambda done, total: progress(done, total, "frames to embeddings, once")
        if not self.processes.first:
            self.processes.wait()  # for the first one to have stored them, where it can
        frozen = FrozenEmbeddings(self.retriever, self.split.cache, shown)
        same = self.split.val_cache is self.split.cache
        validation = frozen if same else FrozenEmbeddings(self.retriever, self.split.val_cache, shown)
        if self.processes.first:
            self.processes.wait()
        return frozen, validation

    def _embed_captions(self, frozen: FrozenEmbeddings) -> None:
        """Embed the captions before the first step, in an order of their own.

        A batch of other captions rounds an embedding otherwise: had each step to embed its own, a run that is resumed would not see the
        bits that it would have seen.
        """
        captions = self._captions()
        for start in range(0, len(captions), CAPTIONS_AT_ONCE):
            frozen.text(captions[start : start + CAPTIONS_AT_ONCE])
            if self.watch.progress:
                self.watch.progress(min(start + CAPTIONS_AT_ONCE, len(captions)), len(captions), "captions to embeddings, once")

    def _captions(self) -> list[str]:
        """Of the training set, each once."""
        return list(dict.fromkeys(caption for row in self.split.rows for caption in self.split.cache.captions[row]))

    def _tokens(self) -> FeatureCache | None:
        """The token cache that is trained from, where there is one, for a run on the last blocks."""
        progress = self.watch.progress
        shown: Progress | None = None if progress is None else lambda done, total: progress(done, total, "frames to tokens, once")
        wanted, found = self.settings.tokens, None
        if self.processes.first:  # which makes it, where it is to be made
            found = tokens_for(self.retriever, self.split.cache, wanted, tell=self.watch.tell, progress=shown)
        self.processes.wait()
        return found if self.processes.first else tokens_for(self.retriever, self.split.cache, None if wanted else wanted)

    def _text_prefix(self) -> TextPrefix | None:
        """The captions at the first text block that is adapted, kept for the training."""
        progress = self.watch.progress
        shown: Progress | None = None if progress is None else lambda done, total: progress(done, total, "captions to tokens, once")
        found = text_prefix(self.retriever, self._captions(), shown)
        if found is None and self.retriever.adapted.first_text and self.watch.tell:
            self.watch.tell("The captions are too many to keep in memory; their lower text blocks are run in every step.")
        return found

    def _restore(self) -> int:
        """Take up the last checkpoint, where there is one; returns how much of the log is of the steps before it."""
        found = read_checkpoint(self.out)
        if found is None:
            return 0
        tensors, state = found
        try:
            self.trainer.restore(tensors, state.place, state.step)
        except (KeyError, RuntimeError, ValueError) as error:
            raise RunError(f"{self.out / CHECKPOINT} is of another training ({error}); begin anew without --resume.") from error
        self.history, self.fitted, self.saved = state.history, state.fitted, state.step
        self.began -= state.seconds
        return state.log_bytes

    def _save(self) -> None:
        trainer, tensors = self.trainer, self.trainer.tensors()
        if self.processes.first:
            seconds = time.monotonic() - self.began
            state = State(trainer.done, trainer.place, seconds, self.log.synced(), self.history, self.fitted)
            write_checkpoint(self.out, tensors, state)
        self.saved = trainer.done
        self.cadence.saved()

    def _train(self) -> None:
        """All steps and epochs that are left. Raises RunError for a loss that is no number, Interrupted where a signal came."""
        try:
            with self.stop:
                if self.trainer.between_epochs and len(self.history) < self.trainer.epoch:  # stopped before or while it was validated
                    self._validate(None)
                if self._finished():
                    return
                with closing(self.trainer.run()) as steps:
                    for step in steps:
                        self._stepped(step)
                        if self._finished():
                            return
        except Diverged as error:
            raise self._diverged(error) from error
        except Lost as error:
            kept = "No checkpoint was written before" if self.saved is None else f"The last checkpoint is of step {self.saved}"
            raise Lost(f"{error} {kept}; go on with: {resume_command(self.out)}") from error
        except Stop as stop:
            name, done = signal.Signals(stop.number).name, self.trainer.done
            message = f"Stopped by {name} after step {done} of {self.trainer.steps}, which is saved; go on with: {resume_command(self.out)}"
            raise Interrupted(message, stop.number) from None

    def _finished(self) -> bool:
        """Whether the last epoch is over, or as many as patience allows without a better one."""
        return len(self.history) >= self.recipe.epochs or self._out_of_patience()

    def _out_of_patience(self) -> bool:
        if not self.recipe.patience or not self.history:
            return False
        return bool(self.history[-1]["epoch"] - self._best()["epoch"] >= self.recipe.patience)

    def _best(self) -> dict[str, Any]:
        """The epoch that is kept: of equal ones the first."""
        return max(self.history, key=lambda row: row["r_sum"])

    def _stepped(self, step: Step) -> None:
        self.log.write(asdict(step))
        if self.watch.report:
            self.watch.report(step, None)
        if self.board:
            self.board.step(step)
        if self.trace:
            self.trace.step()
        number, due = self._asked(step.step)
        if step.ends_epoch or number is not None or due:
            self._save()  # before the validation, which can be done again
        if number is not None:
            self.processes.wait()  # for the first one to have saved: a launcher ends all when one has ended
            raise Stop(number)
        if step.ends_epoch:
            self._validate(step)
        if self.processes.alone:
            self.stop.check()

    def _asks(self) -> list[float]:
        """What the others must know to stop or save after the same step: signals that came here, whether a checkpoint is due."""
        due = self.processes.first and self.cadence.due(self.trainer.done + 1)
        number = signal.SIGTERM if orphaned() else self.stop.received
        return [*(float(number == each) for each in SIGNALS), float(due)]

    def _asked(self, step: int) -> tuple[int | None, bool]:
        """(the signal that came to any process, whether a checkpoint is due)."""
        if self.processes.alone:
            return self.stop.received, self.cadence.due(step)
        *received, due = self.trainer.told
        return next((number for number, count in zip(SIGNALS, received, strict=True) if count), None), bool(due)

    def _validate(self, step: Step | None) -> None:
        """step: the epoch's last, where this process has taken it."""
        with self.stop.at_once() if self.processes.alone else nullcontext():  # others would wait for one that leaves it
            tokens = self.tokens if self.split.val_cache is self.split.cache else None  # which has those rows too
            each = validate(self.retriever, self.split, self.val_frozen, tokens, self.processes)
        validation = mean_of(each)
        self._ended(self.trainer.epoch, validation, each)
        if step and self.watch.report:
            self.watch.report(step, validation)

    def _ended(self, epoch: int, validation: Metrics, each: dict[str, Metrics] | None = None) -> None:
        """validation: of all data sets on average; each: of each of them."""
        row = {
            "epoch": epoch,
            "validation": validation,
            **({"validation_by_dataset": each} if each is not None and len(each) > 1 else {}),
            "r_sum": r_sum(validation),
            "seconds": time.monotonic() - self.began,
            "peak_memory_bytes": peak_memory(self.retriever.device),
        }
        self.history.append(row)
        self.log.write(row)
        if self.board:
            self.board.epoch(row, self.trainer.done)
        if not self.processes.first:
            return
        self.retriever.save(self.out / "last")
        if self._best() is row:
            self.retriever.save(self.out / "best")

    def _write(self, name: str, value: object) -> None:
        if self.processes.first:
            write_json(self.out / name, value)

    def _diverged(self, error: Diverged) -> RunError:
        """Write down which batch it was, all of it, and say what can be done."""
        numbers = {"loss": str(error.loss), "grad_norm": str(error.grad_norm)}  # JSON has no NaN
        self.log.write({"diverged": True, "step": error.step, **numbers, "videos": error.ids})
        kept = "No checkpoint was written before"
        if self.saved is not None:
            kept = f"The last good checkpoint is {self.out / CHECKPOINT}, of step {self.saved}"
        if self.history:
            kept += f", and {self.out / 'last'} holds epoch {self.history[-1]['epoch']}, to begin with by --init"
        return RunError(f"{error} {self.out / LOG} names all {len(error.ids)}. Try --lr {self.recipe.lr / 10:g}. {kept}.")

    def _finish(self) -> Trained:
        """The run's last file, after which there is nothing to go on with; and the model of its best epoch."""
        kept = self._best()
        fitted_alone = bool(self.fitted) and not self.retriever.trained
        metrics: dict[str, Any] = {
            "checkpoint_rule": RULE.format(count=self.fitted["tried"]) if fitted_alone else CHECKPOINT_RULE,
            **({"fitted": {key: self.fitted[key] for key in ("alpha", "beta", "tried")}} if self.fitted else {}),
            "best_epoch": kept["epoch"],
            "validation": kept["validation"],
            **{key: kept[key] for key in ("validation_by_dataset",) if key in kept},
            "epochs": self.history,
            "train_seconds": time.monotonic() - self.began,
            "protocol": protocol(self.retriever, self.split.val_cache),
            "trainable": self.retriever.trainable,
            "trainable_percent": 100 * self.retriever.trainable / self.retriever.backbone.shape.parameters,
        }
        if self.recipe.patience:
            early = len(self.history) < self.recipe.epochs
            metrics["early_stopping"] = {"patience": self.recipe.patience, "stopped": early, "epochs_planned": self.recipe.epochs}
        self._write(METRICS, metrics)
        if self.processes.first:
            (self.out / CHECKPOINT).unlink(missing_ok=True)
        self.processes.wait()
        self.retriever.restore(self.out / "best" / WEIGHTS)
        self.retriever.text_prefix = None
        names = self.retriever.datasets
        self.retriever.dataset = names[0] if len(names) == 1 else None
        return Trained(self.out, self.retriever.eval(), metrics)
