"""The house: what is exported, what is packed, and which room may look into which."""

import ast
import importlib
from pathlib import Path

import pytest

import xmafast

ROOT = Path(__file__).parents[1]
ROOMS = {"kernels": "xmafast.kernels", "cli": "xmafast.cli", "xmafast": "xmafast"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_exported_name_is_there_and_sorted():
    assert xmafast.__all__ == sorted(xmafast.__all__)
    for name in xmafast.__all__:
        assert getattr(xmafast, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = xmafast.nothing


def test_every_folder_of_code_is_packed():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(ast.literal_eval(text.split("packages = ", 1)[1].split("]", 1)[0] + "]"))
    found = {
        ".".join([module, *file.parent.relative_to(ROOT / room).parts])
        for room, module in ROOMS.items()
        for file in (ROOT / room).rglob("__init__.py")
    }
    assert found == listed
    for name in listed:
        importlib.import_module(name)


def test_dependencies_point_from_cli_to_library_to_kernels():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert all(not m.startswith("xmafast") or m.startswith("xmafast.kernels") for m in imports(path)), path
    for path in (ROOT / "xmafast").rglob("*.py"):
        assert all(not m.startswith("xmafast.cli") for m in imports(path)), path


def test_the_demos_data_stay_small():
    weights = ROOT / "xmafast/demo/backbone/open_clip_model.safetensors"
    clips = sum(p.stat().st_size for p in (ROOT / "xmafast/demo/fluent-clips").rglob("*") if p.is_file())
    assert weights.stat().st_size < 10_000_000
    assert weights.stat().st_size + clips < 25_000_000
