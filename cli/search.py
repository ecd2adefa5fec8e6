"""``xmafast search``: find videos by text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xmafast.cli.options import JSON, WORKSPACE
from xmafast.cli.output import bar, note, out, print_json
from xmafast.cli.workspace import cache_folder, newest_runs, run_folder


def search(
    query: Annotated[str, typer.Argument(help='What to find, as "red heart".')],
    run: Annotated[Path | None, typer.Argument(help="A run's folder [default: the newest run, or the frozen backbone].")] = None,
    cache: Annotated[
        Path | None, typer.Argument(help="A cache's folder or file; every split in it is searched [default: the run's own].")
    ] = None,
    topk: Annotated[int, typer.Option(min=1, help="How many clips.")] = 5,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page with the frames of each hit.")] = None,
    json: JSON = False,
    workspace: WORKSPACE = Path(),
) -> None:
    """Rank the clips of a cache by how well they match a text.

    Examples: xmafast search "red heart" | xmafast search "a dog runs" --topk 10 --html dog.html
    """
    import json as json_module

    from rich.table import Table

    from xmafast.backbone import load_backbone
    from xmafast.cache import open_splits
    from xmafast.files import write_atomically
    from xmafast.retriever import Retriever, load
    from xmafast.search import html_page
    from xmafast.search import search as find

    if run is not None or newest_runs(workspace):
        folder = run_folder(run, workspace)
        retriever, store, name = load(folder), folder / "embeddings", str(folder)
        recorded = Path(json_module.loads((folder / "config.json").read_text(encoding="utf-8"))["cache"]) if cache is None else None
        where = recorded or cache_folder(cache, workspace)
    else:
        where = cache_folder(cache, workspace)
        attributes = next(iter(open_splits(where).values())).attributes
        retriever = Retriever(load_backbone(attributes["default_backbone"], attributes["default_pretrained"]), None)
        store, name = (where if where.is_dir() else where.parent) / "embeddings", f"the frozen {retriever.backbone.name} (no run yet)"
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
