"""Fusion of two frozen backbones' embeddings, after HADA (Nguyen et al., ECIR 2023), of which the class tokens' part is here.

Per modality, with u_1, u_2 the normalised embeddings of the two backbones, and two nodes that see each other and themselves:

    n_i  = LayerNorm(W_i u_i + b_i)                                        both of width d
    e_ij = a . LeakyReLU(S n_i + T n_j),  w_i = softmax_j(e_ij)            in each of the heads (GATv2, Brody et al., arXiv 2105.14491)
    g_i  = sum_j w_ij T n_j                                                the heads beside each other
    z    = norm(W [g_1; u_1; u_2; g_2] + b)

z has the width of both embeddings together, and W starts as the identity on u_1 and u_2 and zero elsewhere: at the start a cosine of two z
is the mean of both models' cosines, and everything else is learned from there. HADA starts at random, at a z of 512.

Left out: HADA's nodes for every token, which need the tokens of both models in a cache; with class tokens alone its graph has two
nodes, and its attention nearly is an MLP. Its constant edge attributes, which weigh tokens against class tokens. Its batch norms, under
which an item's embedding depends on the other items of its batch: a LayerNorm stands in the place of the first. Its matching loss, whose
score is no inner product. Videos are fused frame by frame.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.errors import UsageError
from xmafast.methods.common.on_features import FeatureMethod
from xmafast.pretrained import backbone_shape


class Fusion(nn.Module):
    """Two embeddings of one item side by side (..., D1 + D2) -> one unit vector (..., D1 + D2)."""

    def __init__(self, first: int, second: int, width: int, heads: int) -> None:
        super().__init__()
        self.widths, self.heads = [first, second], heads
        self.project = nn.ModuleList(nn.Linear(d, width) for d in self.widths)
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in self.widths)
        self.source, self.target = nn.Linear(width, width), nn.Linear(width, width)
        self.score = nn.Parameter(torch.randn(heads, width // heads) * (width // heads) ** -0.5)
        self.out = nn.Linear(2 * width + first + second, first + second)
        with torch.no_grad():
            self.out.weight.zero_()
            self.out.weight[:, width:-width] = torch.eye(first + second)
            self.out.bias.zero_()

    def forward(self, both: Tensor) -> Tensor:
        units = [F.normalize(u, dim=-1) for u in both.split(self.widths, dim=-1)]
        nodes = torch.stack([norm(project(u)) for u, project, norm in zip(units, self.project, self.norm, strict=True)], dim=-2)
        target = self.target(nodes).unflatten(-1, (self.heads, -1)).unsqueeze(-4)  # (..., 1, j, heads, width / heads)
        source = self.source(nodes).unflatten(-1, (self.heads, -1)).unsqueeze(-3)  # (..., i, 1, heads, width / heads)
        weights = (F.leaky_relu(source + target, 0.2) * self.score).sum(-1).softmax(dim=-2)  # (..., i, j, heads), over j
        mixed = (weights.unsqueeze(-1) * target).sum(-3).flatten(-2)  # (..., i, width)
        return F.normalize(self.out(torch.cat([mixed[..., 0, :], *units, mixed[..., 1, :]], dim=-1)), dim=-1)


class HADA(FeatureMethod):
    """Parameters: ``vision`` and ``text``, a ``Fusion`` each.

    second, second_pretrained: the second backbone, as ``load_backbone`` names it; in Python, ``second`` may also be one in memory.
    width: d. heads: of the attention, a divisor of the width. Raises UsageError outside these.
    """

    apart = "fuses two backbones"
    scalable = False
    name = "hada"
    adapts = "final embeddings of two frozen backbones, fused"
    paper = "HADA, Nguyen et al., ECIR 2023, arXiv 2301.04742"
    default_lr = 1e-4

    def __init__(self, shape: Shape, second: str = "ViT-B-16", second_pretrained: str = "openai", width: int = 512, heads: int = 4) -> None:
        super().__init__()
        if width < 1 or heads < 1 or width % heads:
            raise UsageError(f"width must be a multiple of heads, and both at least 1, not {width} and {heads}.")
        self.second, self.second_pretrained, self.width, self.heads = second, second_pretrained, width, heads
        self.embed_dim = shape.embed_dim + backbone_shape(second).embed_dim
        self.vision = Fusion(shape.embed_dim, self.embed_dim - shape.embed_dim, width, heads)
        self.text = Fusion(shape.embed_dim, self.embed_dim - shape.embed_dim, width, heads)

    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("second", "second_pretrained", "width", "heads")}

    def on_frames(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        fused: Tensor = self.vision(frames)
        return fused

    def on_text(self, text: Tensor) -> Tensor:
        fused: Tensor = self.text(text)
        return fused
