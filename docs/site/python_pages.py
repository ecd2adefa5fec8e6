"""The Python pages: what `import xmafast` offers, by what it is for, each from its docstring."""

from __future__ import annotations

import shutil
from pathlib import Path

GROUPS = {  # file -> title, what a reader finds there, names of xmafast.__all__, and what goes with them: what calls take and return
    "backbone": (
        "Backbone and retriever",
        "The frozen model, and the model that is trained, saved and asked: backbone, method and header.",
        ["load_backbone", "Backbone", "Retriever"],
        ["xmafast.backbone.Shape"],
    ),
    "caches": (
        "Caches",
        "Videos are decoded once; training, evaluation and search read these files. Their form: :doc:`/cache-format`.",
        [
            "build_cache",
            "FrameCache",
            "build_features",
            "FeatureCache",
            "open_splits",
            "merge",
            "FrameDataset",
            "write_stream",
            "StreamFile",
        ],
        ["xmafast.cache.Summary", "xmafast.cache.Shard", "xmafast.cache.Status", "xmafast.datasets.load_split"],
    ),
    "methods": (
        "Methods",
        "What can be trained, and how a published file is read. Each one's formula and sources: :doc:`/methods`; "
        "how to write one: :doc:`/adding-a-method`.",
        ["METHODS", "import_official"],
        ["xmafast.methods.Method", "xmafast.methods.base.Context", "xmafast.blocks.Places"],
    ),
    "training": (
        "Training",
        "One call, and the run that it leaves. See :doc:`/training`.",
        ["train"],
        ["xmafast.training.Trained", "xmafast.training.Step"],
    ),
    "evaluation": (
        "Evaluation",
        "Metrics with their protocol. What each number means: :doc:`/evaluation`.",
        ["evaluate"],
        ["xmafast.ranks.Ranks", "xmafast.ranks.rank_matrix", "xmafast.comparison.compare", "xmafast.records.evaluate_run"],
    ),
    "search": (
        "Index and search",
        "A library of one's own videos. See :doc:`/search`.",
        ["Index"],
        ["xmafast.index.Found", "xmafast.index.Filters", "xmafast.index.Updated"],
    ),
    "sharing": (
        "Sharing",
        "Adapters from a folder or the hub. See :doc:`/sharing`.",
        ["load"],
        ["xmafast.export.export", "xmafast.sharing.pull", "xmafast.sharing.push"],
    ),
}
KERNELS = "The functions of `xmafast.kernels`, from tensors to tensors. The mathematics: :doc:`/kernels`."


def write(folder: Path) -> None:
    """One file for each group, one for the kernels, one for the errors, and one that lists them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, (title, about, public, beside) in GROUPS.items():
        text = [heading(title, "="), about]
        text += [documented(f"xmafast.{each}") for each in public]
        if beside:
            text += [heading("Beside them", "-"), "What these take, return or are made of.", *map(documented, beside)]
        (folder / f"{name}.rst").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    (folder / "kernels.rst").write_text(
        "\n\n".join([heading("Kernels", "="), KERNELS, *map(documented, kernels())]) + "\n", encoding="utf-8"
    )
    errors = "All errors that xmafast raises on purpose. Each message is one sentence: :doc:`/troubleshooting`."
    module = ".. automodule:: xmafast.errors\n   :members:\n   :exclude-members: unknown\n   :member-order: bysource"
    (folder / "errors.rst").write_text("\n\n".join([heading("Errors", "="), errors, module]) + "\n", encoding="utf-8")
    (folder / "index.rst").write_text(overview(), encoding="utf-8")


def overview() -> str:
    text = [
        heading("Python", "="),
        "What ``import xmafast`` offers. A walk through it: :doc:`/python`. Names are imported when they are first used.",
    ]
    for name, (title, _, public, _) in GROUPS.items():
        text += [f"**{title}** (:doc:`{name}`)", "\n".join(f"* :any:`xmafast.{each}`: {first_sentence(each)}" for each in public)]
    text += ["``xmafast.__version__`` is the version. Beside these: :doc:`kernels` and :doc:`errors`."]
    text += [".. toctree::\n   :hidden:\n\n" + "\n".join(f"   {name}" for name in [*GROUPS, "kernels", "errors"])]
    return "\n\n".join(text) + "\n"


def documented(name: str) -> str:
    """The directive for what is called ``name``."""
    import enum
    import inspect
    from importlib import import_module

    module, _, last = name.rpartition(".")
    found = getattr(import_module(module), last)
    if inspect.isclass(found):
        options = ["members", "show-inheritance"] if issubclass(found, enum.Enum) else ["members"]
        return "\n".join([f".. autoclass:: {name}", *(f"   :{option}:" for option in options)])
    if callable(found):
        return f".. autofunction:: {name}"
    return f".. py:data:: {name}\n\n{methods_table()}"


def methods_table() -> str:
    from xmafast.methods import METHODS

    rows = ["   Every method by its name: what ``method=`` and ``plugs=`` take.", "", "   .. list-table::", "      :header-rows: 1", ""]
    rows += ["      * - name", "        - acts", "        - published as"]
    for name, method in sorted(METHODS.items()):
        rows += [f"      * - ``{name}``", f"        - {method.adapts}", f"        - {method.paper}"]
    return "\n".join(rows)


def kernels() -> list[str]:
    import xmafast.kernels

    return [f"xmafast.kernels.{name}" for name in xmafast.kernels.__all__ if callable(getattr(xmafast.kernels, name))]


def first_sentence(name: str) -> str:
    import inspect

    import xmafast

    if name == "METHODS":
        return "every method by its name."
    text = inspect.getdoc(getattr(xmafast, name)) or ""
    line = " ".join(text.partition("\n\n")[0].split())
    return line


def heading(title: str, rule: str) -> str:
    return f"{title}\n{rule * len(title)}"
