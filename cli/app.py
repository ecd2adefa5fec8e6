"""The ``xmafast`` program: its commands, and how an error reaches a user."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from xmafast.cli.cache import cache
from xmafast.cli.collapse import collapse
from xmafast.cli.compare import compare
from xmafast.cli.datasets import datasets
from xmafast.cli.demo import demo
from xmafast.cli.doctor import doctor
from xmafast.cli.evaluate import evaluate
from xmafast.cli.importing import import_official
from xmafast.cli.index import index
from xmafast.cli.merge import merge
from xmafast.cli.methods import methods
from xmafast.cli.options import SpreadCommand
from xmafast.cli.report import report
from xmafast.cli.search import search
from xmafast.cli.serve import serve
from xmafast.cli.sharing import export, pull, push
from xmafast.cli.train import train
from xmafast.cli.verify import verify
from xmafast.errors import XmafastError
from xmafast.version import described

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, command in (
    ("demo", demo),
    ("cache", cache),
    ("train", train),
    ("eval", evaluate),
    ("compare", compare),
    ("report", report),
    ("index", index),
    ("search", search),
    ("serve", serve),
    ("methods", methods),
    ("datasets", datasets),
    ("verify", verify),
    ("merge", merge),
    ("import", import_official),
    ("collapse", collapse),
    ("export", export),
    ("push", push),
    ("pull", pull),
    ("doctor", doctor),
):
    app.command(name, cls=SpreadCommand)(command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"xmafast {described()}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print version and commit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Parameter-efficient text-video and text-image retrieval on a frozen CLIP.

    Start with `xmafast demo`: it caches, trains, evaluates and searches on embedded clips, offline, in minutes.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the program. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 a training that SIGTERM stopped."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:end]
    if debug:  # accepted anywhere, as --help is
        arguments = ["--debug", *(a for i, a in enumerate(arguments) if a != "--debug" or i > end)]
    try:
        app(arguments, prog_name="xmafast")
    except XmafastError as error:
        if debug:
            raise
        _say(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _say("Interrupted; what was finished is kept.")
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        _say(f"{type(error).__name__}: {error} (this is a bug or an unusual machine; the same command with --debug shows where)")
        sys.exit(1)


def _say(text: str) -> None:
    print(f"xmafast: {text}", file=sys.stderr)
