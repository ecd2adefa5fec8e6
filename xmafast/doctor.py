"""What this machine has, what falls back, and why."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple


class Finding(NamedTuple):
    """One thing looked at: ``state`` is ``ok``, ``falls back`` or ``missing``."""

    name: str
    state: str
    detail: str


def examine(workspace: Path) -> list[Finding]:
    """Look at the machine; changes nothing and loads no weights."""
    import torch

    from xmafast.cache.decode import PACKAGES, torchcodec_fault
    from xmafast.pretrained import DEMO
    from xmafast.version import described

    findings = [
        Finding("xmafast", "ok", described()),
        Finding("python", "ok", f"{platform.python_version()}, {platform.platform()}"),
        Finding("torch", "ok", torch.__version__),
    ]
    if torch.cuda.is_available():
        findings.append(
            Finding("GPU", "ok", f"{torch.cuda.get_device_name()}, bfloat16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}")
        )
    elif torch.backends.mps.is_available():
        findings.append(Finding("GPU", "falls back", "an Apple GPU is here, and xmafast computes on the CPU"))
    else:
        findings.append(Finding("GPU", "falls back", f"no CUDA device; everything runs on the CPU, {os.cpu_count()} cores, float32"))
    findings.append(_package("triton", "falls back", "no wheel for this platform; the eager forms are used"))
    findings.append(_package("open_clip_torch", "missing", "backbones cannot be built; pip install open_clip_torch"))
    findings.append(_package("h5py", "missing", "caches cannot be written; pip install h5py"))
    found = {name: version(package) for name, package in PACKAGES.items() if importlib.util.find_spec(package)}
    fault = torchcodec_fault() if "torchcodec" in found else ""
    if fault:
        del found["torchcodec"]
    listed = ", ".join(f"{name} {number}" for name, number in found.items())
    if "decord" in found:
        findings.append(Finding("video decoder", "ok", listed))
    elif found:
        findings.append(Finding("video decoder", "falls back", f"{listed}; decord has wheels for Linux x86-64 alone"))
    else:
        findings.append(Finding("video decoder", "missing", "only images can be cached; pip install av"))
    if fault:
        findings.append(Finding("torchcodec", "falls back", fault))
    weights = DEMO / "open_clip_model.safetensors"
    findings.append(Finding("demo backbone", "ok" if weights.is_file() else "missing", str(weights)))
    place = next(p for p in (workspace.resolve(), *workspace.resolve().parents) if p.exists())
    writable = os.access(place, os.W_OK)
    free = shutil.disk_usage(place).free / 1e9
    findings.append(
        Finding(
            "workspace",
            "ok" if writable else "missing",
            f"{workspace.resolve()}, {free:.0f} GB free" + ("" if writable else ", not writable"),
        )
    )
    return findings


def _package(name: str, otherwise: str, why: str) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        return Finding(name, otherwise, why)
