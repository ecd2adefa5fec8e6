"""MV-Adapter (Jin et al., CVPR 2024, arXiv 2301.07868).

After the MLP of every block of both encoders, added to its output f before the residual add:

    f <- f + s A(f),  s = 0.1

Video (temporal adaptation with calibration). d = quick_gelu(f Wd' + bd), for the class token and the P patches of each of F frames:

    Z = TRM(LN([cc; cls_1 .. cls_F; p_1 .. p_F] + pos)),   p_i = mean of frame i's patches in d
    [cc'; cls'_i; p'_i] = quick_gelu(Z)
    u_i = [cls'_i + p'_i; g(cc')],   alpha_i = 1 + B relu(A u_i + a)
    A(f) = (alpha_i * cls'_i) Wu' + bu  for the class tokens,   d Wu' + bu  for the patches

TRM is one pre-LayerNorm transformer block of 2 heads and a hidden width of 4 d'. Padded frames are no keys, and their u is zero.

Text: A(f) = quick_gelu(TRM(LN(f Wd' + bd + pos))) Wu' + bu, with a causal mask where the encoder has one.

Our extensions to other image towers than CLIP's. Without a class token (SigLIP) the mean patch p_i stands in for cls_i in the
sequence, and the calibrated result is added to every patch of the frame: A(f) = d Wu' + bu + (alpha_i * cls'_i) Wu'. With registers
the first of the tokens before the patches is the class token, and the others go the way of the patches, without entering p_i. A text
encoder that is not causal reads every caption at its context length, and ``words`` is that length.

Cross Modality Tying, in the last ``tied`` pairs of blocks: a vector f_C shared by both encoders, projected for each to
beta = M f_C + b, scales the input channels of its Wd ("down-in"), or its output channels ("down-out"), or those of Wu ("up-in",
"up-out"; in the video branch on the class tokens' path alone).

"kronecker" is the first version's Cross-Modal Interaction, reconstructed from its one-sentence description, as neither its text nor
code could be had: in the tied pairs Wd = sum_k S_k (x) m_k, with S_k (d', gcd of both widths) of both encoders and m_k (1, D / gcd)
of each. With all 12 pairs tied that is 3,710,820 parameters on ViT-B/16, 2.48 %, and 2.59 % with CLIP's biases; the description
has 2.56 %.

Up-projections start at zero, so that the model starts as the frozen one. On ViT-B/16 with 12 frames, 32 words and the last two
blocks tied that is 3,401,728 parameters; the paper counts the 171,008 CLIP biases with them that it trains as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.errors import UsageError, unknown
from xmafast.methods.base import Context, Method, pair_blocks, quick_gelu
from xmafast.methods.common.tuned import Tuned, biases

KRONECKER = "kronecker"
TYINGS = ("down-in", "down-out", "up-in", "up-out", KRONECKER)
REDUCTION = 4  # of the calibration's hidden width
POSITION_STD = 0.01


class Attention(nn.Module):
    """Self-attention over (B, T, d)."""

    def __init__(self, width: int, heads: int, std: float) -> None:
        super().__init__()
        self.heads = heads
        self.in_weight, self.in_bias = nn.Parameter(torch.randn(3 * width, width) * std), nn.Parameter(torch.zeros(3 * width))
        self.out_weight, self.out_bias = nn.Parameter(torch.empty(width, width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        b, t, d = x.shape
        qkv = F.linear(x, self.in_weight, self.in_bias)
        q, k, v = (part.view(b, t, self.heads, d // self.heads).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return F.linear(y.transpose(1, 2).reshape(b, t, d), self.out_weight, self.out_bias)


class Transformer(nn.Module):
    """TRM: one pre-LayerNorm block over (B, T, d). ``encoder`` is the width of the encoder around it, which its start depends on."""

    def __init__(self, width: int, heads: int, encoder: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, encoder**-0.5)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for weight in (self.attention.out_weight, self.fc1.weight, self.fc2.weight):
            nn.init.normal_(weight, std=(2 * encoder) ** -0.5)

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        x = x + self.attention(self.norm1(x), mask, causal)
        out: Tensor = x + self.fc2(quick_gelu(self.fc1(self.norm2(x))))
        return out


class Calibration(nn.Module):
    """alpha = 1 + B relu(A u + a): one at the start, as B is zero."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.context = nn.Linear(width, width)
        self.hidden = nn.Linear(2 * width, hidden)
        self.out = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, cc: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
        """cc (B, d), frames (B, F, d), mask (B, F) -> (B, F, d)."""
        u = torch.cat([frames, self.context(cc)[:, None].expand_as(frames)], dim=-1) * mask[..., None].to(frames.dtype)
        factor: Tensor = 1 + self.out(F.relu(self.hidden(u)))
        return factor


