"""What of a run is passed on: its adapter with a model card, or the backbone with the updates added to its weights.

Nothing else of a run's folder is: the record of an evaluation holds the data set's captions, and the configurations hold paths.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from xmafast.backbone import LOCAL_CONFIG, LOCAL_WEIGHTS, Backbone
from xmafast.card import LICENCES, SAMPLES, Facts, card, facts_of
from xmafast.errors import RunError, UsageError, unknown
from xmafast.methods.combined import Combined
from xmafast.methods.lora import LoRA
from xmafast.pretrained import DEMO
from xmafast.retriever import CONFIG, OWN_BACKBONE, WEIGHTS, Retriever, adapter_folder, load
from xmafast.training.folder import is_interrupted

CARD, VOCABULARY = "README.md", "bpe.txt.gz"
DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, its files, the card's facts, and what to know of it."""

    folder: Path
    files: list[str]
    facts: Facts
    remarks: list[str]


def export(
    run: str | Path,
    out: str | Path,
    *,
    dtype: str = "float32",
    licence: str | None = None,
    repo: str | None = None,
    merged: bool = False,
    dataset: str | None = None,
    samples: int = SAMPLES,
) -> Exported:
    """Write what others need of a run to the new folder ``out``: an adapter of the best epoch, and a card.

    dtype: of the stored tensors, ``float32`` or ``float16``. licence: an identifier of the hub, as ``mit``, or any name; None is said to
    be unspecified. repo: where it will lie, for the card. merged: in place of the adapter, write the backbone with the low-rank updates in
    its weights, in open_clip's own format; dataset: whose updates, of a run for several. samples: of the card's intervals.

    Raises UsageError for a folder that exists, what cannot be merged, and numbers beyond float16; RunError for a run that is missing,
    unfinished or damaged, and a disk that cannot be written to.
    """
    run, out = Path(run), Path(out)
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if licence is not None and not licence.strip():
        raise UsageError("--license names no licence; leave it out, or give one, as --license apache-2.0.")
    if dataset is not None and not merged:
        raise UsageError("--dataset goes with --merged; an adapter is exported with all of its data sets.")
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists already; name another --out, so that nothing is overwritten.")
    if is_interrupted(run):
        raise RunError(
            f"{run} is not finished; go on with: xmafast train --resume --out {run} (or name {run / 'best'} or {run / 'last'} to export "
            "that as it is)"
        )
    folder = adapter_folder(run)
    config = read_config(folder)
    facts = facts_of(run, portable(config))
    if merged:
        place, own_vocabulary = _merged(folder, dtype, dataset)
    else:
        place, own_vocabulary = _adapter(folder, config, facts.config, dtype), False
    text = card(
        facts,
        licence=licence,
        repo=repo,
        dtype=dtype,
        merged=merged,
        routed_to=dataset,
        own_vocabulary=own_vocabulary,
        samples=samples,
    )

    def fill(partial: Path) -> None:
        place(partial)
        (partial / CARD).write_text(text, encoding="utf-8")

    write_folder(out, fill)
    remarks = list(facts.remarks)
    if not facts.records:
        remarks.append(f"No evaluation is recorded, and the card says so; fill it in with: xmafast eval {run} CACHE, and export again.")
    if licence is None:
        remarks.append("No licence was named, and the card says so; name one with --license.")
    elif licence.strip().lower() not in LICENCES:
        remarks.append(f"{licence!r} is none of the hub's licence identifiers, so the card has it as a licence of your own.")
    return Exported(out, sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()), facts, remarks)


def read_config(folder: Path) -> dict[str, Any]:
    """An adapter's configuration. Raises RunError where it is none of this program's."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise TypeError("no object")
        if "peft_type" in config:
            raise RunError(f"{path} is of an adapter that peft made, not xmafast; load it with peft.")
        for backbone in (config["backbone"], *([config["second"]] if "second" in config else [])):
            if not all(isinstance(backbone[key], str) for key in ("name", "pretrained", "sha256")):
                raise TypeError("backbone")
        wrong = [
            key
            for key, kind in (("options", dict), ("header", str), ("words", int), ("trainable", int), ("temperature", (int, float)))
            if not isinstance(config[key], kind)
        ]
        plugs = config.get("plugs", [])
        if not isinstance(plugs, list) or not all(isinstance(of, dict) for _, of in plugs):
            wrong.append("plugs")
        if wrong or not isinstance(config["method"], (str, type(None))):
            raise TypeError(wrong[0] if wrong else "method")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is not an xmafast adapter configuration ({error}); train again or restore the file.") from error
    return config


def is_path(name: str) -> bool:
    """Whether a backbone's name, or the name of its weights, is a place on one machine."""
    return name != OWN_BACKBONE and (bool(re.search(r"[\\/]", name)) or name.startswith("~"))


