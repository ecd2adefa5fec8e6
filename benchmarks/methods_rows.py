"""The rows of the table of methods: each method as published, and the forms that the papers compare."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """lr: where the search for its rate begins. header: None is the method's own."""

    name: str
    method: str | None
    lr: float
    options: dict[str, Any] = field(default_factory=dict)
    header: str | None = None


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
)
BY_NAME = {row.name: row for row in ROWS}
