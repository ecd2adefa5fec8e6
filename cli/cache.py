"""``xmafast cache``: decode a data set's videos once, and run a frozen backbone over them once."""

from __future__ import annotations

import csv
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xmafast.cli.features import cache_features, frames_there
from xmafast.cli.options import JSON, WORKSPACE
from xmafast.cli.output import bar, note, out, print_json
from xmafast.errors import CacheError, UsageError

if TYPE_CHECKING:
    from xmafast.cache import Shard, Summary


class Sampling(str, Enum):
    fps = "fps"
    uniform = "uniform"


class Decoder(str, Enum):
    auto = "auto"
    decord = "decord"
    torchcodec = "torchcodec"
    pyav = "pyav"


class SplitName(str, Enum):
    all = "all"
    train = "train"
    val = "val"
    test = "test"


class Level(str, Enum):
    frames = "frames"
    tokens = "tokens"
    embeddings = "embeddings"


class Codec(str, Enum):
    raw = "raw"
    jpeg = "jpeg"


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
    level: Annotated[
        Level, typer.Option(help="frames; tokens or embeddings: also what the frozen backbone makes of the frames, beside them.")
    ] = Level.frames,
    backbone: Annotated[str | None, typer.Option(help="Cache at this backbone's input size; for tokens and embeddings, its own.")] = None,
    pretrained: Annotated[str | None, typer.Option(help="For tokens and embeddings: a tag, a weights file, or none.")] = None,
    block: Annotated[int | None, typer.Option(min=1, help="For tokens: the first vision block that is still to run.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Decode processes (default: one a core).")] = None,
    decoder: Annotated[Decoder, typer.Option(help="auto takes decord where it is installed.")] = Decoder.auto,
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds that one video may take.")] = 60.0,
    codec: Annotated[Codec, typer.Option(help="jpeg takes a fraction of the disk, and is slower to read.")] = Codec.raw,
    shard: Annotated[str | None, typer.Option(help="I/N: only every N-th video, from the I-th on, into a file of its own.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N videos of each split.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where a video is missing or failed.")] = False,
    json: JSON = False,
    workspace: WORKSPACE = Path(),
) -> None:
    """Decode videos once into an HDF5 cache.

    Repeat the command at any time: what is there stays, what was missing is tried again, and an interrupted run goes on.

    Examples: xmafast cache demo | xmafast cache msrvtt --root ~/msrvtt | xmafast cache folder --root ~/clips |
    xmafast cache lsmdc --codec jpeg --shard 3/16
    """
    from xmafast.cache import FrameCache, Shard
    from xmafast.datasets import default_root, loader, usable_splits

    if level is Level.frames and (pretrained or block):
        raise UsageError("--pretrained and --block go with --level tokens or embeddings.")
    loader(dataset)
    root = root or default_root(dataset, workspace)
    folder = out_folder or workspace / "caches" / dataset
    part = None if shard is None else Shard.parse(shard)
    remarks: list[str] = []
    summaries: dict[str, Summary] = {}
    captioned = True
    options: dict[str, Any] = {
        "frames": frames,
        "sampling": sampling.value if sampling else None,
        "size": size,
        "codec": codec.value,
        "decoder": decoder.value,
        "shard": part,
        "workers": workers,
        "time_limit": time_limit,
        "limit": limit,
    }
    there = {} if level is Level.frames else frames_there(folder, part)
    if not there:
        summaries, remarks, captioned = _cache_frames(dataset, root, folder, split.value, backbone, options)
    else:  # of a caching that was interrupted between two splits one is missing, and is made as the others were
        made = FrameCache(next(iter(there.values()))).attributes
        options |= {key: options[key] or made[key] for key in ("frames", "sampling", "size")} | {"codec": made["codec"]}
        for name in usable_splits(dataset, root)[0] if split is SplitName.all else [split.value]:
            if name not in there:
                _cache_frames(dataset, root, folder, name, backbone, options)
    place = folder
    if level is not Level.frames:
        names = None if split is SplitName.all else [split.value]
        place, summaries = cache_features(folder, names, part, level.value, block, backbone, pretrained)

    problems = [(name, *problem) for name, summary in summaries.items() for problem in summary.problems]
    listing = place / ("problems.csv" if part is None else f"problems-{part.index}-of-{part.count}.csv")
    with listing.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("split", "id", "status", "reason"), *problems])
    total = {key: sum(getattr(s, key) for s in summaries.values()) for key in ("done", "present", "missing", "failed")}
    if json:
        print_json({**total, "cache": str(place), "problems": str(listing), "splits": list(summaries), "level": level.value})
    else:
        _print_table(place, summaries)
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
        out.print("Next: " + _next(folder, place, summaries, captioned, part, level))


def _cache_frames(
    dataset: str, root: Path, folder: Path, split: str, backbone: str | None, options: dict[str, Any]
) -> tuple[dict[str, Summary], list[str], bool]:
    """(summary of each split, why others were left out, whether any video has captions)."""
    from dataclasses import replace

    from xmafast.cache import FrameCache, build_cache
    from xmafast.cache.shards import split_of
    from xmafast.datasets import load_split, loader, missing, usable_splits

    module = loader(dataset)
    names, remarks = usable_splits(dataset, root) if split == "all" else ([split], [])
    if not names:
        raise missing(dataset, root, remarks)
    size = options["size"]
    if backbone and not size:
        from xmafast.pretrained import backbone_input  # here, since it brings torch

        size = backbone_input(backbone)
    options = {
        **options,
        "frames": options["frames"] or module.PROTOCOL.frames,
        "sampling": options["sampling"] or module.SAMPLING,
        "size": int(size if size else getattr(module, "FRAME_SIZE", 224)),
    }
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
            summaries[name] = build_cache(loaded, folder / f"{name}.h5", progress=update, **options)

    if split == "all":
        for stale in sorted(folder.glob("*.h5")):
            if split_of(stale) not in module.splits(root) and FrameCache(stale).attributes.get("root") == str(root.absolute()):
                stale.unlink()
                note(f"Removed {stale}: {root} has no such split any more; its videos are in the others now.")
    return summaries, remarks, captioned


def _print_table(place: Path, summaries: dict[str, Summary]) -> None:
    from rich.table import Table

    table = Table("split", "done", "already there", "missing", "failed", title=f"Cache {place}", title_justify="left")
    for name, s in summaries.items():
        table.add_row(name, str(s.done), str(s.present), str(s.missing), str(s.failed))
    out.print(table)


def _next(folder: Path, place: Path, summaries: dict[str, Summary], captioned: bool, part: Shard | None, level: Level) -> str:
    if part is not None:
        made = min(len(list(place.glob(f"{name}.shard-*-of-{part.path(Path(name)).stem.rpartition('-')[2]}.h5"))) for name in summaries)
        if made < part.count:
            return f"the same with the other shards, of which {made} of {part.count} are there; then: xmafast merge {folder}"
        return f"xmafast merge {folder} (or leave the shards: they are read as one)"
    if level is Level.tokens:
        return f'in Python, xmafast.FeatureCache("{place / (next(iter(summaries)) + ".h5")}").read(rows)'
    if not captioned:
        return f'xmafast search "a query" {folder}'
    return "xmafast train" if "train" in summaries and level is Level.frames else f"xmafast eval --zero-shot {folder}"
