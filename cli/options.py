"""Options that several commands share, and ``--topk 1 5 10``."""

from __future__ import annotations

import ast
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
SET = Annotated[list[str], typer.Option("--set", help="An option of the method, as --set tied=3; `xmafast methods` lists them.")]
TOPK = Annotated[list[int], typer.Option("--topk", min=1, help="The K of R@K, one or several: --topk 1 5 10.")]


def method_options(given: list[str], **named: Any) -> dict[str, Any]:
    """``["tied=3", "tying=down-out"]`` -> the method's options, with those that have an option of their own. Raises UsageError."""
    from xmafast.errors import UsageError

    options = {key: value for key, value in named.items() if value is not None}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--set {text!r} is not NAME=VALUE, as --set tied=3; `xmafast methods` lists each method's options.")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = {"true": True, "false": False}.get(value.lower(), value)
    return options


class SpreadCommand(TyperCommand):
    """A command whose repeatable options also take several values after one name.

    ``--topk 1 5 10`` becomes ``--topk 1 --topk 5 --topk 10``, ``--set a=1 b=2`` likewise. Only values of the first one's kind, numbers
    or NAME=VALUE, are spread, so that ``--topk 1 5 runs/a`` still finds its argument; nothing is spread after ``--``.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        multiple = {name for p in self.params if getattr(p, "multiple", False) for name in p.opts}
        spread: list[str] = []
        end = args.index("--") if "--" in args else len(args)
        i = 0
        while i < end:
            if args[i] not in multiple:
                spread.append(args[i])
                i += 1
                continue
            name, first = args[i], args[i + 1 : i + 2]
            spread += [name, *first]  # the first value belongs to the option, whatever it is
            i += 2
            while i < end and first and _kind(args[i]) == _kind(first[0]) != "":
                spread += [name, args[i]]
                i += 1
        spread += args[max(i, end) :]
        return super().parse_args(ctx, spread)


def _kind(value: str) -> str:
    if value.isdigit():
        return "number"
    return "pair" if value.partition("=")[0].isidentifier() and "=" in value else ""
