"""Scores of the text-conditioned header, formed a tile at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from xmafast.kernels.ranking.scores import at_once, in_chunks, margin_of, norms, numbers, product, rounding, total, wide
from xmafast.kernels.ranking.sweep import ROWS, TILE


@dataclass(frozen=True)
class Videos:
    """M videos of F frames, ready to be scored: frames (M, F, D) with padding zeroed, gram (M, F, F), bias (M, F, 1), which is -inf
    at padding and None without any."""

    frames: Tensor
    gram: Tensor
    bias: Tensor | None

    @staticmethod
    def of(frames: Tensor, mask: Tensor) -> Videos:
        real = mask.bool().to(frames.device)
        padded = not bool(real.all())
        kept = (frames.masked_fill(~real[..., None], 0) if padded else frames).contiguous()
        wider = kept.to(wide(kept))
        if not kept.is_cuda:
            kept = wider  # whose products in half precision PyTorch would widen anew for each tile
        bias = torch.zeros_like(wider[..., :1]).masked_fill_(~real[..., None], -torch.inf) if padded else None
        return Videos(kept, torch.bmm(wider, wider.mT), bias)

    def part(self, columns: slice) -> Videos:
        return Videos(self.frames[columns], self.gram[columns], None if self.bias is None else self.bias[columns])


@dataclass(frozen=True)
class Pooled:
    """Of n texts and m videos: a (m, F, n) inner products, e (m, F, n) weights up to their sum, and ge (m, F, n) = G e."""

    a: Tensor
    e: Tensor
    ge: Tensor

    def sums(self) -> tuple[Tensor, Tensor]:
        """numerator (m, n) = e'a, and square (m, n) = e'Ge, the squared norm of the pooled vector up to the weights' sum."""
        return (self.e * self.a).sum(1), (self.e * self.ge).sum(1)


def pooled(text: Tensor, videos: Videos, temperature: float, room: Tensor | None = None) -> Pooled:
    """The sums behind the header, in float32 (float64 of float64): the weights' sum cancels in the score, so it is left out.

    room: (2, at least m F n), memory for e and ge that is used again for the next tile.
    """
    m, f, d = videos.frames.shape
    a = product(videos.frames.view(m * f, d), text.to(videos.frames.dtype)).view(m, f, -1)
    e, ge = (torch.empty_like(a), torch.empty_like(a)) if room is None else (part[: a.numel()].view(a.shape) for part in room)
    torch.mul(a, 1 / temperature, out=e)
    if videos.bias is None:
        e.sub_(e.amax(1, keepdim=True))
    else:  # the weights of padding multiply zeros, and need no more than to stay finite: exp of -inf is several times as slow
        top = torch.add(e, videos.bias, out=ge).amax(1, keepdim=True)
        e.sub_(top.masked_fill_(top == -torch.inf, 0)).clamp_(max=0)
    e.exp_()
    torch.bmm(videos.gram, e, out=ge)
    return Pooled(a, e, ge)


def score(text: Tensor, numerator: Tensor, square: Tensor) -> Tensor:
    """(n, m) cosines between texts and their pooled videos; 0 for a video without real frames."""
    tiny = torch.finfo(square.dtype).tiny
    return (numerator / (square.clamp_min(tiny).sqrt() * length(text))).T


def length(text: Tensor) -> Tensor:
    """(n,) norms, none of them zero, in float32 (float64 of float64)."""
    dtype = wide(text)
    lengths: Tensor = torch.linalg.vector_norm(text, dim=1, dtype=dtype).clamp_min(torch.finfo(dtype).tiny ** 0.5)
    return lengths


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
        self._room: Tensor | None = None
        self.width = 1 if kernel else 3 * frames.shape[1]
        self.device, self.dtype = text.device, wide(text)

    def tile(self, rows: slice | Tensor, columns: slice) -> Tensor:
        text = self.text[rows]
        if self.kernel is not None:
            return self.kernel(text, self.frames[columns], self.mask[columns], self.temperature)
        assert self.videos is not None
        videos = self.videos.part(columns)
        size = len(text) * videos.frames.shape[0] * videos.frames.shape[1]
        if self._room is None or self._room.shape[1] < size:
            self._room = torch.empty((2, size), dtype=self.dtype, device=self.device)
        p = pooled(text, videos, self.temperature, self._room)
        return score(text, p.a.mul_(p.e).sum(1), p.ge.mul_(p.e).sum(1))

    def matrix(self) -> Tensor:
        """(N, M) scores, tile by tile: square-ish, so that a tile's product is worth the name."""
        n, m = self.shape
        out = torch.empty((n, m), dtype=self.dtype, device=self.device)
        rows = max(1, min(n, ROWS))
        columns = max(1, min(m, at_once(TILE, self.device) // (self.width * rows)))
        for left in range(0, m, columns):
            for start in range(0, n, rows):
                part, span = slice(start, start + rows), slice(left, left + columns)
                out[part, span] = self.tile(part, span)
        return out

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
        frames = self.frames.masked_fill(~self.mask.bool()[..., None], 0) if self.videos is None else self.videos.frames
        longest = norms(frames.view(-1, d)).view(-1, f).amax(1)
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