class Branch(nn.Module):
    """What both encoders' adapters have: down, TRM over positions, up; and the tie where the block has one.

    span: of a Kronecker product, the columns of m_k.
    """

    def __init__(self, width: int, bottleneck: int, heads: int, positions: int, tie: int | None, tying: str, norm: bool, span: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else None
        product = tie is not None and tying == KRONECKER
        self.down_weight = None if product else nn.Parameter(torch.empty(bottleneck, width))
        self.down_bias = nn.Parameter(torch.zeros(bottleneck))
        self.up_weight, self.up_bias = nn.Parameter(torch.zeros(width, bottleneck)), nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.randn(positions, bottleneck) * POSITION_STD)
        self.norm_pre = nn.LayerNorm(bottleneck)
        self.transformer = Transformer(bottleneck, heads, width)
        channels = width if tying in ("down-in", "up-out") else bottleneck
        self.tie = None if tie is None or product else nn.Linear(tie, channels)
        self.mix = nn.Parameter(torch.randn(tie, span) * tie**-0.5) if product and tie else None
        self.tying = tying

    def scaled(self, weight: Tensor, end: str, factor: Tensor | None) -> Tensor:
        """A projection's weight (out, in), scaled where it is the ``end`` ("down" or "up") that is tied."""
        if self.tie is None or factor is None or not self.tying.startswith(end):
            return weight
        beta = self.tie(factor)
        tied: Tensor = weight * (beta if self.tying.endswith("in") else beta[:, None])
        return tied

    def down(self, x: Tensor, factor: Tensor | None) -> Tensor:
        x = x if self.norm is None else self.norm(x)
        if self.down_weight is None:
            assert factor is not None
            assert self.mix is not None
            weight = torch.einsum("krg,kq->rgq", factor, self.mix).flatten(1)  # sum_k of torch.kron(factor[k], mix[k : k + 1])
        else:
            weight = self.scaled(self.down_weight, "down", factor)
        return F.linear(x, weight, self.down_bias)


