"""Scores of the text-conditioned header, formed a tile at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from xmafast.kernels.ranking.scores import in_chunks, margin_of, norms, numbers, product, rounding, total, wide

FEW = 16  # frames


@dataclass(frozen=True)
class Videos:
    """M videos of F frames, ready to be scored: frames (F, M, D) with padding zeroed, gram (F, F, M), real (F, M)."""

    frames: Tensor
    gram: Tensor
    real: Tensor

    @staticmethod
    def of(frames: Tensor, mask: Tensor) -> Videos:
        real = mask.bool().to(frames.device)
        kept = frames.masked_fill(~real[..., None], 0)
        wider = kept.to(wide(kept))
        gram = torch.bmm(wider, wider.mT).permute(1, 2, 0).contiguous()
        return Videos(kept.transpose(0, 1).contiguous(), gram, real.T.contiguous())

    def part(self, columns: slice) -> Videos:
        return Videos(self.frames[:, columns], self.gram[..., columns], self.real[:, columns])


@dataclass(frozen=True)
class Pooled:
    """Of n texts and m videos: a (n, F, m) inner products, e (n, F, m) weights up to their sum, ge (n, F, m) = G e,
    numerator (n, m) = e'a and square (n, m) = e'Ge, the squared norm of the pooled vector up to the weights' sum."""

    a: Tensor
    e: Tensor
    ge: Tensor
    numerator: Tensor
    square: Tensor


def pooled(text: Tensor, videos: Videos, temperature: float) -> Pooled:
    """The sums behind the header, in float32 (float64 of float64): the weights' sum cancels in the score, so it is left out."""
    f, m = videos.real.shape
    a = product(text, videos.frames.reshape(f * m, text.shape[1])).view(-1, f, m)
    e = (a / temperature).masked_fill_(~videos.real, -torch.inf)
    top = e.amax(1, keepdim=True)
    e = e.sub_(top.masked_fill_(top == -torch.inf, 0)).exp_()
    if f <= FEW:
        ge = torch.stack([(e * videos.gram[j]).sum(1) for j in range(f)], 1)  # a product of matrices so small costs more than its sums
    else:
        ge = torch.bmm(e.permute(2, 0, 1), videos.gram.permute(2, 0, 1)).permute(1, 2, 0)
    return Pooled(a, e, ge, (e * a).sum(1), (e * ge).sum(1))


def score(text: Tensor, p: Pooled) -> Tensor:
    """(n, m) cosines between texts and their pooled videos; 0 for a video without real frames."""
    tiny = torch.finfo(p.square.dtype).tiny
    length = torch.linalg.vector_norm(text, dim=1, keepdim=True, dtype=p.square.dtype).clamp_min(tiny**0.5)
    return p.numerator / (p.square.clamp_min(tiny).sqrt() * length)


class TextConditioned:
    """``xmafast.kernels.ranking.scores.Scores`` of texts (N, D) and videos (M, F, D) under the text-conditioned header."""

    def __init__(
        self,
        text: Tensor,
        frames: Tensor,
        mask: Tensor,
        temperature: float,
        kernel: Callable[[Tensor, Tensor, Tensor, float], Tensor] | None = None,
    ) -> None:
        self.text, self.frames, self.mask, self.temperature = text.detach(), frames.detach(), mask, temperature
        self.kernel = kernel  # (text, frames, mask, temperature) -> (n, m); None scores the tiles here
        self.videos = None if kernel else Videos.of(self.frames, mask)
        self.shape = len(text), len(frames)
        self.width = 1 if kernel else 3 * frames.shape[1]
        self.device, self.dtype = text.device, wide(text)

    def tile(self, rows: slice | Tensor, columns: slice) -> Tensor:
        text = self.text[rows]
        if self.kernel is not None:
            return self.kernel(text, self.frames[columns], self.mask[columns], self.temperature)
        assert self.videos is not None
        return score(text, pooled(text, self.videos.part(columns), self.temperature))

    def exact(self, n: Tensor, m: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        return in_chunks(self._exact, n, m, dtype, self.frames.shape[1] * self.frames.shape[2])

    def _exact(self, n: Tensor, m: Tensor, dtype: torch.dtype) -> Tensor:
        real = self.mask[m].bool()
        text, frames = numbers(self.text[n], dtype), numbers(self.frames[m].masked_fill(~real[..., None], 0), dtype)
        real = real.to(text.device)
        a = total(text[:, None] * frames)
        logits = (a / self.temperature).masked_fill(~real, -torch.inf)
        top = logits.amax(1, keepdim=True)
        e = (logits - top.masked_fill(top == -torch.inf, 0)).exp()
        vector = total((e[..., None] * frames).mT)
        length = total(text.square()) * total(vector.square())
        return total(e * a) / length.clamp_min(torch.finfo(length.dtype).tiny).sqrt()

    @cached_property
    def _norms(self) -> tuple[Tensor, Tensor, float]:
        _, f, d = self.frames.shape
        longest = norms(self.frames.masked_fill(~self.mask.bool()[..., None], 0).reshape(-1, d)).view(-1, f).amax(1)
        return norms(self.text), longest, rounding(self.text, d)

    # A logit a / temperature is off by its share of |t| |f| / temperature; weights that are off move a score to first order by
    # the mean over frames of what differs between them, so that a quarter of the logits' margin is ample, beside a score's own.
    @cached_property
    def errors(self) -> Tensor:
        text, longest, margin = self._norms
        return margin + margin_of(text, longest, margin / (4 * self.temperature))

    @cached_property
    def candidate_errors(self) -> Tensor:
        text, longest, margin = self._norms
        return margin + margin_of(longest, text, margin / (4 * self.temperature))
