"""The similarity headers in eager PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HEADERS = ("mean", "text-conditioned")
EPS = 1e-12  # below which F.normalize divides by a constant


def known(header: str) -> str:
    """The header's name; raises ValueError for an unknown one."""
    if header not in HEADERS:
        raise ValueError(f"unknown header {header!r}; known: {', '.join(HEADERS)}")
    return header


def pool(frames: Tensor, mask: Tensor) -> Tensor:
    """(M, F, D), (M, F) -> unit vectors (M, D), zero for a video without real frames."""
    real = mask.bool()[..., None]
    pooled = F.normalize(frames.masked_fill(~real, 0), dim=-1, eps=EPS).sum(1)  # the mean's divisor cancels in the normalisation
    return F.normalize(pooled, dim=-1, eps=EPS)


def text_conditioned_similarity(text: Tensor, frames: Tensor, mask: Tensor, *, temperature: float = 5.0) -> Tensor:
    """The Gram identity in one piece: (N, D), (M, F, D), (M, F) -> (N, M), with (N, M, F) in memory. Differentiable."""
    real = mask.bool()
    frames = frames.masked_fill(~real[..., None], 0)
    n, (m, f, d) = text.shape[0], frames.shape
    a = (text @ frames.reshape(m * f, d).T).view(n, m, f)
    w = _masked_softmax(a / temperature, real)
    gram = frames @ frames.mT  # (M, F, F)
    norm2 = (torch.einsum("nmf,mfg->nmg", w, gram) * w).sum(-1)
    tiny = torch.finfo(norm2.dtype).tiny
    cosines: Tensor = (w * a).sum(-1) / (norm2.clamp_min(tiny).sqrt() * text.norm(dim=-1, keepdim=True).clamp_min(tiny**0.5))
    return cosines


def frame_weights(text: Tensor, frames: Tensor, mask: Tensor, *, temperature: float = 5.0) -> Tensor:
    """How much each frame counts for each text, the w of the text-conditioned header: -> (N, M, F), zero for padding."""
    a = torch.einsum("nd,mfd->nmf", text, frames)
    return _masked_softmax(a / temperature, mask.bool())


def _masked_softmax(a: Tensor, real: Tensor) -> Tensor:
    """Softmax over the last axis of (N, M, F) where (M, F) is true; all zero where nothing is. Masked before the max."""
    empty = ~real.any(-1, keepdim=True)
    w = a.masked_fill(~real, -torch.inf).masked_fill(empty, 0).softmax(-1)
    return w.masked_fill(~real, 0)
