"""Every command that README and docs name is one that there is, with options that it has and values that they take."""

import pytest
import typer
from documented import PAGES, ROOT, commands, forms

from xmafast.cli.app import app

GROUP = typer.main.get_command(app)


def complaint(words):
    """What is wrong with a command that is not merely left short."""
    if words[:1] == ["--debug"]:
        words = words[1:]
    if not words or words in (["--help"], ["--version"]):
        return None
    command = GROUP.get_command(None, words[0])
    if command is None:
        return f"there is no command {words[0]}"
    try:
        command.make_context(words[0], words[1:])
    except Exception as error:
        short = type(error).__name__ == "MissingParameter" or "requires an argument" in str(error) or "is required" in str(error)
        return None if short or type(error).__name__ == "Exit" else f"{type(error).__name__}: {error}"
    return None


FOUND = [(page, command) for page in PAGES for command in commands(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_understood(page):
    wrong = [
        f"{command!r}: {reason}" for where, command in FOUND if where == page for words in forms(command) if (reason := complaint(words))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_pages_are_read():
    assert len(FOUND) > 150
    assert (ROOT / "README.md", "xmafast eval --topk 1 5 10") in FOUND


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("xmafast trian", "no command trian"),
        ("xmafast train --epochz 3", "epochz"),
        ("xmafast train --epochs three", "integer"),
        ("xmafast train --recipe best [--lr 1]", "best"),
        ("xmafast --debug eval --impl fast|slow", "fast"),
    ],
)
def test_what_there_is_not_is_found(command, reason):
    assert any(reason in (complaint(words) or "") for words in forms(command))
