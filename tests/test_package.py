"""The house: what is exported, what is packed, and which room may look into which."""

import ast
import importlib
import inspect
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


def packages():
    """Name and folder of each package of the three rooms."""
    for room, module in ROOMS.items():
        for file in sorted((ROOT / room).rglob("__init__.py")):
            yield ".".join([module, *file.parent.relative_to(ROOT / room).parts]), file


def lacking(function):
    """The parameters of a function that have no type, and ``return``."""
    signature = inspect.signature(function)
    untyped = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")]
    return untyped + ["return"] * (signature.return_annotation is signature.empty)


def members(kind):
    """The public functions, properties and ``__init__`` that a class itself defines."""
    for name, value in vars(kind).items():
        function = getattr(value, "__func__", None) or getattr(value, "fget", None) or getattr(value, "func", value)
        if inspect.isfunction(function) and (name == "__init__" or not name.startswith("_")):
            yield name, function


@pytest.mark.parametrize("module", [name for name, _ in packages()])
def test_every_public_name_of_a_package_is_documented_and_typed(module):
    package = importlib.import_module(module)
    for name in getattr(package, "__all__", ()):
        value = getattr(package, name)
        if inspect.isclass(value):
            assert value.__doc__, name
            assert not value.__doc__.startswith(f"{name}("), name  # what dataclasses write
            for member, function in members(value):
                assert not lacking(function), f"{name}.{member}"
                assert module != "xmafast" or member == "__init__" or inspect.getdoc(function), f"{name}.{member}"
        elif inspect.isfunction(value):
            assert inspect.getdoc(value), name
            assert not lacking(value), name


def test_what_a_package_offers_is_what_it_imports_or_defines():
    """A package that only gathers names offers all of them, one with code of its own all that it defines."""
    for module, file in packages():
        body = ast.parse(file.read_text(encoding="utf-8")).body
        gathered, defined = set(), set()
        for node in body:
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("xmafast"):
                gathered |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                defined |= {target.id for target in targets if isinstance(target, ast.Name)}
        gathered, defined = ({name for name in names if not name.startswith("_")} for names in (gathered, defined))
        listed = getattr(importlib.import_module(module), "__all__", [])
        assert listed == sorted({*listed}), module
        if module != "xmafast":  # which offers names of its modules on first use
            assert defined <= {*listed} <= gathered | defined, module
            assert defined or gathered == {*listed}, module


def test_names_that_wait_for_their_first_use_are_those_that_type_checkers_see():
    (guarded,) = (node for node in ast.parse((ROOT / "xmafast/__init__.py").read_text(encoding="utf-8")).body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == {name: f"xmafast.{home}" for name, home in xmafast._HOME.items()}
    assert {*seen, "__version__"} == {*xmafast.__all__}


def test_every_folder_of_code_is_packed():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(ast.literal_eval(text.split("packages = ", 1)[1].split("]", 1)[0] + "]"))
    assert {name for name, _ in packages()} == listed
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
