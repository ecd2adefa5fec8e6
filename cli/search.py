"""``xmafast search``: find videos by text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xmafast.cli.options import JSON, PATCH, WORKSPACE
from xmafast.cli.output import bar, note, out, print_json
from xmafast.cli.workspace import cache_folder, frozen_backbone, is_cache, newest_runs, run_cache, run_folder


def search(
    query: Annotated[str, typer.Argument(help='What to find, as "red heart".')],
    run: Annotated[Path | None, typer.Argument(help="A run's folder (default: the newest run); may be left out before CACHE.")] = None,
    cache: Annotated[Path | None, typer.Argument(help="A cache, all splits of which are searched (default: the run's own).")] = None,
    topk: Annotated[int, typer.Option(min=1, help="How many clips.")] = 5,
    backbone: Annotated[str | None, typer.Option(help="Search with this frozen backbone, without a run.")] = None,
    pretrained: Annotated[str | None, typer.Option(help="With --backbone: a tag, a weights file, or none.")] = None,
    patch: PATCH = 1.0,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page with the frames of each hit.")] = None,
    json: JSON = False,
    workspace: WORKSPACE = Path(),
) -> None:
    """Rank the clips of a cache by how well they match a text.

    Examples: xmafast search "red heart" | xmafast search "a dog runs" --topk 10 --html dog.html
    """
    from rich.table import Table

    from xmafast.cache import open_splits
    from xmafast.errors import UsageError
    from xmafast.files import write_atomically
    from xmafast.retriever import Retriever, best_device, load
    from xmafast.search import html_page
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
        retriever.patch = patch
        where = run_cache(folder) if cache is None else cache_folder(cache, workspace)
    else:
        where = cache_folder(cache, workspace)
        retriever = Retriever(frozen_backbone(where, backbone, pretrained), None).to(best_device())
        store, name = (where if where.is_dir() else where.parent) / "embeddings", f"the frozen {retriever.backbone.name}"
    caches = list(open_splits(where).values())
    note(f"Searching {where} with {name}")
    with bar("frames to embeddings", "videos") as update:
        hits = find(retriever, caches, query, topk=topk, store=store, progress=update)
    total = sum(len(c.rows) for c in caches)
    if html is not None:
        page = html_page(query, hits, f"{len(hits)} of {total} clips, {retriever.backbone.name}, {retriever.header} header")
        html.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(html, lambda path: path.write_text(page, encoding="utf-8"))
        note(f"Page: {html}")
    if json:
        print_json([hit.record() for hit in hits])
        return
    table = Table("", "score", "clip", "id", "best at", "split", title=f'"{query}" in {total} clips', title_justify="left")
    for hit in hits:
        table.add_row(
            str(hit.rank), f"{hit.score:.3f}", hit.captions[0] if hit.captions else "", hit.id, f"{hit.best_time:.1f} s", hit.split
        )
    out.print(table)
