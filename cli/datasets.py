"""``xmafast datasets``: the data sets, what the field does with them, and how much of each is here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xmafast.cli.options import JSON, WORKSPACE
from xmafast.cli.output import out, print_json

COUNTS = ("published", "found", "files", "captions", "frames, words")


def datasets(
    name: Annotated[str | None, typer.Argument(help="One data set (default: all).")] = None,
    root: Annotated[Path | None, typer.Option(help="The folder of the data set that was named (default: datasets/NAME).")] = None,
    json: JSON = False,
    workspace: WORKSPACE = Path(),
) -> None:
    """List the data sets: their splits as published and as found, and where each comes from.

    Examples: xmafast datasets | xmafast datasets msvd --root ~/msvd
    """
    from rich.table import Column, Table

    from xmafast.datasets import DATASETS, default_root, loader
    from xmafast.errors import UsageError

    if root is not None and name is None:
        raise UsageError("--root goes with one data set, as: xmafast datasets msvd --root DIR")
    if name is not None:
        loader(name)
    rows = [_row(each, root or default_root(each, workspace)) for each in ([name] if name else DATASETS)]
    if json:
        print_json(rows)
        return
    name_column = Column("data set", no_wrap=True, min_width=max(map(len, DATASETS)))
    table = Table(name_column, "split", *(Column(head, justify="right") for head in COUNTS))
    for row in rows:
        for i, split in enumerate(row["splits"]):
            cells = ["" if split[key] is None else f"{split[key]:,}" for key in ("expected", "found", "files", "captions")]
            table.add_row("" if i else row["name"], split["name"], *cells, "" if i else f"{row['frames']}, {row['words']}")
    out.print(table)
    for row in rows:
        out.print(f"{row['name']}: {row['title']}, {row['home'] or 'no home page'}; licence: {row['licence']}.")
        if name and row["tree"]:
            out.print(row["tree"])
        if row["problem"] and (name or Path(row["root"]).is_dir()):
            out.print(f"{row['name']}: {row['problem']}")
    if not name:
        out.print("Next: xmafast datasets NAME shows the files that NAME needs; xmafast cache NAME decodes its videos.")


def _row(name: str, root: Path) -> dict[str, Any]:
    """What is known of a data set and what is found of it; a problem is a sentence, never an error."""
    from xmafast.datasets import load_split, loader
    from xmafast.datasets.base import tree
    from xmafast.errors import XmafastError

    module = loader(name)
    protocol = module.PROTOCOL
    problems: list[str] = []
    try:
        known = module.splits(root)
    except XmafastError as error:
        known, problems = {}, [str(error)]
    splits = []
    for split in dict.fromkeys([*module.FILES, *known]) or ["any"]:
        found: dict[str, int | None] = {"found": None, "files": None, "captions": None}
        if split in known:
            try:
                loaded = load_split(name, root, split)
                found = {
                    "found": len(loaded.videos),
                    "files": sum(video.path is not None for video in loaded.videos),
                    "captions": sum(len(video.captions) for video in loaded.videos),
                }
                problems += loaded.remarks
            except XmafastError as error:
                problems.append(str(error).partition("\n")[0])
        expected = {"expected": protocol.videos.get(split), "expected_captions": protocol.captions.get(split)}
        splits.append({"name": split, **expected, **found, "missing": known.get(split, [])})
    return {
        "name": name,
        "title": protocol.title,
        "root": str(root),
        "splits": splits,
        "queries": protocol.queries,
        "v2t": protocol.v2t,
        "frames": protocol.frames,
        "words": protocol.words,
        "sampling": module.SAMPLING,
        "paper": protocol.paper,
        "home": protocol.home,
        "licence": protocol.licence,
        "tree": tree(root, module.FILES) if module.FILES else "",
        "problem": problems[0] if problems else None,
    }
