"""The documentation: links lead somewhere, every page is found, and what is generated or quoted is what the code says."""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import xmafast

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
WITH_LINKS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]


def part(name):
    """A module of docs/site."""
    spec = importlib.util.spec_from_file_location(f"docs_site_{name}", DOCS / "site" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def commands():
    return part("commands")


def prose(text):
    """Markdown without its code, where brackets mean themselves."""
    text = re.sub(r"^(```+)[^\n]*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "code", text)


def anchors(text):
    """The names that a Markdown page's headings have, as GitHub and the site make them."""
    text = re.sub(r"^(```+)[^\n]*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    found = set()
    for heading in re.findall(r"^#{1,6} (.+?)\s*$", text, re.MULTILINE):
        name = base = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 0
        while name in found:
            number += 1
            name = f"{base}-{number}"
        found.add(name)
    return found


def dead(page):
    """The relative links of a page that lead to no file, or to no heading of it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or not file.is_relative_to(ROOT) or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            yield target


@pytest.mark.parametrize("page", WITH_LINKS, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    assert list(dead(page)) == []


def test_a_dead_link_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "there.md").write_text("# A heading: of `code`\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md#a-heading-of-code) [b](there.md#other) [c](gone.md) `[d](e.md)` [f](../out.md) [g](https://example.org)\n"
    )
    assert list(dead(page)) == ["there.md#other", "gone.md", "../out.md"]


def test_every_page_is_in_the_navigation_once():
    groups = part("navigation").groups((DOCS / "index.md").read_text(encoding="utf-8"))
    listed = [page for pages in groups.values() for _, page in pages]
    assert sorted(listed) == sorted(page.stem for page in PAGES if page.stem != "index")


def test_every_command_has_a_page_with_all_that_it_takes(commands, tmp_path):
    commands.write(tmp_path / "commands")
    known = commands.known_commands()
    overview = (tmp_path / "commands" / "index.md").read_text(encoding="utf-8")
    assert {"cache", "train", "eval", "search", "index", "serve"} <= set(known)
    for name, command in known.items():
        text = (tmp_path / "commands" / f"{commands.file_of(name)}.md").read_text(encoding="utf-8")
        assert text.startswith(f"# xmafast {name}\n")
        assert f"[`xmafast {name}`]" in overview
        assert text.count("{option} ") == len(command.parameters)
        assert all(parameter.help for parameter in command.parameters), name
    train = (tmp_path / "commands" / "train.md").read_text(encoding="utf-8")
    assert "{option} --header mean|text-conditioned|seqTransf" in train
    assert "{option} --cache-tokens, --no-cache-tokens" in train
    assert "xmafast train --resume\n```" in train
    assert "Default: `60s`." in train


def test_the_pages_of_the_commands_say_what_help_says(commands):
    from typer.testing import CliRunner

    from xmafast.cli.app import app

    shown = CliRunner().invoke(app, ["cache", "--help"], env={"COLUMNS": "400", "NO_COLOR": "1", "TERM": "dumb"}).output
    options = [head.split()[0] for p in commands.known_commands()["cache"].parameters if not p.argument for head in p.heads]
    assert "--time-limit" in options
    assert [option for option in options if option not in shown] == []


def test_each_command_is_in_one_group_and_its_pages_exist(commands):
    grouped = [name for names in commands.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(commands.known_commands())
    assert {page for pages in commands.PAGES.values() for page in pages} <= {page.stem for page in PAGES}


def test_each_public_name_is_on_one_page_of_python():
    pages = part("python_pages")
    listed = [name for _, _, public, _ in pages.GROUPS.values() for name in public]
    assert sorted([*listed, "__version__"]) == sorted(xmafast.__all__)


def sentences_of_the_source():
    """Every text in the code but docstrings, what is filled in as \\0."""
    found = []
    for room in ("xmafast", "cli", "kernels"):
        for path in sorted((ROOT / room).rglob("*.py")):
            nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
            docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
            for node in nodes:
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                    found.append(node.value)
    return found


def quoted():
    """The messages that docs/troubleshooting.md quotes: its headings in code."""
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    return [message.strip("` ") for message in re.findall(r"^### (`.+`)$", text, re.MULTILINE)]


def is_said(message, sentences):
    parts = [re.escape(piece) for piece in (part.strip() for part in message.split("…")) if piece]
    pattern = re.compile(".*?".join(parts), re.DOTALL)
    return any(pattern.search(sentence) for sentence in sentences)


def test_every_message_of_the_troubleshooting_page_is_one_of_the_program():
    sentences, messages = sentences_of_the_source(), quoted()
    assert len(messages) >= 60
    assert len(set(messages)) == len(messages)
    assert [message for message in messages if not is_said(message, sentences)] == []
    assert not is_said("… is finished, so there is something to go on with", sentences)


def test_docstrings_are_sorted_into_prose_parameters_and_errors():
    reading = part("reading")
    text = ["A thing of (T, D).", "", "path: x_y is *any*. more, less: docs/a-b.md. Raises CacheError for what", "is none.", "", "    a  b"]

    def function(path, more, less): ...

    lines = list(text)
    reading.docstring(None, "function", "f", function, None, lines)
    assert [line for line in lines if line] == [
        "A thing of (T, D).",
        "::",
        "    a  b",
        ":Parameters:",
        "    * **path**: x_y is \\*any\\*.",
        "    * **more, less**: :doc:`/a-b`.",
        ":Raises: CacheError for what is none.",
    ]


@pytest.mark.parametrize(
    ("block", "language"),
    [
        ("xmafast train  # a comment\n", "bash"),
        ("XMAFAST_WORKSPACE=/data xmafast train", "bash"),
        ("import xmafast\nxmafast.train()", "python"),
        ("print(1)", "python"),
        ("xmafast.train     a run's folder", "text"),
        ("dq = scale * dl c,   dc = scale * dl' q", "text"),
        ("caches/NAME/       decoded frames", "text"),
    ],
)
def test_a_blocks_language_is_seen(block, language):
    assert part("reading").language(block) == language


def test_a_built_site_is_searched_for_dead_links(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#x">1</a><a href="b.html#y">2</a><a href="c.html">3</a><a href="#z">4</a>')
    (tmp_path / "b.html").write_text('<p id="x"></p><a href="https://example.org/gone">5</a><img src="i.png">')
    assert part("check").dead_links(tmp_path) == [
        "a.html: b.html#y names no place of that page",
        "a.html: c.html is not there",
        "a.html: #z names no place of that page",
        "b.html: i.png is not there",
    ]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_without_a_dead_link(tmp_path):
    if missing := [name for name in ("sphinx", "myst_parser", "furo") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} of the extra `docs` is not installed")
    docs, site = tmp_path / "docs", tmp_path / "site"
    shutil.copytree(DOCS, docs, ignore=shutil.ignore_patterns("_build", "api", "commands"))  # it generates pages beside its sources
    for path in ROOT.iterdir():  # whatever its pages lead to
        if path != DOCS and not path.name.startswith("."):
            (tmp_path / path.name).symlink_to(path)
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", docs / "site", docs, site]
    done = subprocess.run(build, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert part("check").dead_links(site) == []
    assert "--epochs" in (site / "commands" / "train.html").read_text(encoding="utf-8")
    assert 'id="xmafast.Retriever"' in (site / "api" / "backbone.html").read_text(encoding="utf-8")
