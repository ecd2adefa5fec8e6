"""``xmafast index``: a library of videos and images to search in, made or brought up to date."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from xmafast.cli.cache import Decoder, Sampling
from xmafast.cli.options import JSON, PATCH, WORKSPACE
from xmafast.cli.output import bar, note, out, print_json
from xmafast.cli.workspace import cache_folder, newest_runs, run_folder


class Export(str, Enum):
    faiss = "faiss"
    parquet = "parquet"
    lancedb = "lancedb"


def index(
    source: Annotated[Path, typer.Argument(help="A folder of videos and images, a cache, or a library to bring up to date.")],
    out_folder: Annotated[Path | None, typer.Option("--out", help="The library (default: lib.xma in the workspace).")] = None,
    run: Annotated[Path | None, typer.Option(help="Index with this run's adapter (default: the newest run, else frozen).")] = None,
    backbone: Annotated[str | None, typer.Option(help="Index with this frozen backbone, without a run.")] = None,
    pretrained: Annotated[str | None, typer.Option(help="With --backbone: a tag, a weights file, or none.")] = None,
    name: Annotated[str | None, typer.Option(help="What the adapter is called in the library (default: the run's or backbone's).")] = None,
    patch: PATCH = 1.0,
    frames: Annotated[int | None, typer.Option(min=1, max=4096, help="Frames a video, of a folder (default: 12).")] = None,
    sampling: Annotated[Sampling | None, typer.Option(help="fps: one a second, then evenly; uniform: evenly over all.")] = None,
    size: Annotated[int | None, typer.Option(min=1, max=4096, help="Pixels (default: the backbone's input).")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Decode processes (default: one a core).")] = None,
    decoder: Annotated[Decoder, typer.Option(help="auto takes decord where it is installed.")] = Decoder.auto,
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds that one video may take.")] = 60.0,
    drop: Annotated[list[str] | None, typer.Option(help="Take this adapter out of the library.")] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Replace an adapter that was indexed with other weights.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Read all of the library, and make anew what is damaged.")] = False,
    export: Annotated[Export | None, typer.Option(help="Write a library's embeddings for another tool, to --to.")] = None,
    to: Annotated[Path | None, typer.Option(help="With --export: where to.")] = None,
    adapter: Annotated[str | None, typer.Option(help="With --export: which adapter's, where the library has several.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where a file failed.")] = False,
    json: JSON = False,
    workspace: WORKSPACE = Path(),
) -> None:
    """Make a library of videos and images to search in, or bring one up to date.

    Repeat the command at any time: unchanged files are neither decoded nor encoded again, and an interrupted run goes on.

    Examples: xmafast index ~/clips --out lib.xma | xmafast index lib.xma | xmafast index caches/demo --run runs/mine --name mine |
    xmafast index lib.xma --export faiss --to lib.faiss
    """
    from xmafast.errors import UsageError
    from xmafast.index import Index, is_library
    from xmafast.index.catalog import CATALOG
    from xmafast.index.sources import holds_cache, media

    library = is_library(source) and out_folder is None
    path = source if library else out_folder or workspace / "lib.xma"
    if export is not None or to is not None or adapter is not None:
        if export is None or to is None:
            raise UsageError("--export KIND and --to PATH go together, as: xmafast index lib.xma --export faiss --to lib.faiss")
        if not library:
            raise UsageError(f"--export reads a library, not {source}; name one, as: xmafast index lib.xma --export faiss --to PATH")
        _export(source, export.value, to, adapter, json)
        return
    if library:
        Index(source)  # says what is wrong with it, before a model is loaded
    else:
        source = source if source.exists() else cache_folder(source, workspace)
        if not holds_cache(source):
            media(source)  # likewise
    there = (path / CATALOG).is_file()
    retriever, origin, named = _model(source, path if there else None, workspace, run, backbone, pretrained, patch, name)
    options: dict[str, Any] = {
        "frames": frames,
        "sampling": sampling.value if sampling else None,
        "size": size,
        "decoder": decoder.value,
        "workers": workers,
        "time_limit": time_limit,
        "drop": drop or [],
        "rebuild": rebuild,
        "check": check,
    }
    note(f"Indexing {source} to {path}" + (f" with {origin}" if origin else ""))
    with bar("index", "items") as update:
        found = Index.build(path, None if library else source, retriever, name=named, origin=origin, progress=update, **options)
    if json:
        print_json(found.record())
    else:
        from rich.table import Table

        counts = ("items", "added", "changed", "moved", "deleted", "unchanged", "failed")
        table = Table(*counts, title=f"Library {path}", title_justify="left")
        table.add_row(*(str(getattr(found, key)) for key in counts))
        out.print(table)
        out.print(f"Adapters: {', '.join(found.adapters)}")
    for item, reason in found.problems[:10]:
        note(f"failed: {item}: {reason}")
    if len(found.problems) > 10:
        note(f"and {len(found.problems) - 10} more; --json lists them all. Repeat the command to try them again.")
    if strict and found.problems:
        raise typer.Exit(1)
    if not json:
        out.print(f'Next: xmafast search "a query" {path}')


def _model(
    source: Path,
    library: Path | None,
    workspace: Path,
    run: Path | None,
    backbone: str | None,
    pretrained: str | None,
    patch: float,
    name: str | None,
) -> tuple[Any, str | None, str | None]:
    """(retriever, where it comes from, its name in the library), None for what the library has already."""
    from xmafast.cli.workspace import frozen_backbone
    from xmafast.errors import UsageError
    from xmafast.index import Index
    from xmafast.index.snapshot import revision
    from xmafast.index.sources import holds_cache
    from xmafast.pretrained import load_backbone
    from xmafast.retriever import Retriever, load

    if run is not None and backbone is not None:
        raise UsageError("--run and --backbone are two models; index with one, and repeat the command with the other.")
    if pretrained is not None and backbone is None:
        raise UsageError("--pretrained goes with --backbone.")
    if run is None and backbone is None and library is not None and revision(library):
        if name is None:
            return None, None, None
        about = Index(library).adapters.get(name)  # the same again, from where it came: with --rebuild, as it is now
        if about is None:
            raise UsageError(f"--name {name!r} is no adapter of {library} yet; add it with --run RUN or --backbone NAME.")
        if about["frozen"]:
            backbone, pretrained = str(about["backbone"]), str(about["pretrained"])
        else:
            run, patch = Path(str(about["origin"])), float(about["patch"])
    if run is None and backbone is None and newest_runs(workspace):
        run = newest_runs(workspace)[0]
    if run is not None:
        folder = run_folder(run, workspace)
        retriever, origin = load(folder), str(folder.absolute())
        retriever.patch = patch
        return retriever, origin, name or folder.absolute().name
    if holds_cache(source):
        frozen = frozen_backbone(source, backbone, pretrained)
    else:
        frozen = load_backbone(backbone or "ViT-B-32", pretrained or "openai")
    short = Path(frozen.name).name
    return Retriever(frozen, None), f"the frozen {short}", name or short


def _export(library: Path, kind: str, to: Path, adapter: str | None, json: bool) -> None:
    from xmafast.index import Index
    from xmafast.index.export import export

    index = Index(library)
    written = export(index, kind, to, adapter)
    if json:
        print_json({"export": kind, "path": str(written), "items": len(index)})
    else:
        out.print(f"{len(index)} items to {written}")
