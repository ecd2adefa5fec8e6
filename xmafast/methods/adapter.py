"""Plain adapters after attention and MLP, in both encoders: the Cross-Modal Adapter without sharing (Houlsby et al., arXiv 1902.00751).

Each starts near the frozen model.
"""

from __future__ import annotations

from typing import Any

from xmafast.backbone import Shape
from xmafast.methods.cross_modal import CrossModalAdapter


class PlainAdapter(CrossModalAdapter):
    """bottleneck: of each adapter. The Cross-Modal Adapter with nothing shared."""

    name = "adapter"
    adapts = "after attention and MLP of both encoders"
    paper = "Adapters, Houlsby et al., ICML 2019, arXiv 1902.00751"

    def __init__(self, shape: Shape, bottleneck: int = 8) -> None:
        super().__init__(shape, bottleneck, 0)

    def options(self) -> dict[str, Any]:
        return {"bottleneck": self.bottleneck}