class VideoBranch(Branch):
    """hidden: the calibration's hidden width."""

    def __init__(
        self,
        width: int,
        bottleneck: int,
        heads: int,
        frames: int,
        tie: int | None,
        tying: str,
        norm: bool,
        span: int,
        prefix: int,
        hidden: int,
    ) -> None:
        super().__init__(width, bottleneck, heads, 2 * frames + 1, tie, tying, norm, span)
        self.prefix = prefix
        if self.down_weight is not None:
            nn.init.kaiming_uniform_(self.down_weight, a=math.sqrt(5))
        self.cc = nn.Parameter(torch.randn(bottleneck) * bottleneck**-0.5)
        self.calibration = Calibration(bottleneck, hidden)

    def forward(self, y: Tensor, frames: int, mask: Tensor | None, factor: Tensor | None) -> Tensor:
        """y (B F, prefix + P, D) -> what is added to it."""
        d = quick_gelu(self.down(y, factor))
        real = torch.ones(len(y) // frames, frames, dtype=torch.bool, device=y.device) if mask is None else mask
        mean = d[:, self.prefix :].mean(1)
        cls, patches = (part.view(len(real), frames, -1) for part in (d[:, 0] if self.prefix else mean, mean))
        sequence = torch.cat([self.cc.to(d.dtype).expand(len(real), 1, -1), cls, patches], dim=1)
        sequence = self.norm_pre(sequence + self.positions[: sequence.shape[1]])
        keys = torch.cat([torch.ones_like(real[:, :1]), real, real], dim=1)
        z = quick_gelu(self.transformer(sequence, keys[:, None, None]))
        cc, cls, patches = z[:, 0], z[:, 1 : frames + 1], z[:, frames + 1 :]
        alpha = self.calibration(cc, cls + patches, real)
        cls = F.linear(alpha * cls, self.scaled(self.up_weight, "up", factor), self.up_bias if self.prefix else None)
        cls = cls.reshape(len(y), 1, -1)
        if not self.prefix:
            return F.linear(d, self.up_weight, self.up_bias) + cls
        return torch.cat([cls, F.linear(d[:, 1:], self.up_weight, self.up_bias)], dim=1)


class TextBranch(Branch):
    def __init__(
        self, width: int, bottleneck: int, heads: int, words: int, tie: int | None, tying: str, norm: bool, span: int, causal: bool
    ) -> None:
        super().__init__(width, bottleneck, heads, words, tie, tying, norm, span)
        self.causal = causal
        if self.down_weight is not None:
            nn.init.normal_(self.down_weight, std=(2 * width) ** -0.5)

    def forward(self, y: Tensor, factor: Tensor | None) -> Tensor:
        """y (B, W, D) -> what is added to it."""
        d = self.norm_pre(self.down(y, factor) + self.positions[: y.shape[1]])
        z = quick_gelu(self.transformer(d, causal=self.causal))
        return F.linear(z, self.scaled(self.up_weight, "up", factor), self.up_bias)


class MVAdapter(Method):
    """Parameters: ``vision.BLOCK``, ``text.BLOCK``, and ``shared.K``, the vector f_C of the K-th tied pair.

    bottleneck: d'. tied: how many of the last pairs of blocks are tied; tying: where. frames, words: the most that are ever given, which
    the positions are made for. factor: the length of f_C. products: how many Kronecker products make a weight. heads: of the small
    transformers. norm: a LayerNorm on f, as the authors' ActivityNet setting has it. train_biases: CLIP's biases too, the published
    setting. calibration: its hidden width; 0 is a quarter of the bottleneck. Raises UsageError outside these.
    """

    name = "mv-adapter"
    fixed_tokens = True
    family = "adapter"
    adapts = "after the MLP of both encoders, over frames and words; the last blocks tied"
    paper = "MV-Adapter, Jin et al., CVPR 2024, arXiv 2301.07868"
    licence = "none given"
    default_header = "mean"
    default_lr = 1e-3

    def __init__(
        self,
        shape: Shape,
        bottleneck: int = 64,
        tied: int = 2,
        tying: str = "down-in",
        frames: int = 12,
        words: int = 32,
        factor: int = 32,
        products: int = 7,
        heads: int = 2,
        scale: float = 0.1,
        norm: bool = False,
        train_biases: bool = False,
        calibration: int = 0,
    ) -> None:
        super().__init__()
        words = words if shape.causal else shape.context_length
        pairs = pair_blocks(shape.vision_depth, shape.text_depth)
        if tying not in TYINGS:
            raise unknown("tying", tying, TYINGS)
        if bottleneck < REDUCTION or bottleneck % heads:
            raise UsageError(f"--bottleneck must be {REDUCTION} or more, and divisible by its {heads} heads, not {bottleneck}.")
        if not 0 <= tied <= len(pairs):
            raise UsageError(f"tied must lie between 0 and {len(pairs)}, the pairs of blocks, not {tied}.")
        if factor < 1 or products < 1:
            raise UsageError(f"factor and products must be at least 1, not {factor} and {products}.")
        if frames < 1 or words < 1:
            raise UsageError(f"frames and words must be at least 1, not {frames} and {words}.")
        self.bottleneck, self.tied, self.tying, self.frames, self.words = bottleneck, tied, tying, frames, words
        if calibration < 0:
            raise UsageError(f"calibration must be at least 0, not {calibration}.")
        self.factor, self.products, self.heads, self.scale, self.norm = factor, products, heads, scale, norm
        self.calibration = calibration
        span = math.gcd(shape.vision_width, shape.text_width)
        length = products if tying == KRONECKER else factor
        last = pairs[len(pairs) - tied :]
        self._vision_tie = {v: i for i, (v, _) in enumerate(last)}
        self._text_tie = {t: i for i, (_, t) in enumerate(last)}

        def branches(kind: Callable[..., Branch], width: int, depth: int, most: int, ties: dict[int, int]) -> nn.ModuleList:
            return nn.ModuleList(
                kind(width, bottleneck, heads, most, length if block in ties else None, tying, norm, width // span)
                for block in range(depth)
            )

        video = partial(VideoBranch, prefix=shape.prefix, hidden=calibration or bottleneck // REDUCTION)
        self.vision = branches(video, shape.vision_width, shape.vision_depth, frames, self._vision_tie)
        self.text = branches(partial(TextBranch, causal=shape.causal), shape.text_width, shape.text_depth, words, self._text_tie)
        self.train_biases = train_biases
        if train_biases:
            self.tuned = Tuned(shape.tensors, biases(shape.tensors))
        if tying == KRONECKER:
            std = (shape.vision_width + shape.text_width) ** -0.5
            self.shared = nn.ParameterList(nn.Parameter(torch.randn(products, bottleneck, span) * std) for _ in last)
        else:
            self.shared = nn.ParameterList(nn.Parameter(torch.zeros(factor)) for _ in last)

    def options(self) -> dict[str, Any]:
        names = ("bottleneck", "tied", "tying", "frames", "words", "factor", "products", "heads", "scale", "norm")
        return {name: getattr(self, name) for name in (*names, "train_biases", "calibration")}

    def vision_places(self, block: int, context: Context) -> Places:
        if context.frames > self.frames:
            raise UsageError(f"This mv-adapter is built for up to {self.frames} frames and is given {context.frames}; build it with more.")
        branch, tie = self.vision[block], self._vision_tie.get(block)
        factor = None if tie is None else self.shared[tie]
        return Places(after_mlp=lambda y: y + self.scale * branch(y, context.frames, context.mask, factor).to(y.dtype))

    def text_places(self, block: int, context: Context) -> Places:
        branch, tie = self.text[block], self._text_tie.get(block)
        factor = None if tie is None else self.shared[tie]

        def after_mlp(y: Tensor) -> Tensor:
            if y.shape[1] > self.words:
                raise UsageError(f"This mv-adapter is built for up to {self.words} words and is given {y.shape[1]}; build it with more.")
            out: Tensor = y + self.scale * branch(y, factor).to(y.dtype)
            return out

        return Places(after_mlp=after_mlp)
