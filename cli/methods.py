"""``xmafast methods``: what can be trained, and how large it is."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

from xmafast.cli.options import JSON
from xmafast.cli.output import out, print_json


def methods(
    backbone: Annotated[str, typer.Option(help="An open_clip ViT, or demo.")] = "ViT-B-32",
    bottleneck: Annotated[int | None, typer.Option(min=1, help="Width of the bottleneck (default: each method's).")] = None,
    shared: Annotated[int | None, typer.Option(min=0, help="Shared dimension (default: each method's).")] = None,
    json: JSON = False,
) -> None:
    """List the methods with their trainable parameters on a backbone. Loads no weights."""
    from rich.table import Table

    from xmafast.backbone import backbone_shape
    from xmafast.methods import METHODS

    shape = backbone_shape(backbone)
    asked = {"bottleneck": bottleneck, "shared": shared}
    rows = []
    for name, method in METHODS.items():
        takes = inspect.signature(method.__init__).parameters
        built = method.build(shape, **{key: value for key, value in asked.items() if value is not None and key in takes})
        share = 100 * built.trainable / shape.parameters
        rows.append(
            {
                "name": name,
                "trainable": built.trainable,
                "share": share,
                "header": method.default_header,
                **built.options(),
                "paper": method.paper,
            }
        )
    if json:
        print_json(rows)
        return
    table = Table(
        "method",
        "trainable",
        "share",
        "options",
        "header",
        "paper",
        title=f"{backbone}, {shape.parameters:,} parameters",
        title_justify="left",
    )
    for row, method in zip(rows, METHODS.values(), strict=True):
        options = ", ".join(f"{key} {row[key]}" for key in inspect.signature(method.__init__).parameters if key in row)
        table.add_row(str(row["name"]), f"{row['trainable']:,}", f"{row['share']:.2f} %", options, str(row["header"]), str(row["paper"]))
    out.print(table)
