"""``xmafast import``: an adapter trained with a method's official repository, as a run."""

from __future__ import annotations

import shutil
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xmafast.cli.options import JSON
from xmafast.cli.output import note, out, print_json

if TYPE_CHECKING:
    from xmafast.retriever import Retriever


class Official(str, Enum):
    cross_modal = "cross-modal"
    mv_adapter = "mv-adapter"


class Tying(str, Enum):
    down_in = "down-in"
    down_out = "down-out"
    up_in = "up-in"
    up_out = "up-out"


def import_official(
    method: Annotated[Official, typer.Argument(help="Whose repository the file comes from.")],
    file: Annotated[Path, typer.Argument(help="A checkpoint of PyTorch (.bin, .pt, .pth) or .safetensors.")],
    run: Annotated[Path, typer.Option("--out", help="The run's folder, which must not exist.")],
    backbone: Annotated[
        str | None, typer.Option(help="The backbone, where it is a named one (default: the file's own, kept beside).")
    ] = None,
    pretrained: Annotated[str | None, typer.Option(help="With --backbone: a tag or a weights file (default: openai).")] = None,
    tying: Annotated[Tying | None, typer.Option(help="MV-Adapter's tied projection (default: down, the end by its size).")] = None,
    json: JSON = False,
) -> None:
    """Make a run of an adapter that was trained with a method's official repository; no code in the file is run.

    Examples: xmafast import cross-modal pytorch_model.bin.4 --out runs/official | xmafast import mv-adapter best.pth --out runs/mv
    --backbone ViT-B-16
    """
    from xmafast.errors import RunError, UsageError
    from xmafast.official import import_official as read
    from xmafast.official.files import read_state_dict
    from xmafast.pretrained import load_backbone

    if run.exists():
        raise UsageError(f"{run} exists already; name another --out, so that no run is overwritten.")
    if pretrained and not backbone:
        raise UsageError("--pretrained goes with --backbone; a file has its own backbone's weights.")
    state_dict = read_state_dict(file)
    named = load_backbone(backbone, pretrained or "openai") if backbone else None
    try:
        retriever = read(method.value, state_dict, backbone=named, tying=tying.value if tying else None)
    except RunError as error:
        raise RunError(f"{file}: {error}") from error
    save(retriever, run)
    if json:
        print_json(summary(retriever, run))
        return
    for line in lines(retriever):
        out.print(line)
    out.print(f"Wrote {run}")
    note(f"Next: xmafast eval {run} CACHE")


def save(retriever: Retriever, run: Path) -> None:
    """Write a run under a hidden name first, so that one which is there is whole."""
    from xmafast.errors import RunError

    partial = run.with_name(f".{run.name}.partial")
    try:
        if partial.exists():  # of an import that was killed
            shutil.rmtree(partial)
        retriever.save(partial)
        partial.rename(run)
    except Exception as error:  # safetensors has an error of its own for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, RunError):
            raise
        raise RunError(f"{run} cannot be written ({error}); make room or name another --out.") from error


def lines(retriever: Retriever) -> list[str]:
    """What was read, for a person."""
    said = summary(retriever, Path())
    sizes = ", ".join(f"{name} {value}" for name, value in said["options"].items())
    b = said["backbone"]
    return [
        f"{said['method']} ({sizes}): {said['trainable']:,} parameters, header {said['header']}, up to {said['words']} words",
        f"on {b['name'] if retriever.backbone.config is None else 'its own backbone'}: {b['vision_depth']} blocks of width "
        f"{b['vision_width']} for images of {b['image_size']} px in patches of {b['patch_size']}, {b['text_depth']} of width "
        f"{b['text_width']} for texts, embeddings of {b['embed_dim']}, {b['parameters']:,} parameters",
    ]


def summary(retriever: Retriever, run: Path) -> dict[str, Any]:
    shape, backbone = retriever.backbone.shape, retriever.backbone
    config = retriever.config()
    names = ("vision_width", "vision_depth", "text_width", "text_depth", "embed_dim", "context_length", "parameters")
    return {
        "run": str(run),
        **{key: config[key] for key in ("method", "options", "header", "words", "trainable")},
        "backbone": {
            **config["backbone"],
            **{name: getattr(shape, name) for name in names},
            "image_size": backbone.image_size,
            "patch_size": int(backbone.clip.visual.patch_size[0]),
        },
    }
