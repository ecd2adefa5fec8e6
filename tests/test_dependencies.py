"""What is installed with xmafast, and from which versions on: pyproject.toml, the table of reasons and the oldest versions agree."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
tomllib = pytest.importorskip("tomllib", reason="Python 3.11 brought it")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)(?:\[(.+?)\])?\s*(?:>=([0-9.]+))?")


def requirements(lines):
    """{name: its lowest version or None} of requirements, an extra of xmafast itself resolved."""
    found = {}
    for line in lines:
        name, extra, lowest = REQUIREMENT.match(line).groups()
        if name == "xmafast":
            for each in extra.split(","):
                found |= requirements(PROJECT["optional-dependencies"][each])
        else:
            found[name] = lowest
    return found


def own(lines):
    """Names of requirements, without those of another extra."""
    return {REQUIREMENT.match(line)[1] for line in lines} - {"xmafast"}


def tables():
    """{section of docs/dependencies.md: [(name, lowest version or "", reason)]}."""
    found, section = {}, ""
    for line in (ROOT / "docs/dependencies.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif cells := re.match(r"\| `(.+?)` \|(.*?)\|(.*)\|$", line):
            found.setdefault(section, []).append(tuple(cell.strip() for cell in cells.groups()))
    return found


def test_the_table_names_every_dependency_once_with_its_lowest_version_and_a_reason():
    told = tables()
    wanted = {"Always": PROJECT["dependencies"], **{f"Extra `{name}`": lines for name, lines in PROJECT["optional-dependencies"].items()}}
    assert {*told} == {*wanted}
    for section, lines in wanted.items():
        names = [name for name, _, _ in told[section]]
        assert sorted(names) == sorted(own(lines)), section
        lowest = {name: version or "" for name, version in requirements(lines).items()}
        for name, version, reason in told[section]:
            assert version == lowest[name], name
            assert len(reason.split()) >= 4, name


def test_the_oldest_versions_are_those_that_pyproject_allows():
    lines = (ROOT / "requirements/oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    lowest = requirements([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]])

    def numbers(version):
        parts = [int(part) for part in version.split(".")]
        return parts + [0] * (4 - len(parts))

    assert {name: numbers(version) for name, version in pinned.items()} == {name: numbers(v) for name, v in lowest.items() if v}
    assert list(pinned) == sorted(pinned)


def test_every_lowest_version_is_below_what_is_installed():
    from importlib.metadata import PackageNotFoundError, version

    for name, lowest in requirements(PROJECT["dependencies"]).items():
        try:
            installed = version(name)
        except PackageNotFoundError:  # of another platform
            continue
        digits = [int(part) for part in re.findall(r"\d+", installed.partition("+")[0])[:3]]
        assert digits >= [int(part) for part in lowest.split(".")], name
