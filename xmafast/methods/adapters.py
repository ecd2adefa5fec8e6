"""Adapters that the two papers compare with, in both encoders.

adapter:     plain adapters after attention and MLP: the Cross-Modal Adapter without sharing (Houlsby et al., arXiv 1902.00751)
adaptformer: s W_u relu(W_d x): of the residual stream before the MLP, added to the MLP's output ("parallel", arXiv 2205.13535), or
             of the MLP's output itself ("sequential")
convpass:    s W_u g(C(g(W_d h))) beside attention and MLP, on their LayerNormed input h, with a 3 x 3 convolution C over the
             patches as an image and over each token before them, as the class token, as an image of one pixel, g = quick_gelu
             (Jie and Deng, arXiv 2207.07039)
st-adapter:  x + W_u C(W_d x) of the patches at the beginning of each block, with a depth-wise convolution C over three frames
             (Pan et al., arXiv 2206.13559)

The text encoder has no patches and no frames: there each method but the first has sequential adapters after the MLP,
f + s W_u relu(W_d f), as in MV-Adapter's comparison (arXiv 2301.07868, section 5.1). Up-projections (st-adapter: its convolution)
start at zero, so that each starts as the frozen model; plain adapters start near it.

The sizes in that comparison come out with a LayerNorm in each adapter and trained CLIP biases: ``norm`` and ``train_biases``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.errors import UsageError, unknown
from xmafast.kernels import adapter
from xmafast.methods.base import Context, Method, quick_gelu
from xmafast.methods.cross_modal import CrossModalAdapter
from xmafast.methods.tuned import Tuned, biases

FORMS = ("parallel", "sequential")


class Bottleneck(nn.Module):
    """scale W_u relu(W_d LN(x)), the LayerNorm where asked."""

    def __init__(self, width: int, bottleneck: int, scale: float, norm: bool) -> None:
        super().__init__()
        self.norm: nn.LayerNorm | None = nn.LayerNorm(width) if norm else None
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        self.scale = scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def added(self, x: Tensor, residual: Tensor, impl: str) -> Tensor:
        """residual + scale A(x), in one pass where the kernel runs."""
        h = x if self.norm is None else self.norm(x)
        weights = (self.down.weight, self.down.bias, self.up.weight, self.up.bias)
        return adapter(h, *weights, activation="relu", scale=self.scale, residual=residual, impl=impl)

    def forward(self, x: Tensor) -> Tensor:
        update: Tensor = self.scale * self.up(F.relu(self.down(x if self.norm is None else self.norm(x))))
        return update


class BothEncoders(Method):
    """A method with modules of its own in the vision blocks and sequential adapters in the text blocks."""

    family = "adapter"
    default_header = "mean"
    default_lr = 1e-3

    def __init__(self, shape: Shape, vision: nn.ModuleList, text_bottleneck: int, scale: float, norm: bool, train_biases: bool) -> None:
        super().__init__()
        if text_bottleneck < 1:
            raise UsageError(f"text_bottleneck must be at least 1, not {text_bottleneck}.")
        self.vision, self.scale, self.norm, self.train_biases = vision, scale, norm, train_biases
        self.text = nn.ModuleList(Bottleneck(shape.text_width, text_bottleneck, scale, norm) for _ in range(shape.text_depth))
        if train_biases:
            self.tuned = Tuned(shape.tensors, biases(shape.tensors))

    def text_places(self, block: int, context: Context) -> Places:
        own: Any = self.text[block]
        return Places(after_mlp=lambda y: own.added(y, y, context.impl), tokenwise=True)


def _check(bottleneck: int) -> None:
    if bottleneck < 1:
        raise UsageError(f"--bottleneck must be at least 1, not {bottleneck}.")


class PlainAdapter(CrossModalAdapter):
    """bottleneck: of each adapter. The Cross-Modal Adapter with nothing shared."""

    name = "adapter"
    adapts = "after attention and MLP of both encoders"
    paper = "Adapters, Houlsby et al., ICML 2019, arXiv 1902.00751"

    def __init__(self, shape: Shape, bottleneck: int = 8) -> None:
        super().__init__(shape, bottleneck, 0)

    def options(self) -> dict[str, Any]:
        return {"bottleneck": self.bottleneck}


class AdaptFormer(BothEncoders):
    """form: parallel or sequential, in the vision encoder. norm: a LayerNorm in each adapter."""

    name = "adaptformer"
    adapts = "beside the MLP (vision), after it (text)"
    paper = "AdaptFormer, Chen et al., NeurIPS 2022, arXiv 2205.13535"
    licence = "MIT"

    def __init__(
        self,
        shape: Shape,
        bottleneck: int = 64,
        form: str = "parallel",
        scale: float = 0.1,
        norm: bool = False,
        train_biases: bool = False,
    ) -> None:
        _check(bottleneck)
        if form not in FORMS:
            raise unknown("form", form, FORMS)
        vision = nn.ModuleList(Bottleneck(shape.vision_width, bottleneck, scale, norm) for _ in range(shape.vision_depth))
        super().__init__(shape, vision, bottleneck, scale, norm, train_biases)
        self.bottleneck, self.form = bottleneck, form

    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("bottleneck", "form", "scale", "norm", "train_biases")}

    def vision_places(self, block: int, context: Context) -> Places:
        own: Any = self.vision[block]
        if self.form == "parallel":
            return Places(parallel_mlp=lambda x, h: own(x), tokenwise=True)
        return Places(after_mlp=lambda y: own.added(y, y, context.impl), tokenwise=True)


class ConvSite(nn.Module):
    """W_u g(C(g(W_d LN(x)))) over the tokens of images (B, prefix + P, D)."""

    def __init__(self, width: int, bottleneck: int, depthwise: bool, norm: bool, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.norm: nn.LayerNorm | None = nn.LayerNorm(width) if norm else None
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        self.conv = nn.Conv2d(bottleneck, bottleneck, 3, padding=1, groups=bottleneck if depthwise else 1)
        nn.init.xavier_uniform_(self.down.weight)
        for tensor in (self.down.bias, self.conv.weight, self.conv.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)  # type: ignore[arg-type]
        with torch.no_grad():  # the convolution starts as the identity
            self.conv.weight[:, :, 1, 1] = 1.0 if depthwise else torch.eye(bottleneck)

    def forward(self, x: Tensor) -> Tensor:
        d = quick_gelu(self.down(x if self.norm is None else self.norm(x)))
        b, tokens, r = d.shape
        side = math.isqrt(tokens - self.prefix)
        c = self.conv(d[:, self.prefix :].transpose(1, 2).reshape(b, r, side, side)).flatten(2).transpose(1, 2)
        if self.prefix:
            alone = self.conv(d[:, : self.prefix].reshape(-1, r, 1, 1)).view(b, self.prefix, r)
            c = torch.cat([alone, c], dim=1)
        update: Tensor = self.up(quick_gelu(c))
        return update


class Convpass(BothEncoders):
    """depthwise: one filter a channel. norm: a LayerNorm in each adapter, which then reads the residual stream itself.

    The comparison's size fits bottleneck 64, text_bottleneck 128, depthwise, norm and train_biases; the original has none of these.
    """

    name = "convpass"
    fixed_tokens = True
    needs_grid = True
    adapts = "beside attention and MLP, over neighbouring patches (vision); after the MLP (text)"
    paper = "Convpass, Jie and Deng, arXiv 2207.07039"
    licence = "MIT"

    def __init__(
        self,
        shape: Shape,
        bottleneck: int = 8,
        text_bottleneck: int = 64,
        scale: float = 0.1,
        depthwise: bool = False,
        norm: bool = False,
        train_biases: bool = False,
    ) -> None:
        _check(bottleneck)
        vision = nn.ModuleList(
            nn.ModuleDict({site: ConvSite(shape.vision_width, bottleneck, depthwise, norm, shape.prefix) for site in ("attention", "mlp")})
            for _ in range(shape.vision_depth)
        )
        super().__init__(shape, vision, text_bottleneck, scale, norm, train_biases)
        self.bottleneck, self.text_bottleneck, self.depthwise = bottleneck, text_bottleneck, depthwise

    def options(self) -> dict[str, Any]:
        names = ("bottleneck", "text_bottleneck", "scale", "depthwise", "norm", "train_biases")
        return {name: getattr(self, name) for name in names}

    def vision_places(self, block: int, context: Context) -> Places:
        own: Any = self.vision[block]

        def beside(site: str) -> Any:
            return lambda x, h: self.scale * own[site](x if self.norm else h)

        return Places(parallel_attention=beside("attention"), parallel_mlp=beside("mlp"))


class TemporalSite(nn.Module):
    """W_u C(W_d x) with C over a frame and its neighbours, each channel on its own; frames of padding count as zero."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        self.weight, self.bias = nn.Parameter(torch.zeros(bottleneck, 3)), nn.Parameter(torch.zeros(bottleneck))
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, frames: int, mask: Tensor | None) -> Tensor:
        """x (B F, P, D) -> the same shape."""
        d = self.down(x).view(-1, frames, x.shape[1], self.weight.shape[0])
        if mask is not None:
            d = d * mask[..., None, None].to(d.dtype)
        none = torch.zeros_like(d[:, :1])
        before, after = torch.cat([none, d[:, :-1]], 1), torch.cat([d[:, 1:], none], 1)
        c = before * self.weight[:, 0] + d * self.weight[:, 1] + after * self.weight[:, 2] + self.bias
        update: Tensor = self.up(c).view(x.shape)
        return update


