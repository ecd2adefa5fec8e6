"""The rows of the table of methods: each method as published, the forms that the papers compare, and six combinations.

Two are not there: ``hada`` needs a second pretrained backbone, and ``stream`` features of another stream; the demo has neither.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """lr: where the search for its rate begins; None where nothing is trained by steps. header: None is the method's own."""

    name: str
    method: str | None
    lr: float | None
    options: dict[str, Any] = field(default_factory=dict)
    header: str | None = None
    plugs: tuple[str, ...] = ()
    patch_drop: float = 0.0
    hard_negatives: int = 0


ROWS = (
    Row("cross-modal", "cross-modal", 3e-3),
    Row("adapter", "adapter", 3e-3),
    Row("mv-adapter", "mv-adapter", 3e-3),
    Row("mv-adapter, kronecker", "mv-adapter", 3e-3, {"tying": "kronecker", "tied": 3}),
    Row("adaptformer", "adaptformer", 3e-3),
    Row("convpass", "convpass", 3e-3),
    Row("st-adapter", "st-adapter", 3e-3),
    Row("coop", "coop", 1e-2),
    Row("vpt", "vpt", 1e-2),
    Row("vl-prompt", "vl-prompt", 1e-2),
    Row("maple", "maple", 3e-3),
    Row("full", "full", 1e-4),
    Row("partial", "partial", 3e-4),
    Row("projection", "projection", 1e-3),
    Row("bias", "bias", 3e-3),
    Row("seqTransf on frozen CLIP", None, 3e-4, header="seqTransf"),
    Row("lora", "lora", 9e-3),
    Row("clip-lora", "clip-lora", 9e-3),
    Row("routed", "routed", 9e-3),
    Row("tempme (with lora)", "lora", 9e-3, plugs=("tempme",)),
    Row("disco (with lora)", "lora", 9e-3, plugs=("disco",)),
    Row("uniadapter", "uniadapter", 9e-3),
    Row("mrs", "mrs", 9e-3),
    Row("multi-head", "multi-head", 9e-3),
    Row("vop", "vop", 1e-2),
    Row("dgl", "dgl", 1e-2),
    Row("coupled", "coupled", 9e-3),
    Row("clip-adapter", "clip-adapter", 3e-3),
    Row("memory", "memory", None),
    Row("cross-modal, half the patches", "cross-modal", 9e-3, patch_drop=0.5),
    Row("cross-modal, hard negatives", "cross-modal", 9e-3, hard_negatives=3),
    Row("cross-modal + lora", "cross-modal", 9e-3, plugs=("lora",)),
    Row("cross-modal + disco", "cross-modal", 9e-3, plugs=("disco",)),
    Row("cross-modal + tempme", "cross-modal", 9e-3, plugs=("tempme",)),
    Row("adaptformer + disco", "adaptformer", 2.7e-2, plugs=("disco",)),
    Row("mv-adapter + disco", "mv-adapter", 9e-3, plugs=("disco",)),
    Row("lora + tempme + disco", "lora", 9e-3, plugs=("tempme", "disco")),
)
BY_NAME = {row.name: row for row in ROWS}


def run_folder(workspace: Path, row: str, seed: int) -> Path:
    """Where a training keeps its adapter."""
    return workspace / "runs" / f"{row.replace(', ', '-').replace(' ', '-')}-{seed}"
