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
SET = Annotated[
    list[str], typer.Option("--set", help="An option of the method, as --set tied=3, or of a plug, as --set disco.bottleneck=4.")
]
PLUG = Annotated[list[str], typer.Option("--plug", help="A method that acts beside --method; repeat it for several.")]
PATCH = Annotated[float, typer.Option(min=0, max=1, help="How much of what was trained acts: 0 is the frozen model, 1 all of it.")]
TOPK = Annotated[list[int], typer.Option("--topk", min=1, help="The K of R@K, one or several: --topk 1 5 10.")]


def method_options(given: list[str], **named: Any) -> dict[str, Any]:
    """``["tied=3", "tying=down-out"]`` -> the method's options, with those that have an option of their own. Raises UsageError."""
    from xmafast.errors import UsageError

    options = {key: value for key, value in named.items() if value is not None}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not all(part.replace("-", "_").isidentifier() for part in key.split(".")):
            raise UsageError(f"--set {text!r} is not NAME=VALUE, as --set tied=3; `xmafast methods` lists each method's options.")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = {"true": True, "false": False}.get(value.lower(), value)
    return options


def plugged(plugs: list[str], options: dict[str, Any]) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, Any]]:
    """(the plugs with their options, the method's own options), of options as ``{"disco.bottleneck": 4, "rank": 8}``. Raises UsageError."""
    from xmafast.errors import UsageError, unknown
    from xmafast.methods import METHODS

    of: dict[str, dict[str, Any]] = {plug: {} for plug in plugs}
    own = {}
    for key, value in options.items():
        plug, dot, name = key.rpartition(".")
        if not dot:
            own[key] = value
        elif plug in of:
            of[plug][name] = value
        else:
            raise UsageError(f"--set {key} is for a plug {plug!r}, which is not there; name it with --plug {plug}.")
    for plug in plugs:
        if plug not in METHODS:
            raise unknown("plug", plug, METHODS)
        if plugs.count(plug) > 1:
            raise UsageError(f"--plug {plug} is given twice; a method is combined with others, not with itself.")
        METHODS[plug].check_options(of[plug])
    return list(of.items()), own


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
    return "pair" if "=" in value and value.partition("=")[0].replace(".", "_").replace("-", "_").isidentifier() else ""
