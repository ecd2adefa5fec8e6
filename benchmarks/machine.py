"""What a measurement was taken on, for the record beside every number."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def machine() -> dict:
    """CPU, cores, GPU and the versions that matter."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        cpu = next((line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "open_clip_torch", "numpy", "h5py")},
    }