def portable(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the paths of the machine that it was written on: of a backbone's folder and file only the names are left."""

    def bare(name: Any) -> Any:
        return re.split(r"[\\/]", name.rstrip("\\/"))[-1] if isinstance(name, str) and is_path(name) else name

    def without(named: dict[str, Any], *keys: str) -> dict[str, Any]:
        return {key: bare(value) if key in keys else value for key, value in named.items()}

    found = {**config, "backbone": without(config["backbone"], "name", "pretrained")}
    if "second" in config:
        found["second"] = without(config["second"], "name", "pretrained")
    found["options"] = without(config["options"], "second", "second_pretrained")
    if "plugs" in config:
        found["plugs"] = [[name, without(given, "second", "second_pretrained")] for name, given in config["plugs"]]
    return found


Place = Callable[[Path], None]


def _adapter(folder: Path, config: dict[str, Any], written: dict[str, Any], dtype: str) -> Place:
    """What writes the adapter of a folder, with another configuration."""
    tensors = as_dtype(_tensors(folder / WEIGHTS), dtype)
    backbone = folder / OWN_BACKBONE
    names = (LOCAL_CONFIG, LOCAL_WEIGHTS, VOCABULARY)
    if config["backbone"]["name"] == OWN_BACKBONE and not all((backbone / name).is_file() for name in names[:2]):
        raise RunError(f"{folder} holds no whole backbone, the one that it was saved with; restore the folder.")

    def place(out: Path) -> None:
        save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
        (out / CONFIG).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        if config["backbone"]["name"] == OWN_BACKBONE:
            (out / OWN_BACKBONE).mkdir()
            for name in names:
                if (backbone / name).is_file():
                    shutil.copyfile(backbone / name, out / OWN_BACKBONE / name)

    return place


def _merged(folder: Path, dtype: str, dataset: str | None) -> tuple[Place, bool]:
    """(what writes the merged model, whether its vocabulary is another than CLIP's)."""
    retriever = load(folder)
    if dataset is None and retriever.datasets:
        raise UsageError(f"The run has updates for several data sets; name one with --dataset: {', '.join(retriever.datasets)}.")
    if dataset is not None:
        if not retriever.datasets:
            raise UsageError("--dataset goes with a run for several data sets, which this is not; leave it out.")
        retriever.dataset = dataset
    weights = as_dtype(merged_weights(retriever), dtype)
    described, vocabulary = open_clip_config(retriever.backbone), _vocabulary(retriever.backbone)

    def place(out: Path) -> None:
        save_file(weights, out / LOCAL_WEIGHTS, metadata={"format": "pt"})
        (out / LOCAL_CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        if vocabulary:
            shutil.copyfile(vocabulary, out / VOCABULARY)

    return place, vocabulary is not None


@torch.no_grad()
def merged_weights(retriever: Retriever) -> dict[str, Tensor]:
    """open_clip's state dict of the backbone with the low-rank updates added to its weights.

    Raises UsageError unless low-rank updates are all that was trained: what else there is would be lost.
    """
    method = retriever.method
    parts = list(method.parts.values()) if isinstance(method, Combined) else [method]
    if other := next((part.name for part in parts if part is not None and not isinstance(part, LoRA)), None):
        raise UsageError(f"{other!r} cannot be merged: it is no update of the backbone's weights. Export the adapter without --merged.")
    if retriever.temporal is not None or method is None:
        raise UsageError(f"The trained header {retriever.header!r} cannot be merged into a backbone. Export the adapter without --merged.")
    clip = retriever.backbone.clip
    try:
        changed = method.fold(dict(clip.named_parameters()))
    finally:
        method.unfold()
    return {name: changed.get(name, value).detach().cpu().contiguous().clone() for name, value in clip.state_dict().items()}


def open_clip_config(backbone: Backbone) -> dict[str, Any]:
    """What ``open_clip_config.json`` says of a backbone."""
    if backbone.config is not None:
        return backbone.config
    folder = DEMO if backbone.name == "demo" else Path(backbone.name)
    if (folder / LOCAL_CONFIG).is_file():
        config: dict[str, Any] = json.loads((folder / LOCAL_CONFIG).read_text(encoding="utf-8"))
        return config
    model = dict(open_clip.get_model_config(backbone.name))
    tag = open_clip.get_pretrained_cfg(backbone.name, backbone.pretrained) or {}
    if tag.get("quick_gelu"):  # the name alone says GELU
        model["quick_gelu"] = True
    preprocess = {"mean": backbone.mean.flatten().tolist(), "std": backbone.std.flatten().tolist()}
    return {
        "model_cfg": model,
        "preprocess_cfg": {**preprocess, **{key: tag[key] for key in ("interpolation", "resize_mode") if key in tag}},
    }


def _vocabulary(backbone: Backbone) -> Path | None:
    folder = DEMO if backbone.name == "demo" else Path(backbone.name)
    return folder / VOCABULARY if (folder / LOCAL_CONFIG).is_file() and (folder / VOCABULARY).is_file() else None


def as_dtype(tensors: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Floating-point tensors in another dtype, the rest as they are. Raises UsageError where a finite number would become infinite."""
    found = {}
    for name, tensor in tensors.items():
        found[name] = tensor.to(DTYPES[dtype]) if tensor.is_floating_point() else tensor
        if tensor.is_floating_point() and bool((found[name].isinf() & tensor.isfinite()).any()):
            raise UsageError(f"The tensor {name!r} has numbers beyond {dtype}'s {torch.finfo(DTYPES[dtype]).max:g}; export as float32.")
    return found


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be loaded ({str(error).strip().splitlines()[0]}); train again or restore the file.") from error


def write_folder(out: Path, fill: Callable[[Path], object]) -> None:
    """``fill`` writes a folder beside ``out``, which then takes its name, so that one which is there is whole.

    Raises RunError where it cannot be written.
    """
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir(parents=True)
        fill(partial)
        partial.rename(out)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        raise RunError(f"{out} cannot be written ({error}); make room or name another --out.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
