"""What README and docs tell a reader to type and to paste."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").glob("*.md"))
NUMBERS = {"N": "2", "K": "2", "M": "2", "L-K": "4", "SLURM_ARRAY_TASK_ID": "3"}  # what stands for a number


def commands(text: str) -> Iterator[str]:
    """Of a page: lines of a block, and what stands in backticks in a sentence."""
    for line in text.splitlines():
        if found := re.match(r"(?: {4,}|\$ )\$? ?(xmafast .*)", line):
            yield found[1].strip()
        else:
            yield from re.findall(r"`(xmafast [^`]+)`", line)


def forms(command: str) -> Iterator[list[str]]:
    """Its words, without a comment or a pipe; where parts of it are optional, without and with them."""
    command = re.sub(r"\$\{?(\w+)\}?", lambda found: NUMBERS.get(found[1], found[1]), re.split(r"\s#|\s\|\s", command)[0])
    command = command.replace("…", " ").replace("...", " ")
    for text in dict.fromkeys((re.sub(r"\[[^]]*\]", "", command), command.replace("[", " ").replace("]", " "))):
        yield [NUMBERS.get(word, word.split("|")[0]) for word in shlex.split(text)[1:]]


FENCED = r"^```\w*\n(?P<fenced>.*?)^```$"
INDENTED = r"(?P<indented>(?:(?<=\n)\n|^)(?: {4}[^\n]*\n|\n(?= {4}))+)"


def blocks(page: Path) -> list[str]:
    """The page's indented and fenced blocks, without their indentation or fence, in the page's order."""
    found = re.finditer(f"{FENCED}|{INDENTED}", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(match["fenced"] or match["indented"]).strip("\n") + "\n" for match in found]


def python_blocks(page: Path) -> list[str]:
    """Blocks that are Python: they import something, and the others are no program."""
    return [block for block in blocks(page) if re.match(r"(import|from) \w", block)]
