"""One inventory of low-rank updates for several data sets, with a routing of its own for each (Caccia et al., NeurIPS 2023; Polytropon,
Ponti et al., EACL 2023, is K = 1).

For each of the projections q, k and v of every block of both encoders, with S skills and K heads, and data set t:

    A_s,k (r, D / K),  B_s,k (D / K, r),  Z (T, K, S)
    w_t,k,s = sigmoid(Z_t,k,s) / sum_s' sigmoid(Z_t,k,s')
    A_t = [.. sum_s w_t,k,s A_s,k ..]_k (r, D),  B_t = [.. sum_s w_t,k,s B_s,k ..]_k (D, r),  W x + (alpha / r) B_t A_t x

A starts as LoRA's, B at zero, Z uniform within 1e-3. For one data set it is a plain LoRA of rank r: ``Retriever.collapsed`` is
that one, which merges into the backbone as every LoRA does. On widths of 768 and 512 with 12 blocks each, r = 4 and five data sets:
1,476,000 parameters for S = 4, K = 1; 2,972,160 for S = K = 8; 368,640 once collapsed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.errors import UsageError, unknown
from xmafast.methods.base import at_least_one
from xmafast.methods.clip_lora import CLIPLoRA
from xmafast.methods.lora import LoRA, product, update

ROUTE_INIT = 1e-3


class Inventory(nn.Module):
    """Of one block: ``down`` (3, S, K, r, D / K), ``up`` (3, S, K, D / K, r), ``route`` (3, T, K, S). dataset: t, or None for the mean."""

    def __init__(self, width: int, rank: int, skills: int, heads: int, datasets: int) -> None:
        super().__init__()
        piece = width // heads
        self.down = nn.Parameter(torch.empty(3, skills, heads, rank, piece).uniform_(-(width**-0.5), width**-0.5))
        self.up = nn.Parameter(torch.zeros(3, skills, heads, piece, rank))
        self.route = nn.Parameter(torch.empty(3, datasets, heads, skills).uniform_(-ROUTE_INIT, ROUTE_INIT))
        self.dataset: int | None = None

    def mixed(self) -> tuple[Tensor, Tensor]:
        """(A_t of q, k and v below each other (3 r, D), B_t likewise (3 D, r))."""
        weights = self.route.sigmoid()
        weights = weights / weights.sum(-1, keepdim=True)
        w = weights.mean(1) if self.dataset is None else weights[:, self.dataset]
        down = torch.einsum("pks,pskrd->prkd", w, self.down)
        up = torch.einsum("pks,pskdr->pkdr", w, self.up)
        return down.flatten(2).flatten(0, 1), up.flatten(0, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(.., D) -> (.., 3D)."""
        return update(x, *self.mixed(), groups=3)

    def product(self) -> Tensor:
        """B_t A_t, (3D, D)."""
        return product(*self.mixed(), groups=3)


class Routed(LoRA):
    """Parameters: ``vision.BLOCK`` and ``text.BLOCK``, each ``down``, ``up`` and ``route``.

    rank: r; skills: S; heads: K, a divisor of both widths; datasets: their names, separated by commas, in the order of Z's rows; a training
    on several fills it in. ``route_to`` chooses the one that acts.
    """

    name = "routed"
    adapts = "query, key and value of every block of both encoders, one inventory for several data sets"
    paper = "Multi-Head Adapter Routing, Caccia et al., NeurIPS 2023, arXiv 2211.03831"
    default_lr = 1e-3

    def __init__(
        self,
        shape: Shape,
        rank: int = 4,
        skills: int = 8,
        heads: int = 8,
        alpha: float = 1.0,
        dropout: float = 0.0,
        datasets: str = "",
    ) -> None:
        for name, value in (("skills", skills), ("heads", heads)):
            at_least_one(name, value)
        for what, width in (("image tower's", shape.vision_width), ("text's", shape.text_width)):
            if width % heads:
                raise UsageError(f"heads must divide the {what} width, {width}; {heads} do not.")
        self._sizes = (skills, heads)
        names = [name.strip() for name in datasets.split(",")] if datasets.strip() else []
        if len(set(names)) < len(names) or not all(names):
            raise UsageError(f"datasets names each data set once, as msrvtt,didemo, not {datasets!r}.")
        self._count = max(1, len(names))
        super().__init__(shape, rank, alpha / max(1, rank), dropout)
        self.alpha, self.datasets = alpha, names

    def _module(self, width: int) -> nn.Module:
        skills, heads = self._sizes
        return Inventory(width, self.rank, skills, heads, self._count)

    def options(self) -> dict[str, Any]:
        skills, heads = self._sizes
        return {
            "rank": self.rank,
            "skills": skills,
            "heads": heads,
            "alpha": self.alpha,
            "dropout": self.dropout.p,
            "datasets": ",".join(self.datasets),
        }

    def route_to(self, dataset: str | None) -> None:
        """Let the routing of that data set act; None, the mean of all of them, which is what a data set gets that was not trained on.

        Raises UsageError for a name that it does not have.
        """
        if dataset is not None and dataset not in self.datasets:
            raise unknown("data set", dataset, self.datasets)
        for module in (*self.vision, *self.text):
            module.dataset = None if dataset is None else self.datasets.index(dataset)

    @torch.no_grad()
    def collapsed(self, shape: Shape) -> CLIPLoRA:
        """The plain update of the data set that acts: an A and a B for each of q, k and v."""
        plain = CLIPLoRA(shape, self.rank, self.alpha / self.rank**0.5, 0.0)
        for ours, theirs in ((self.vision, plain.vision), (self.text, plain.text)):
            for inventory, low_rank in zip(ours, theirs, strict=True):
                down, up = inventory.mixed()  # type: ignore[operator]
                low_rank.down.copy_(down)  # type: ignore[operator]
                low_rank.up.copy_(up)  # type: ignore[operator]
        return plain
