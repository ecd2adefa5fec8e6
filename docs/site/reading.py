"""What makes the pages read well on the site: the language of code blocks that name none, and docstrings as they are written."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

SHELL = re.compile(r"^(\$ |#!/|(xmafast|make|pip|torchrun|srun|curl|hf|git|python|pytest)(\s|$)|[A-Z_]+=\S)", re.MULTILINE)


def language(text: str) -> str:
    """python, bash or text: what a block of code is written in."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    if SHELL.match(first) or (first.startswith("#SBATCH") and SHELL.search(text)):
        return "bash"
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return "text"
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.With, ast.Assign)
    calls = any(isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) for node in tree.body)
    return "python" if calls or any(isinstance(node, kinds) for node in tree.body) else "text"


def find_languages(app: Any, doctree: Any) -> None:
    """Sphinx's `doctree-read`: indented blocks have no language of their own."""
    from docutils import nodes

    for block in doctree.findall(nodes.literal_block):
        if block.get("language", "none") in ("none", "text", "default"):
            block["language"] = language(block.astext())


def docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's `autodoc-process-docstring`: prose in, reStructuredText out.

    Docstrings here are sentences: "path: the folder." is about the parameter `path`, "Raises CacheError for ..." about errors. Both are
    set as lists behind the rest. In the prose *, | and \\ mean themselves, and an indented paragraph is shown as it stands.
    """
    parameters, raised, text = [], [], []
    for part in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        if part.startswith("    "):
            text.append("::\n\n" + part)
            continue
        if part.startswith("- "):
            text.append(escaped(part))
            continue
        prose, found, errors = sorted_out(" ".join(part.split()), names_of(obj))
        text += [escaped(prose)] if prose else []
        parameters += [f"    * **{escaped(names)}**: {escaped(about)}" for names, about in found]
        raised += [f":Raises: {escaped(errors)}"] if errors else []
    fields = "\n".join(([":Parameters:", *parameters] if parameters else []) + raised)
    lines[:] = "\n\n".join([*text, *([fields] if fields else []), ""]).split("\n")


def sorted_out(paragraph: str, names: set[str]) -> tuple[str, list[tuple[str, str]], str]:
    """(what is plain prose, what is said of each parameter or of several, what is raised) of a paragraph."""
    paragraph, _, errors = re.sub(r"(^|(?<=[.;:] ))Raises? ", "\0", paragraph).partition("\0")
    head = re.compile(r"(?:^|(?<=[.;)] ))(\w+(?:, \w+)*): ")
    marked = head.sub(lambda m: f"\0{m[1]}\1" if set(m[1].split(", ")) <= names else m[0], paragraph)
    prose, *items = marked.split("\0")
    return prose.strip(), [(name, about.strip()) for name, about in (item.split("\1", 1) for item in items)], errors


def names_of(obj: Any) -> set[str]:
    try:
        return set(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        return set()


def escaped(text: str) -> str:
    """Prose for reStructuredText; docs/NAME.md becomes a link to that page."""
    parts = re.split(r"(``.+?``|`[^`]+`)", text)
    for i, part in enumerate(parts[::2]):
        part = re.sub(r"([*|\\]|(?<=\w)_(?!\w))", r"\\\1", part)
        parts[2 * i] = re.sub(r"\bdocs/([\w-]+)\.md\b", r":doc:`/\1`", part)
    return "".join(parts)
