"""A checkpoint's tensors, read without running anything that it holds."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from xmafast.errors import RunError


def read_state_dict(path: str | Path) -> Mapping[str, Any]:
    """The mapping in a file of PyTorch (``.bin``, ``.pt``, ``.pth``) or of safetensors, for ``import_official``.

    Raises RunError for a file that is none, and for one that holds more than tensors, containers and plain values.
    """
    path = Path(path)
    if path.is_dir():
        raise RunError(f"{path} is a folder; name the checkpoint's file in it.")
    if not path.exists():
        raise RunError(f"There is no file {path}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint fails in whatever way its bytes lead to
        reason = str(error)
        if "Unsupported global" in reason or "Unsupported class" in reason:
            raise RunError(
                f"{path} holds more than tensors, and nothing in a file is run here: load it where it was made, "
                "and save its state_dict() alone with torch.save."
            ) from error
        if "TorchScript" in reason:
            raise RunError(f"{path} is a TorchScript archive; save its state_dict() with torch.save.") from error
        raise RunError(f"{path} is not a checkpoint that can be read; name a .bin, .pt, .pth or .safetensors file.") from error
    if not isinstance(content, Mapping):
        raise RunError(f"{path} holds one {type(content).__name__}, not a state dict; save a model's state_dict().")
    return content
