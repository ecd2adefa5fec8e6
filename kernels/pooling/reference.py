"""The similarity headers in eager PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HEADERS = ("mean", "text-conditioned")


def similarity(
    text: Tensor,  # (N, D)
    frames: Tensor,  # (M, F, D)
    mask: Tensor,  # (M, F), true where the frame is real
    *,
    header: str = "text-conditioned",
    temperature: float = 5.0,
) -> Tensor:  # (N, M)
    """Cosines between N texts and M videos under a header. Embeddings are un-normalised. Raises ValueError for an unknown header."""
    if header == "mean":
        return mean_similarity(text, frames, mask)
    if header == "text-conditioned":
        return text_conditioned_similarity(text, frames, mask, temperature=temperature)
    raise ValueError(f"unknown header {header!r}; known: {', '.join(HEADERS)}")


def mean_similarity(text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """CLIP4Clip's parameter-free header: normalise frames, masked mean, normalise, cosine. (N, D), (M, F, D), (M, F) -> (N, M)."""
    real = mask.bool()[..., None]
    pooled = F.normalize(frames, dim=-1).masked_fill(~real, 0).sum(1)  # the mean's divisor cancels in the normalisation
    return F.normalize(text, dim=-1) @ F.normalize(pooled, dim=-1).T


def text_conditioned_similarity(text: Tensor, frames: Tensor, mask: Tensor, *, temperature: float = 5.0) -> Tensor:
    """The header of the Cross-Modal Adapter (arXiv 2211.09623, section 3.3): (N, D), (M, F, D), (M, F) -> (N, M).

    ``a_j = <t, f_j>``, ``w = softmax_j(a_j / temperature)``, ``score = cos(t, sum_j w_j f_j)``. The pooled vector depends on
    the text, but it need not be formed: ``<t, sum_j w_j f_j> = w'a`` and ``|sum_j w_j f_j|^2 = w'Gw`` with the Gram matrix G
    of the video's frames, so the largest tensor is (N, M, F) and not (N, M, D). A video without real frames scores 0.
    """
    real = mask.bool()
    frames = frames.masked_fill(~real[..., None], 0)
    n, (m, f, d) = text.shape[0], frames.shape
    a = (text @ frames.reshape(m * f, d).T).view(n, m, f)
    w = _masked_softmax(a / temperature, real)
    gram = frames @ frames.mT  # (M, F, F)
    norm2 = (torch.einsum("nmf,mfg->nmg", w, gram) * w).sum(-1)
    tiny = torch.finfo(norm2.dtype).tiny
    return (w * a).sum(-1) / (norm2.clamp_min(tiny).sqrt() * text.norm(dim=-1, keepdim=True).clamp_min(tiny**0.5))


def frame_weights(text: Tensor, frames: Tensor, mask: Tensor, *, temperature: float = 5.0) -> Tensor:
    """How much each frame counts for each text, the w of the text-conditioned header: -> (N, M, F), zero for padding."""
    a = torch.einsum("nd,mfd->nmf", text, frames)
    return _masked_softmax(a / temperature, mask.bool())


def _masked_softmax(a: Tensor, real: Tensor) -> Tensor:
    """Softmax over the last axis of (N, M, F) where (M, F) is true; all zero where nothing is. Masked before the max."""
    empty = ~real.any(-1, keepdim=True)
    w = a.masked_fill(~real, -torch.inf).masked_fill(empty, 0).softmax(-1)
    return w.masked_fill(~real, 0)
