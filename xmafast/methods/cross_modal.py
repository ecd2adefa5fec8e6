"""Cross-Modal Adapter (Jiang et al., arXiv 2211.09623).

In every block of both encoders, one adapter after the attention and one after the MLP, each inside the residual branch:

    x <- x + A_attn(MSA(LN1 x));  x <- x + A_mlp(MLP(LN2 x))
    A(y) = y + concat[z Wu' + bu, z Ws' + bs],  z = quick_gelu(y Wd' + bd)

Ws, bs (the last ``shared`` channels) belong to the vision and the text adapter of paired blocks at the same site; the rest
is each encoder's own. MV-Adapter's comparison has it after the MLP alone, with a LayerNorm before Wd and trained CLIP biases (``sites``,
``norm``, ``train_biases``). Every weight starts at N(0, 0.01), every bias at 0. On ViT-B/32 with bottleneck 8 and shared 16
that is 519,168 parameters, the published 0.52 M. Where the encoders differ in depth, an unpaired block keeps an
unshared slice (our extension: the published code cannot build ViT-L/14).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import MapThenNorm, Places
from xmafast.errors import UsageError, unknown
from xmafast.kernels import adapter, adapter_norm
from xmafast.methods.base import Context, Method, at_least_one, pair_blocks
from xmafast.methods.common.tuned import Tuned, biases

SITES = ("attention", "mlp")
INIT_STD = 0.01


class Up(nn.Module):
    """An up-projection of the bottleneck onto ``width`` channels."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, bottleneck) * INIT_STD)
        self.bias = nn.Parameter(torch.zeros(width))


class Adapter(nn.Module):
    """One encoder's own part of an adapter; the shared part is handed in by the caller."""

    def __init__(self, width: int, bottleneck: int, shared: int, norm: bool) -> None:
        super().__init__()
        self.norm: nn.LayerNorm | None = nn.LayerNorm(width) if norm else None
        self.down_weight = nn.Parameter(torch.randn(bottleneck, width) * INIT_STD)
        self.down_bias = nn.Parameter(torch.zeros(bottleneck))
        self.up_weight = nn.Parameter(torch.randn(width - shared, bottleneck) * INIT_STD)
        self.up_bias = nn.Parameter(torch.zeros(width - shared))


def _weights(own: Adapter, shared: Up | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    up = (None, None) if shared is None else (shared.weight, shared.bias)
    return own.down_weight, own.down_bias, own.up_weight, own.up_bias, *up


class NormedSite:
    """An adapter with a LayerNorm before Wd at its place in a block, own and shared part together."""

    def __init__(self, own: Adapter, shared: Up | None, impl: str) -> None:
        self.weights, self.norm, self.impl = _weights(own, shared), own.norm, impl

    def __call__(self, y: Tensor) -> Tensor:
        assert self.norm is not None
        return adapter(self.norm(y), *self.weights, residual=y, impl=self.impl)


class Site(MapThenNorm):
    """An adapter at its place in a block, own and shared part together."""

    def __init__(self, own: Adapter, shared: Up | None, impl: str) -> None:
        self.weights, self.impl = _weights(own, shared), impl

    def __call__(self, y: Tensor) -> Tensor:
        return adapter(y, *self.weights, impl=self.impl)

    def add_norm(self, y: Tensor, x: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
        return adapter_norm(y, x, norm.weight, norm.bias, *self.weights, eps=norm.eps, impl=self.impl)


class CrossModalAdapter(Method):
    """Parameters: ``vision.BLOCK.SITE`` and ``text.BLOCK.SITE`` (own), ``shared.PAIR.SITE`` (both encoders').

    bottleneck: r, the width between the projections. shared: s, the channels written by the shared up-projection,
    0 <= s <= the narrower encoder's width; 0 is the paper's "w/o share". sites: both, attention or mlp. norm: a LayerNorm before Wd.
    train_biases: CLIP's biases too. Raises UsageError outside these.
    """

    name = "cross-modal"
    family = "adapter"
    adapts = "after attention and MLP of both encoders, partly shared"
    paper = "Cross-Modal Adapter, Jiang et al., arXiv 2211.09623"
    licence = "Apache-2.0"
    default_header = "text-conditioned"
    default_lr = 1e-3

    def __init__(
        self, shape: Shape, bottleneck: int = 8, shared: int = 16, sites: str = "both", norm: bool = False, train_biases: bool = False
    ) -> None:
        super().__init__()
        narrow = min(shape.vision_width, shape.text_width)
        at_least_one("bottleneck", bottleneck)
        if not 0 <= shared <= narrow:
            raise UsageError(f"--shared must lie between 0 and {narrow}, the narrower encoder's width, not {shared}.")
        if sites not in ("both", *SITES):
            raise unknown("sites", sites, ("both", *SITES))
        self.bottleneck, self.shared_width = bottleneck, shared
        self.sites, self.norm, self.train_biases = sites, norm, train_biases
        at = SITES if sites == "both" else (sites,)
        pairs = pair_blocks(shape.vision_depth, shape.text_depth) if shared else []
        self._vision_pair = {v: i for i, (v, _) in enumerate(pairs)}
        self._text_pair = {t: i for i, (_, t) in enumerate(pairs)}

        def own(width: int, depth: int, pair: dict[int, int]) -> nn.ModuleList:
            return nn.ModuleList(
                nn.ModuleDict({site: Adapter(width, bottleneck, shared if block in pair else 0, norm) for site in at})
                for block in range(depth)
            )

        self.vision = own(shape.vision_width, shape.vision_depth, self._vision_pair)
        self.text = own(shape.text_width, shape.text_depth, self._text_pair)
        self.shared = nn.ModuleList(nn.ModuleDict({site: Up(shared, bottleneck) for site in at}) for _ in pairs)
        if train_biases:
            self.tuned = Tuned(shape.tensors, biases(shape.tensors))

    def options(self) -> dict[str, Any]:
        rest = {name: getattr(self, name) for name in ("sites", "norm", "train_biases")}
        return {"bottleneck": self.bottleneck, "shared": self.shared_width, **rest}

    def vision_places(self, block: int, context: Context) -> Places:
        return self._places(self.vision[block], self._vision_pair.get(block), context.impl)

    def text_places(self, block: int, context: Context) -> Places:
        return self._places(self.text[block], self._text_pair.get(block), context.impl)

    def _places(self, own: Any, pair: int | None, impl: str) -> Places:
        shared: Any = dict.fromkeys(own) if pair is None else self.shared[pair]
        kind: Any = NormedSite if self.norm else Site
        return Places(**{f"after_{site}": kind(own[site], shared[site], impl) for site in own}, tokenwise=True)
