"""``xmafast cache``: decode a data set's videos once."""

from __future__ import annotations

import csv
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from xmafast.cli.options import JSON, WORKSPACE
from xmafast.cli.output import bar, note, out, print_json
from xmafast.errors import CacheError


class Sampling(str, Enum):
    fps = "fps"
    uniform = "uniform"


class Decoder(str, Enum):
    auto = "auto"
    decord = "decord"
    pyav = "pyav"


class SplitName(str, Enum):
    all = "all"
    train = "train"
    val = "val"
    test = "test"


def cache(
    dataset: Annotated[str, typer.Argument(help="A data set that `xmafast datasets` lists, or folder (any folder of videos or images).")],
    root: Annotated[Path | None, typer.Option(help="The data set's folder (default: datasets/NAME).")] = None,
    split: Annotated[SplitName, typer.Option(help="Which split; all: every split whose files are there.")] = SplitName.all,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Where the cache goes (default: caches/NAME).")] = None,
    frames: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="Frames a video (default: 12; 64 for activitynet and didemo, 1 for coco and flickr30k)."),
    ] = None,
    sampling: Annotated[
        Sampling | None, typer.Option(help="fps: one a second, then evenly; uniform: evenly over all (default: the data set's).")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, max=4096, help="Pixels (default: the backbone's input, else 224).")] = None,
    backbone: Annotated[str | None, typer.Option(help="Cache at this backbone's input size.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Decode processes (default: one a core).")] = None,
    decoder: Annotated[Decoder, typer.Option(help="auto takes decord where it is installed.")] = Decoder.auto,
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds that one video may take.")] = 60.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N videos of each split.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where a video is missing or failed.")] = False,
    json: JSON = False,
    workspace: WORKSPACE = Path(),
) -> None:
    """Decode videos once into an HDF5 cache.

    Repeat the command at any time: what is there stays, what was missing is tried again, and an interrupted run goes on.

    Examples: xmafast cache demo | xmafast cache msrvtt --root ~/msrvtt | xmafast cache folder --root ~/clips
    """
    from dataclasses import replace

    from rich.table import Table

    from xmafast.cache import FrameCache, build_cache
    from xmafast.datasets import default_root, load_split, loader, missing, usable_splits

    module = loader(dataset)
    root = root or default_root(dataset, workspace)
    remarks: list[str] = []
    if split is SplitName.all:
        names, remarks = usable_splits(dataset, root)
        if not names:
            raise missing(dataset, root, remarks)
    else:
        names = [split.value]
    if backbone and not size:
        from xmafast.backbone import backbone_input  # here, since it brings torch

        size = backbone_input(backbone)
    chosen = int(size if size else getattr(module, "FRAME_SIZE", 224))
    folder = out_folder or workspace / "caches" / dataset
    summaries = {}
    captioned = False
    for name in names:
        loaded = load_split(dataset, root, name)
        for remark in loaded.remarks:
            note(remark)
        captioned |= any(video.captions for video in loaded.videos)
        if backbone:
            loaded = replace(loaded, default_backbone=backbone)
        with bar(f"{dataset}/{name}", "videos") as update:
            summaries[name] = build_cache(
                loaded,
                folder / f"{name}.h5",
                frames=frames or module.PROTOCOL.frames,
                sampling=sampling.value if sampling else module.SAMPLING,
                size=chosen,
                decoder=decoder.value,
                workers=workers,
                time_limit=time_limit,
                limit=limit,
                progress=update,
            )

    if split is SplitName.all:
        for stale in sorted(folder.glob("*.h5")):
            if stale.stem not in module.splits(root) and FrameCache(stale).attributes.get("root") == str(root.absolute()):
                stale.unlink()
                note(f"Removed {stale}: {root} has no such split any more; its videos are in the others now.")

    problems = [(name, *problem) for name, summary in summaries.items() for problem in summary.problems]
    listing = folder / "problems.csv"
    with listing.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("split", "id", "status", "reason"), *problems])
    total = {key: sum(getattr(s, key) for s in summaries.values()) for key in ("done", "present", "missing", "failed")}
    if json:
        print_json({**total, "cache": str(folder), "problems": str(listing), "splits": names})
    else:
        table = Table("split", "done", "already there", "missing", "failed", title=f"Cache {folder}", title_justify="left")
        for name, s in summaries.items():
            table.add_row(name, str(s.done), str(s.present), str(s.missing), str(s.failed))
        out.print(table)
    for _, video, status, reason in [p for p in problems if p[2] == "failed"][:10]:
        note(f"{status}: {video}: {reason}")
    if problems:
        note(f"{total['missing']} missing and {total['failed']} failed, each with its reason in {listing}.")
        note("Repeat the command to try them again.")
    for remark in remarks:
        note(f"Not cached: {remark}")
    if not total["done"] + total["present"]:
        raise CacheError(f"No video of {dataset} could be cached: {total['missing']} missing, {total['failed']} failed; see {listing}.")
    if strict and problems:
        raise typer.Exit(1)
    if not json:
        evaluate = f"xmafast eval --zero-shot {folder}" if captioned else f'xmafast search "a query" {folder}'
        out.print("Next: " + ("xmafast train" if "train" in summaries else evaluate))
