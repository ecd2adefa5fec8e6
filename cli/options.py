"""Options that several commands share, and ``--topk 1 5 10``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

JSON = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout, and everything else on stderr.")]
WORKSPACE = Annotated[
    Path, typer.Option("--workspace", envvar="XMAFAST_WORKSPACE", help="The folder that holds caches/, runs/ and datasets/.")
]


class Impl(str, Enum):
    auto = "auto"
    eager = "eager"
    triton = "triton"


IMPL = Annotated[Impl, typer.Option(help="Kernels: auto takes Triton where it was measured to be no slower, eager switches it off.")]
TOPK = Annotated[list[int], typer.Option("--topk", min=1, help="The K of R@K, one or several: --topk 1 5 10.")]


class SpreadCommand(TyperCommand):
    """A command whose repeatable options also take several values after one name.

    ``--topk 1 5 10`` becomes ``--topk 1 --topk 5 --topk 10``. Only tokens that parse as the option's type are spread, so
    that ``--topk 1 5 runs/a`` still finds its argument; nothing is spread after ``--``.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        multiple = {name: p for p in self.params if getattr(p, "multiple", False) for name in p.opts}
        spread: list[str] = []
        end = args.index("--") if "--" in args else len(args)
        i = 0
        while i < end:
            option = multiple.get(args[i])
            if option is None:
                spread.append(args[i])
                i += 1
                continue
            name, i = args[i], i + 1
            spread += [name, *args[i : i + 1]]  # the first value belongs to the option, whatever it is
            i += 1
            while i < end and _parses(option, args[i], ctx):
                spread += [name, args[i]]
                i += 1
        spread += args[max(i, end) :]
        return super().parse_args(ctx, spread)


def _parses(option: Any, value: str, ctx: Any) -> bool:
    try:
        option.type.convert(value, option, ctx)
    except Exception:
        return value.isdigit()  # a number out of range is still meant for the option, which will say so
    return True
