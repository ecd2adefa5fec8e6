"""``xmafast search``: find videos by text, by an image, or by a clip."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xmafast.cli.options import JSON, PATCH, WORKSPACE
from xmafast.cli.output import bar, note, out, print_json
from xmafast.cli.workspace import cache_folder, frozen_backbone, is_cache, newest_runs, run_cache, run_folder
from xmafast.errors import UsageError

if TYPE_CHECKING:
    from xmafast.index import Found


def search(
    query: Annotated[str | None, typer.Argument(help='What to find, as "red heart"; left out with --image and --clip.')] = None,
    run: Annotated[Path | None, typer.Argument(help="A library, or a run's folder (default: the newest run).")] = None,
    cache: Annotated[Path | None, typer.Argument(help="A cache, all splits of which are searched (default: the run's own).")] = None,
    topk: Annotated[int, typer.Option(min=1, help="How many clips.")] = 5,
    image: Annotated[Path | None, typer.Option(help="Of a library: find the clips with the frame most like this image.")] = None,
    clip: Annotated[Path | None, typer.Option(help="Of a library: find the clips most like this video.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Of a library with several adapters: which one.")] = None,
    path: Annotated[str | None, typer.Option(help='Of a library: only ids that match, as "holiday/*.mp4"; * goes over slashes.')] = None,
    since: Annotated[
        str | None, typer.Option(help="Of a library: only files changed since, as 2026-01-31, 2026-01-31T18:00 or 7d.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Of a library: only files changed until then; a date includes its day.")] = None,
    start: Annotated[str | None, typer.Option("--from", help="Of a library: only moments from here on, in seconds or as 1:30.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="Of a library: only moments before this.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Search a cache with this frozen backbone, without a run.")] = None,
    pretrained: Annotated[str | None, typer.Option(help="With --backbone: a tag, a weights file, or none.")] = None,
    patch: PATCH = 1.0,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page with the frames of each hit.")] = None,
    paths: Annotated[bool, typer.Option("--paths", help="Print the files alone, one a line, for pipes.")] = False,
    null: Annotated[bool, typer.Option("--null", "-0", help="With --paths: end each with a NUL byte, as xargs -0 reads them.")] = False,
    json: JSON = False,
    workspace: WORKSPACE = Path(),
) -> None:
    """Rank clips by how well they match a text, an image or another clip: those of a library, or of a cache.

    Examples: xmafast search "a dog runs" lib.xma | xmafast search --image dog.jpg lib.xma --since 30d |
    xmafast search "red heart" --topk 10 --html heart.html | xmafast search "a dog runs" lib.xma --paths -0 | xargs -0 ls
    """
    from xmafast.index import is_library

    if image is not None or clip is not None:
        if cache is not None or (image is not None and clip is not None):
            raise UsageError("Search by one thing: a text, --image FILE or --clip FILE; the argument is then the library.")
        query, run = None, Path(query) if run is None and query is not None else run
        if run is not None and query is None and not is_library(run):
            raise UsageError(f"--image and --clip search a library, which {run} is not; make one with: xmafast index DIR --out lib.xma")
        if run is None:
            raise UsageError("--image and --clip search a library; name one, as: xmafast search --image dog.jpg lib.xma")
    elif query is None:
        raise UsageError('What is to be found? Name a text, as: xmafast search "red heart", or --image FILE, or --clip FILE.')
    if null and not paths:
        raise UsageError("--null goes with --paths.")
    if paths and json:
        raise UsageError("--paths and --json are two outputs; choose one.")
    in_library = run is not None and is_library(run) and cache is None
    chosen = {"--adapter": adapter, "--path": path, "--since": since, "--until": until, "--from": start, "--to": end}
    if in_library:
        assert run is not None
        if backbone is not None or pretrained is not None or patch != 1.0:
            raise UsageError("--backbone, --pretrained and --patch are decided by `xmafast index`; a library is searched with its own.")
        hits, total, model = _library(run, query, image, clip, adapter, topk, _filters(path, since, until, start, end))
    else:
        if given := [option for option, value in chosen.items() if value is not None]:
            raise UsageError(f"{given[0]} goes with a library; make one with: xmafast index CACHE --out lib.xma, and search that.")
        assert query is not None
        hits, total, model = _cache(query, run, cache, topk, backbone, pretrained, patch, workspace)
    title = query if query is not None else f"like {(image or clip or Path()).name}"
    if html is not None:
        from xmafast.files import write_atomically
        from xmafast.search import html_page

        page = html_page(title, hits, f"{len(hits)} of {total} clips, {model}")
        html.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(html, lambda path: path.write_text(page, encoding="utf-8"))
        note(f"Page: {html}")
    if json:
        print_json([hit.record() for hit in hits])
    elif paths:
        import os

        ending = b"\0" if null else b"\n"
        sys.stdout.flush()
        sys.stdout.buffer.write(b"".join(os.fsencode(hit.source) + ending for hit in hits))
        sys.stdout.buffer.flush()
    else:
        _print_table(hits, f'"{title}" in {total} clips')


def _library(
    library: Path, query: str | None, image: Path | None, clip: Path | None, adapter: str | None, topk: int, filters: Any
) -> tuple[list[Found], int, str]:
    from xmafast.index import Index

    index = Index(library)
    options: dict[str, Any] = {"topk": topk, "adapter": adapter, "filters": filters}
    if image is not None:
        hits = index.search_image(image, **options)
    elif clip is not None:
        hits = index.search_clip(clip, **options)
    else:
        hits = index.search(query or "", **options)
    name = adapter or next(iter(index.adapters))
    note(f"Searching {library} with {name}")
    return hits, len(index), f"{name}, {index.adapters[name]['header']} header"


def _cache(
    query: str,
    run: Path | None,
    cache: Path | None,
    topk: int,
    backbone: str | None,
    pretrained: str | None,
    patch: float,
    workspace: Path,
) -> tuple[list[Any], int, str]:
    from xmafast.cache import open_splits
    from xmafast.records import stream_of
    from xmafast.retriever import Retriever, best_device, load
    from xmafast.search import search as find

    if run is not None and cache is None and is_cache(run, workspace):
        run, cache = None, run
    if backbone is not None and run is not None:
        raise UsageError("--backbone searches without a run; leave out the run, or the option.")
    if backbone is None and pretrained is not None:
        raise UsageError("--pretrained goes with --backbone.")
    if run is not None or (backbone is None and newest_runs(workspace)):
        folder = run_folder(run, workspace)
        retriever, store, name = load(folder).to(best_device()), folder / "embeddings", str(folder)
        retriever.patch, retriever.stream = patch, stream_of(folder)
        where = run_cache(folder) if cache is None else cache_folder(cache, workspace)
    else:
        where = cache_folder(cache, workspace)
        retriever = Retriever(frozen_backbone(where, backbone, pretrained), None).to(best_device())
        store, name = (where if where.is_dir() else where.parent) / "embeddings", f"the frozen {retriever.backbone.name}"
    caches = list(open_splits(where).values())
    retriever.take_dataset(str(caches[0].attributes.get("dataset")))
    note(f"Searching {where} with {name}")
    with bar("frames to embeddings", "videos") as update:
        hits = find(retriever, caches, query, topk=topk, store=store, progress=update)
    return hits, sum(len(c.rows) for c in caches), f"{retriever.backbone.name}, {retriever.header} header"


def _print_table(hits: list[Any], title: str) -> None:
    from rich.table import Table

    captions, splits = any(hit.captions for hit in hits), any(hit.split for hit in hits)
    columns = ["", "score", *(["clip"] if captions else []), "id", "best at", *(["split"] if splits else [])]
    table = Table(*columns, title=title, title_justify="left")
    for hit in hits:
        caption = [hit.captions[0] if hit.captions else ""] if captions else []
        table.add_row(str(hit.rank), f"{hit.score:.3f}", *caption, hit.id, f"{hit.best_time:.1f} s", *([hit.split] if splits else []))
    out.print(table)


def _filters(path: str | None, since: str | None, until: str | None, start: str | None, end: str | None) -> Any:
    from xmafast.index import Filters

    moments = _moment("--since", since), _moment("--until", until, last=True)
    filters = Filters(path, *moments, _seconds("--from", start), _seconds("--to", end))
    for names, low, high in (("--since and --until", filters.since, filters.until), ("--from and --to", filters.start, filters.end)):
        if low is not None and high is not None and low >= high:
            raise UsageError(f"{names} leave no time between them; exchange them.")
    return filters


def _moment(option: str, text: str | None, *, last: bool = False) -> float | None:
    """A date, a date and time, or an age as ``7d`` -> seconds since 1970. last: a date is the end of its day."""
    import time
    from datetime import datetime, timedelta

    if text is None:
        return None
    if age := re.fullmatch(r"(\d{1,6})([hdw])", text):
        return time.time() - int(age[1]) * {"h": 3600, "d": 86400, "w": 604800}[age[2]]
    try:
        moment = datetime.fromisoformat(text)
        if last and re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            moment += timedelta(days=1, microseconds=-1)
        return moment.timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"{option} {text!r} is no time; write it as 2026-01-31, 2026-01-31T18:00, or an age as 7d, 12h or 2w.") from error


def _seconds(option: str, text: str | None) -> float | None:
    """Seconds, ``1:30`` or ``1:02:03`` -> seconds."""
    if text is None:
        return None
    if not re.fullmatch(r"\d+(:[0-5]?\d){0,2}(\.\d+)?", text):
        raise UsageError(f"{option} {text!r} is no moment of a video; write it in seconds, or as 1:30.")
    found = 0.0
    for part in text.split(":"):
        found = 60 * found + float(part)
    return found
