"""The site's navigation: the lists of docs/index.md, one group for each heading, and the pages that are made at build time."""

from __future__ import annotations

import re
from typing import Any

MADE = {"Commands": "commands/index", "Python": "api/index"}
ENTRY = re.compile(r"^- \[([^]]+)\]\(([^):#]+)\.md\)", re.MULTILINE)


def groups(index: str) -> dict[str, list[tuple[str, str]]]:
    """The text of docs/index.md -> for each heading, in order, its pages as (title, name without .md)."""
    sections = re.split(r"^## (.+)$", index, flags=re.MULTILINE)[1:]
    found = {title: ENTRY.findall(text) for title, text in zip(sections[::2], sections[1::2], strict=True)}
    return {title: pages for title, pages in found.items() if pages}


def add(app: Any, name: str, source: list[str]) -> None:
    """Sphinx's `source-read`: give the home page the hidden tables of contents that the sidebar shows."""
    if name != "index":
        return
    trees = [("Reference", list(MADE.items()))]
    for title, pages in [*groups(source[0]).items(), *trees]:
        entries = "\n".join(f"{text} <{page}>" for text, page in pages)
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{entries}\n```\n"
