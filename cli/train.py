"""``xmafast train``: train a method on a frozen backbone."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from xmafast.cli.options import IMPL, JSON, PLUG, SET, WORKSPACE, Impl, method_options, plugged
from xmafast.cli.output import bar, metrics_table, note, out, print_json
from xmafast.cli.workspace import cache_folder, new_run

NONE = "none"  # no method: the frozen backbone under a header


class Header(str, Enum):
    mean = "mean"
    text_conditioned = "text-conditioned"
    seq_transf = "seqTransf"


def train(
    cache: Annotated[Path | None, typer.Argument(help="A cache's folder, or a data set's name (default: the newest cache).")] = None,
    method: Annotated[str, typer.Option(help="What is trained; `xmafast methods` lists them. none: the header alone.")] = "cross-modal",
    bottleneck: Annotated[int | None, typer.Option(min=1, help="Width of the bottleneck (default: the method's).")] = None,
    shared: Annotated[int | None, typer.Option(min=0, help="Shared dimension (default: the method's).")] = None,
    plug: PLUG = [],  # noqa: B006 - typer copies it
    more: SET = [],  # noqa: B006
    header: Annotated[Header | None, typer.Option(help="Similarity header (default: the method's).")] = None,
    backbone: Annotated[str | None, typer.Option(help="An open_clip ViT or demo (default: the cache's).")] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="An open_clip tag, a weights file, or none for random weights (default: openai; demo has its own).")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training data (default: the data set's).")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Pairs of video and caption a step (default: the data set's).")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate (default: the data set's, else the method's).")] = None,
    train_frames: Annotated[
        int | None, typer.Option(min=0, help="Frames of each video that a step draws; 0 takes all (default: the data set's).")
    ] = None,
    patch_drop: Annotated[float, typer.Option(min=0, max=1, help="Share of each frame's patches that a step leaves out.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of initialisation and order.")] = 0,
    impl: IMPL = Impl.auto,
    out_folder: Annotated[Path | None, typer.Option("--out", help="The run's folder (default: runs/DATASET-METHOD-TIME).")] = None,
    json: JSON = False,
    workspace: WORKSPACE = Path(),
) -> None:
    """Train a method on a frozen backbone and keep the epoch that is best on validation.

    Examples: xmafast train | xmafast train msrvtt --backbone ViT-B-16 --bottleneck 16 --shared 64 |
    xmafast train --method mv-adapter --set tied=3 | xmafast train --method lora --plug tempme --plug disco
    """
    from xmafast.cache import open_splits
    from xmafast.errors import UsageError, unknown
    from xmafast.methods import METHODS
    from xmafast.training import Metrics, Step
    from xmafast.training import train as run_training

    plugs, options = plugged(plug, method_options(more, bottleneck=bottleneck, shared=shared))
    if method != NONE:
        if method not in METHODS:
            raise unknown("method", method, [*METHODS, NONE])
        METHODS[method].check_options(options)
    elif options:
        raise UsageError(f"--method none has no options, and is given {', '.join(options)}.")
    folder = cache_folder(cache, workspace)
    explain_missing_train(folder)
    train_cache = open_splits(folder)["train"]
    what = "+".join([*([] if method == NONE else [method]), *plug]) or (header.value if header else method)
    run = out_folder or new_run(workspace, str(train_cache.attributes.get("dataset", folder.name)), what)
    note(f"Training {what} on {train_cache.path} into {run}")
    with bar("training", "steps", notes=True) as update:
        last = ""

        def report(step: Step, validation: Metrics | None) -> None:
            nonlocal last
            if validation:
                last = f", val R@1 {validation['t2v']['R@1']:.1f}"
            update(step.step, step.steps, f"epoch {step.epoch}/{step.epochs}, loss {step.loss:.3f}{last}")

        trained = run_training(
            folder,
            run,
            method=None if method == NONE else method,
            plugs=plugs,
            backbone=backbone,
            pretrained=pretrained,
            header=header.value if header else None,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            train_frames=train_frames,
            patch_drop=patch_drop,
            seed=seed,
            impl=impl.value,
            report=report,
            progress=update,
            **options,
        )
    if json:
        print_json({"run": str(trained.folder), **trained.metrics})
        return
    m = trained.metrics
    out.print(metrics_table(f"Validation, best epoch {m['best_epoch']} (no test clip is read)", [("adapted", m["validation"])], [1, 5, 10]))
    if "fitted" in m:
        found = m["fitted"]
        out.print(f"alpha {found['alpha']:g} and beta {found['beta']:g}, of {found['tried']} settings tried on validation.")
    out.print(f"Trained {m['trainable']:,} parameters, {m['trainable_percent']:.2f} % of the backbone's, in {m['train_seconds']:.0f} s.")
    out.print(f"Run: {trained.folder}")
    out.print("Next: xmafast eval --topk 1 5 10")


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
