"""A page for each command, written from the program itself: what `xmafast NAME --help` says, in the form of a page."""

from __future__ import annotations

import inspect
import re
import shutil
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

import typer

GROUPS = {
    "Start to finish": ["demo"],
    "Data": ["cache", "datasets", "merge", "verify"],
    "Training": ["train", "methods", "import", "collapse"],
    "Evaluation": ["eval", "compare", "report"],
    "Search": ["index", "search", "serve"],
    "Sharing": ["export", "push", "pull"],
    "This machine": ["doctor"],
}
PAGES = {  # what to read beside a command, among docs/*.md
    "cache": ["cache-format", "datasets"],
    "datasets": ["datasets"],
    "merge": ["cache-format"],
    "verify": ["cache-format"],
    "train": ["training", "recipes", "scaling"],
    "methods": ["methods"],
    "import": ["methods"],
    "collapse": ["methods"],
    "eval": ["evaluation"],
    "compare": ["evaluation"],
    "report": ["evaluation"],
    "index": ["search", "index-format"],
    "search": ["search"],
    "serve": ["serve"],
    "export": ["sharing"],
    "push": ["sharing"],
    "pull": ["sharing"],
    "demo": ["getting-started"],
    "doctor": ["troubleshooting"],
}


@dataclass(frozen=True)
class Parameter:
    """An argument or an option of a command, as its signature in cli/ has it."""

    heads: list[str]  # "--epochs <N>", or RUN
    help: str
    default: str
    envvar: str
    group: str | None
    many: bool
    argument: bool
    required: bool


@dataclass(frozen=True)
class Command:
    help: str
    parameters: list[Parameter]


def program() -> Any:
    from xmafast.cli.app import app

    return app


def known_commands() -> dict[str, Command]:
    """Every command of the program by its name."""
    return {c.name: Command(inspect.getdoc(c.callback) or "", parameters(c.callback)) for c in program().registered_commands}


def parameters(function: Any) -> list[Parameter]:
    found = inspect.signature(function, eval_str=True).parameters.values()
    return [read(each) for each in found if hasattr(each.annotation, "__metadata__")]  # a typer.Context is no option


def read(parameter: inspect.Parameter) -> Parameter:
    info = parameter.annotation.__metadata__[0]
    kind = parameter.annotation.__origin__
    many = get_origin(kind) is list
    kind = next((each for each in get_args(kind) if each is not type(None)), kind)
    argument = isinstance(info, typer.models.ArgumentInfo)
    names = [name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str)]
    if argument:
        heads = [(info.metavar or parameter.name).upper() + (" ..." if many else "")]
    else:
        names = names or ["--" + parameter.name.replace("_", "-") + ("/--no-" + parameter.name.replace("_", "-") if kind is bool else "")]
        names = [part for name in names for part in name.split("/")]
        heads = [name if kind is bool else f"{name} {value_of(kind, info.metavar)}" for name in names]
    default = parameter.default
    required = default is inspect.Parameter.empty or default is ...
    shown = "" if required or default in (None, [], "") or isinstance(default, bool) else text_of(default)
    return Parameter(heads, info.help or "", shown, info.envvar or "", info.rich_help_panel, many, argument, required)


def value_of(kind: Any, metavar: str | None) -> str:
    if metavar:
        return f"<{metavar}>"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(each.value) for each in kind)
    return {int: "<N>", float: "<X>", Path: "<PATH>"}.get(kind, "<TEXT>")