class STAdapter(BothEncoders):
    """bottleneck: channels of the vision adapters; text_bottleneck and norm: of the text's. Tokens before the patches are not adapted."""

    name = "st-adapter"
    fixed_tokens = True
    needs_grid = True
    adapts = "before each block, over neighbouring frames (vision); after the MLP (text)"
    paper = "ST-Adapter, Pan et al., NeurIPS 2022, arXiv 2206.13559"
    licence = "MIT"

    def __init__(
        self,
        shape: Shape,
        bottleneck: int = 384,
        text_bottleneck: int = 128,
        scale: float = 0.1,
        norm: bool = True,
        train_biases: bool = False,
    ) -> None:
        _check(bottleneck)
        vision = nn.ModuleList(TemporalSite(shape.vision_width, bottleneck) for _ in range(shape.vision_depth))
        super().__init__(shape, vision, text_bottleneck, scale, norm, train_biases)
        self.bottleneck, self.text_bottleneck, self.prefix = bottleneck, text_bottleneck, shape.prefix

    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("bottleneck", "text_bottleneck", "scale", "norm", "train_biases")}

    def vision_places(self, block: int, context: Context) -> Places:
        own: Any = self.vision[block]

        def before(x: Tensor) -> Tensor:
            patches = x[:, self.prefix :]
            return torch.cat([x[:, : self.prefix], patches + own(patches, context.frames, context.mask).to(x.dtype)], dim=1)

        return Places(before=before)
