"""``xmafast demo``: the main job on the embedded default, start to finish."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from xmafast.cli.options import WORKSPACE
from xmafast.cli.output import out

QUERY = "red heart"


def demo(
    seed: Annotated[int, typer.Option(help="Seed of the training.")] = 0,
    workspace: WORKSPACE = Path(),
) -> None:
    """Cache, train, evaluate and search on 600 embedded clips, offline."""
    from xmafast.cli.cache import cache
    from xmafast.cli.evaluate import evaluate
    from xmafast.cli.search import search
    from xmafast.cli.train import train
    from xmafast.cli.workspace import newest_runs

    folder = workspace / "caches" / "demo"

    def step(command: str, what: str) -> None:
        out.print(Text.assemble("\n", (f"$ {command}", "bold"), "   ", (f"# {what}", "dim")))

    step("xmafast cache demo", "decode 600 clips once")
    cache("demo", workspace=workspace)
    step(f"xmafast train --seed {seed}", "a Cross-Modal Adapter on the frozen demo backbone")
    train(folder, seed=seed, workspace=workspace)
    run = newest_runs(workspace)[0]
    step("xmafast eval --topk 1 5 10", "150 clips that training never saw")
    evaluate(run, folder, topk=[1, 5, 10], workspace=workspace)
    page = workspace / "demo-search.html"
    step(f'xmafast search "{QUERY}" --html {page}', "rank all 600 clips by a text")
    search(QUERY, run, folder, html=page, workspace=workspace)
    out.print(
        "\nNow your own videos:\n"
        "  xmafast cache folder --root DIR             DIR holds videos, with or without captions\n"
        f'  xmafast search "a query" {run} caches/folder\n'
        "and, online, a real CLIP:\n"
        "  xmafast train folder --backbone ViT-B-32    needs captions.csv (video,caption) in DIR\n"
        "Every command explains itself with --help."
    )
