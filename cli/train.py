"""``xmafast train``: train a method on a frozen backbone, or go on with a run that was interrupted."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xmafast.cli.options import JSON, PLUG, SET, WORKSPACE, Impl, method_options, plugged
from xmafast.cli.output import bar, metrics_table, note, out, print_json
from xmafast.cli.workspace import cache_folder, interrupted_run, new_run, run_folder

if TYPE_CHECKING:
    from xmafast.distributed import Processes
    from xmafast.training import Metrics, Step, Trained

SAME = 10.0  # seconds in which the first process says, and ends with, what another one has met too
NONE, DEFAULT = "none", "cross-modal"  # no method: the frozen backbone under a header
MODEL, OPTIMISING, RUN, WATCHING = "What is trained", "How it is trained", "The run", "Watching"  # the groups of --help


class Header(str, Enum):
    mean = "mean"
    text_conditioned = "text-conditioned"
    seq_transf = "seqTransf"


class RecipeName(str, Enum):
    default = "default"
    paper = "paper"


def option(group: str, text: str, name: str | None = None, **more: Any) -> Any:
    return typer.Option(*([name] if name else []), help=text, rich_help_panel=group, **more)


def train(
    cache: Annotated[Path | None, typer.Argument(help="A cache's folder, or a data set's name (default: the newest cache).")] = None,
    data: Annotated[
        list[Path], option(RUN, "Instead of CACHE, and repeated: several data sets, of which one adapter is trained.", "--data")
    ] = [],  # noqa: B006
    each: Annotated[bool, option(RUN, "With several --data: a run of its own for each, one after the other.", "--each")] = False,
    method: Annotated[str | None, option(MODEL, "`xmafast methods` lists them; none: the header alone (default: cross-modal).")] = None,
    bottleneck: Annotated[int | None, option(MODEL, "Width of the bottleneck (default: the method's).", min=1)] = None,
    shared: Annotated[int | None, option(MODEL, "Shared dimension (default: the method's).", min=0)] = None,
    plug: PLUG = [],  # noqa: B006 - typer copies it
    more: SET = [],  # noqa: B006
    header: Annotated[Header | None, option(MODEL, "Similarity header (default: the method's).")] = None,
    blocks: Annotated[
        str | None,
        option(MODEL, "Where: all, or last:K for the last K vision blocks and their text blocks (default: all)."),
    ] = None,
    backbone: Annotated[str | None, option(MODEL, "An open_clip ViT or demo (default: the cache's).")] = None,
    pretrained: Annotated[
        str | None,
        option(MODEL, "An open_clip tag, a weights file, or none for random weights (default: openai; demo has its own)."),
    ] = None,
    stream: Annotated[Path | None, option(MODEL, "For --plug stream: an HDF5 file with features of another stream of the videos.")] = None,
    init: Annotated[Path | None, option(MODEL, "A run whose weights the new one begins with.")] = None,
    recipe: Annotated[
        RecipeName | None, option(OPTIMISING, "default: AdamW, rates tuned here; paper: the method's published one for the data set.")
    ] = None,
    cache_tokens: Annotated[
        bool | None,
        option(
            OPTIMISING,
            "With --blocks last:K: make the token cache of the blocks below, or do without (default: taken where it is).",
            "--cache-tokens/--no-cache-tokens",
        ),
    ] = None,
    epochs: Annotated[int | None, option(OPTIMISING, "Passes over the training data (default: the data set's).", min=1)] = None,
    batch_size: Annotated[int | None, option(OPTIMISING, "Pairs of video and caption a step (default: the data set's).", min=2)] = None,
    micro_batch: Annotated[
        int | None, option(OPTIMISING, "Pairs held with their graph at once, in gradients of the whole batch (default: all).", min=1)
    ] = None,
    lr: Annotated[float | None, option(OPTIMISING, "Peak learning rate (default: the data set's, else the method's).")] = None,
    train_frames: Annotated[
        int | None, option(OPTIMISING, "Frames of each video that a step draws; 0 takes all (default: the data set's).", min=0)
    ] = None,
    patch_drop: Annotated[
        float | None, option(OPTIMISING, "Share of each frame's patches that a step leaves out (default: 0).", min=0, max=1)
    ] = None,
    hard_negatives: Annotated[
        int | None,
        option(OPTIMISING, "Of the videos that the model takes for one, how many share its batch, sought each epoch (default: 0).", min=0),
    ] = None,
    patience: Annotated[
        int | None, option(OPTIMISING, "End after so many epochs without a better R-sum on validation (default: never).", min=0)
    ] = None,
    seed: Annotated[int | None, option(OPTIMISING, "Seed of initialisation and order (default: 0).")] = None,
    impl: Annotated[
        Impl | None, option(OPTIMISING, "Kernels: auto takes Triton where it was measured to be no slower, eager switches it off.")
    ] = None,
    checkpointing: Annotated[
        bool | None, option(OPTIMISING, "Run each block again in the backward pass: less memory, more time.", "--checkpointing")
    ] = None,
    nproc: Annotated[
        int | None, option(RUN, "Processes on this machine, one a GPU, or on its CPU (default: 1, or those of torchrun).", min=1)
    ] = None,
    out_folder: Annotated[Path | None, option(RUN, "The run's folder (default: runs/DATASET-METHOD-TIME).", "--out")] = None,
    resume: Annotated[
        bool, option(RUN, "Go on with an interrupted run, --out or the newest; other options are those it was begun with.", "--resume")
    ] = False,
    save_every: Annotated[str, option(RUN, "A checkpoint after each epoch and every so many seconds, as 60s, or steps, as 200.")] = "60s",
    tensorboard: Annotated[bool, option(WATCHING, "Write event files for TensorBoard too.", "--tensorboard")] = False,
    profile: Annotated[bool, option(WATCHING, "Write a trace of a few steps, for chrome://tracing.", "--profile")] = False,
    json: JSON = False,
    workspace: WORKSPACE = Path(),
) -> None:
    """Train a method on a frozen backbone and keep the epoch that is best on validation.

    Examples: xmafast train | xmafast train msrvtt --backbone ViT-B-16 --bottleneck 16 --shared 64 |
    xmafast train --method mv-adapter --set tied=3 | xmafast train --method lora --plug tempme --plug disco |
    xmafast train --blocks last:2 --cache-tokens | xmafast train msrvtt --recipe paper |
    xmafast train --nproc 8 --batch-size 1024 --micro-batch 64 | xmafast train --resume
    """
    given = locals()
    from xmafast.distributed import joined, launched
    from xmafast.errors import UsageError, unknown
    from xmafast.methods import METHODS
    from xmafast.training import UNSET

    plugs, options = plugged(plug, method_options(more, bottleneck=bottleneck, shared=shared))
    chosen = method or (None if resume or init else DEFAULT)  # of a run that there is: what it trains
    if chosen == NONE and options:
        raise UsageError(f"--method none has no options, and is given {', '.join(options)}.")
    if chosen not in (None, NONE):
        if chosen not in METHODS:
            raise unknown("method", chosen, [*METHODS, NONE])
        METHODS[chosen].check_options(options)
    if resume and init:
        raise UsageError("--resume goes on with a run and --init begins a new one; give one of them.")
    if data and (cache or resume):
        raise UsageError("--data names the caches of a new run, so neither CACHE nor --resume goes with it.")
    if each and len(data) < 2:
        raise UsageError("--each goes with several --data: it trains a run of its own on each.")
    if nproc and launched():
        raise UsageError("torchrun has started the processes already; leave --nproc out.")
    wanted: dict[str, Any] = {
        "method": UNSET if chosen is None else None if chosen == NONE else chosen,
        "plugs": plugs or None,
        "backbone": backbone,
        "pretrained": pretrained,
        "header": header.value if header else None,
        "at_blocks": blocks,
        "cache_tokens": cache_tokens,
        "recipe": recipe.value if recipe else None,
        "epochs": epochs,
        "batch_size": batch_size,
        "micro_batch": micro_batch,
        "lr": lr,
        "train_frames": train_frames,
        "patch_drop": patch_drop,
        "patience": patience,
        "hard_negatives": hard_negatives,
        "seed": seed,
        "impl": impl.value if impl else None,
        "checkpointing": checkpointing,
        "stream": stream,
        "resume": resume,
        "init": run_folder(init, workspace) if init else None,
        "save_every": save_every,
        "tensorboard": tensorboard,
        "profile": profile,
        **options,
    }
    what = what_of(chosen, plug, header, init)
    runs = places([[path] for path in data] if each else [data or [cache]], out_folder, workspace, resume, what)
    if nproc and nproc > 1:
        for run, folders in runs:
            one = {"cache": folders[0], "data": []} if folders and len(folders) == 1 else {}
            in_processes(nproc, typed(given | one | {"each": False, "out_folder": run, "nproc": None}), run)
        return
    done = []
    with joined() as processes, one_voice(processes):
        for run, folders in runs:
            run = Path(processes.say(str(run)))  # its name may have the time in it
            if processes.first:
                announce(run, folders, what, resume, processes.count)
            done.append(go(folders, run, wanted))
    if not processes.first:
        return
    for trained in done:
        if profile and (trained.folder / "trace.json").exists():
            note(f"Trace: {trained.folder / 'trace.json'}, for chrome://tracing or ui.perfetto.dev")
        if tensorboard:
            note(f"Event files: tensorboard --logdir {trained.folder / 'tensorboard'}")
        if not json:
            show(trained)
    if json:
        found = [{"run": str(trained.folder), **trained.metrics} for trained in done]
        print_json(found if each else found[0])


def announce(run: Path, folders: list[Path] | None, what: str, resume: bool, count: int) -> None:
    from xmafast.training import is_interrupted

    if resume:
        note(f"Going on with {run}")
        return
    if is_interrupted(run):
        note(f"{run} was interrupted, and is begun anew; to go on with it: xmafast train --resume --out {shlex.quote(str(run))}")
    on = "" if count == 1 else f", in {count} processes"
    note(f"Training {what} on {', '.join(map(str, folders or ()))} into {run}{on}")


def go(caches: list[Path] | None, run: Path, wanted: dict[str, Any]) -> Trained:
    from xmafast.training import train as run_training

    with bar("training", "steps", notes=True) as update:
        return run_training(caches, run, report=shown_by(update), progress=update, tell=note, **wanted)


def what_of(method: str | None, plugs: list[str], header: Header | None, init: Path | None) -> str:
    """What a run is named after."""
    named = [] if method in (None, NONE) else [str(method)]
    return "+".join([*named, *plugs]) or (header.value if header else init.name if init else NONE)


def places(
    caches: Sequence[Sequence[Path | None]], out_folder: Path | None, workspace: Path, resume: bool, what: str
) -> list[tuple[Path, list[Path] | None]]:
    """(the run's folder, its caches or None for the run's own) of each run."""
    if resume:
        ((cache,),) = caches
        run = run_folder(out_folder, workspace) if out_folder else interrupted_run(workspace)
        return [(run, None if cache is None else [cache_folder(cache, workspace)])]
    found: list[tuple[Path, list[Path] | None]] = []
    for named in caches:
        folders = [cache_folder(cache, workspace) for cache in named]
        for folder in folders:
            explain_missing_train(folder)
        name = "+".join(dataset_of(folder) for folder in folders)
        own = out_folder / name if out_folder and len(caches) > 1 else out_folder
        found.append((own or new_run(workspace, name, what), folders))
    return found


def typed(given: dict[str, Any]) -> list[str]:
    """The command line of ``train`` with these options; those that have their default are left out."""
    arguments, options = [], []
    for name, parameter in inspect.signature(train, eval_str=True).parameters.items():
        value, info = given[name], parameter.annotation.__metadata__[0]
        if value is None or value == parameter.default:
            continue
        if isinstance(info, typer.models.ArgumentInfo):
            arguments.append(str(value))
            continue
        names = [each for each in (info.default, *(info.param_decls or ())) if isinstance(each, str)]
        option = names[0] if names else "--" + name.replace("_", "-")
        for each in value if isinstance(value, list) else [value]:
            options += [option] if each is True else [option, str(each.value if isinstance(each, Enum) else each)]
    debug = ["--debug"] if "--debug" in sys.argv else []
    return [*debug, "train", *options, *(["--", *arguments] if arguments else [])]


def in_processes(count: int, command: list[str], run: Path) -> None:
    """The same command in several processes. Exits with their code where one of them has said what failed."""
    from xmafast.launch import launch

    resume = f"xmafast train --resume --nproc {count} --out {shlex.quote(str(run))}"
    if code := launch(count, command, resume):
        raise typer.Exit(code)


@contextmanager
def one_voice(processes: Processes) -> Iterator[None]:
    """Of what all processes would say let the first one say it; what happens in another one alone is said by that one."""
    from xmafast.distributed import NPROC, Lost
    from xmafast.errors import XmafastError
    from xmafast.training import Interrupted

    try:
        yield
    except XmafastError as error:
        if isinstance(error, Lost) and NPROC in os.environ:  # the launcher knows more: which one, and how
            raise typer.Exit(error.exit_code) from None
        if processes.first:
            raise
        time.sleep(SAME)  # the first one waits for this one, unless it ends for the same reason, and says so: then all are ended now
        if not isinstance(error, (Lost, Interrupted)):
            note(f"xmafast: process {processes.rank} of {processes.count}: {error}")
        raise typer.Exit(error.exit_code) from None


def shown_by(update: Any) -> Any:
    """What a bar says of each step."""
    last = ""

    def report(step: Step, validation: Metrics | None) -> None:
        nonlocal last
        if validation:
            last = f", val R@1 {validation['t2v']['R@1']:.1f}"
        now = f"loss {step.loss:.3f}, lr {step.lr:.1e}, {step.videos_per_second:.0f} videos/s"
        update(step.step, step.steps, f"epoch {step.epoch}/{step.epochs}, {now}{last}")

    return report


def show(trained: Trained) -> None:
    m = trained.metrics
    out.print(metrics_table(f"Validation, best epoch {m['best_epoch']} (no test clip is read)", [("adapted", m["validation"])], [1, 5, 10]))
    for name, one in m.get("validation_by_dataset", {}).items():
        out.print(f"  {name}: R@1 {one['t2v']['R@1']:.1f} text to video, {one['v2t']['R@1']:.1f} video to text")
    if "fitted" in m:
        found = m["fitted"]
        out.print(f"alpha {found['alpha']:g} and beta {found['beta']:g}, of {found['tried']} settings tried on validation.")
    if m.get("early_stopping", {}).get("stopped"):
        stopping = m["early_stopping"]
        done, planned, without = len(m["epochs"]), stopping["epochs_planned"], stopping["patience"]
        out.print(f"Ended after {done} of {planned} epochs, {without} without a better one.")
    out.print(f"Trained {m['trainable']:,} parameters, {m['trainable_percent']:.2f} % of the backbone's, in {m['train_seconds']:.0f} s.")
    out.print(f"Run: {trained.folder}")
    where = f"{trained.folder} CACHE, on one of them" if "validation_by_dataset" in m else "--topk 1 5 10"
    out.print(f"Next: xmafast eval {where}")


def dataset_of(folder: Path) -> str:
    from xmafast.cache import open_splits

    return str(open_splits(folder)["train"].attributes.get("dataset", folder.name))


def explain_missing_train(folder: Path) -> None:
    """Where a cache has no train split, raise the error that names the data set's missing file, or the command to run."""
    from xmafast.cache import open_splits
    from xmafast.datasets import DATASETS, load_split
    from xmafast.errors import CacheError, XmafastError

    splits = open_splits(folder)
    if "train" in splits:
        return
    attributes = next(iter(splits.values())).attributes
    dataset, root = attributes.get("dataset"), attributes.get("root")
    command = f"xmafast cache {dataset} --split train --root {root}"
    if dataset in DATASETS and root and Path(root).is_dir():
        try:
            load_split(dataset, Path(root), "train")
        except XmafastError as error:
            sentence, line, tree = str(error).partition("\n")
            raise CacheError(f"{folder} has no train split yet. {sentence} Then run: {command}{line}{tree}") from error
    raise CacheError(f"{folder} has no train split yet (it has: {', '.join(splits)}); make it with: {command}")