def text_of(value: Any) -> str:
    value = getattr(value, "value", value)
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def write(folder: Path) -> None:
    """One Markdown file for each command and one that lists them; those of commands that are gone do not stay."""
    known = known_commands()
    if missing := set(known) ^ {name for names in GROUPS.values() for name in names}:
        raise ValueError(f"docs/site/commands.py: GROUPS and the program differ in {', '.join(sorted(missing))}.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, command in known.items():
        (folder / f"{name}.md").write_text(page(name, command), encoding="utf-8")
    # a file called index.md stands for its folder, so the command `index` has the list's page beside it
    (folder / "index.md").rename(folder / "index-command.md")
    (folder / "index.md").write_text(overview(known), encoding="utf-8")


def file_of(name: str) -> str:
    return "index-command" if name == "index" else name


def overview(known: dict[str, Command]) -> str:
    root = program().registered_callback.callback
    text = ["# Commands", *paragraphs(inspect.getdoc(root)), SHARED]
    for title, names in GROUPS.items():
        text += [f"## {title}", *(f"- [`xmafast {name}`]({file_of(name)}.md): {first_sentence(known[name].help)}" for name in names)]
    text.append("## Options of `xmafast` itself")
    text += ["```{program} xmafast\n```", *(entry(p) for p in parameters(root))]
    tree = "\n".join(f"{name} <{file_of(name)}>" for names in GROUPS.values() for name in names)
    return "\n\n".join([*text, f"```{{toctree}}\n:hidden:\n\n{tree}\n```"]) + "\n"


SHARED = (
    "Results go to stdout, progress and remarks to stderr. `--json` prints one JSON value. Exit codes: 0 done, 1 failed, 2 wrong usage, "
    "130 interrupted, 143 a training that SIGTERM stopped. An error is one sentence; `--debug` adds where it arose. These pages are made "
    "from what the commands say with `--help`."
)


def page(name: str, command: Command) -> str:
    described, examples = split_examples(command.help)
    arguments = [p for p in command.parameters if p.argument]
    options = [p for p in command.parameters if not p.argument]
    usage = [p.heads[0] if p.required else f"[{p.heads[0]}]" for p in arguments]
    text = [f"# xmafast {name}", *paragraphs(described), block("text", " ".join(["xmafast", name, *usage, "[OPTIONS]"]))]
    if examples:
        text += ["## Examples", block("bash", "\n".join(examples))]
    text.append(f"```{{program}} xmafast {name}\n```")
    if arguments:
        text += ["## Arguments", *(entry(p) for p in arguments)]
    groups = list(dict.fromkeys(p.group for p in options))
    for group in sorted(groups, key=lambda group: group is None):  # those that all commands have come last
        text += [f"## {group or ('Other options' if len(groups) > 1 else 'Options')}"]
        text += [entry(p) for p in options if p.group == group]
    if pages := PAGES.get(name):
        text.append("## More\n\n" + "\n".join(f"- [](../{page}.md)" for page in pages))
    return "\n\n".join(text) + "\n"


def split_examples(text: str) -> tuple[str, list[str]]:
    """A docstring -> (what it says, the commands after "Examples:", which are parted by bars)."""
    described, _, examples = text.partition("Examples:") if "Examples:" in text else text.partition("Example:")
    commands = re.split(r"\s*\|\s+(?=xmafast )", " ".join(examples.split()))
    return described, [command for command in commands if command]


def entry(p: Parameter) -> str:
    """An argument or an option as Sphinx's directive, which gives it an address of its own."""
    said = [prose(p.help)]
    if p.default and p.default != "." and "default:" not in p.help:
        said.append(f"Default: `{p.default}`.")
    if p.envvar:
        said.append(f"Environment variable: `{p.envvar}`.")
    if p.many:
        said.append("Takes several.")
    return f"````{{option}} {', '.join(p.heads)}\n{' '.join(part for part in said if part)}\n````"


def paragraphs(text: str | None) -> list[str]:
    return [prose(" ".join(part.split())) for part in re.split(r"\n\s*\n", text or "") if part.strip()]


def first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", " ".join(paragraphs(split_examples(text)[0])[0].split()), maxsplit=1)[0]


def prose(text: str) -> str:
    """Plain text as Markdown: what is between backticks and the names of options are code, and everything else means itself."""
    parts = re.split(r"(`[^`]+`|(?<![\w-])--[a-z][\w-]*)", text)
    for i, part in enumerate(parts):
        code = part if i % 2 == 0 or part.startswith("`") else f"`{part}`"
        parts[i] = code if i % 2 else re.sub(r"([*_<\[\]\\#~|])", r"\\\1", part)
    return "".join(parts)


def block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"
