"""Exact scores of one query against stored frame embeddings, without a copy of them in float32.

The inner products of all frames come from one pass over the memory map, a piece of 2 MB at a time; what the headers need beside them are
the Gram matrices of each video, which are computed once. Neighbours that rounding might exchange are settled in float64, as by every
top-k of ``xmafast.kernels``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from xmafast.kernels import pool, topk
from xmafast.kernels.ranking.op import topk_of
from xmafast.kernels.ranking.scores import in_chunks, margin_of, norms, rounding, total

PIECE = 2**19  # numbers that are widened at a time: what a core's cache holds
BLOCK = 2**24  # numbers of frames that are gathered at a time


class _Readable:
    """A read-only memory map that torch takes without a warning; nothing here writes to it."""

    def __init__(self, array: np.ndarray) -> None:
        self.kept = array
        about = array.__array_interface__
        self.__array_interface__ = {**about, "data": (about["data"][0], False)}


def tensor_of(array: np.ndarray) -> Tensor:
    """A view of a memory map that must not be written to."""
    if not array.size:
        return torch.zeros(array.shape, dtype=torch.float16)
    return torch.from_numpy(np.asarray(_Readable(array)))


class Stored:
    """The frame embeddings of M items in a file's rows: rows (T, D) float16, where each item begins (M,) and its frames (M,)."""

    def __init__(self, rows: np.ndarray, at: np.ndarray, counts: np.ndarray) -> None:
        self.rows = tensor_of(rows)
        self.at, self.counts = torch.from_numpy(at.astype(np.int64)), torch.from_numpy(counts.astype(np.int64))
        self.most = int(counts.max()) if len(counts) else 0
        self.real = torch.arange(self.most) < self.counts[:, None]  # (M, F)

    def place(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """rows (m, F), of padding row 0 of the item itself, and which are real (m, F)."""
        real = self.real[items]
        return torch.where(real, self.at[items, None] + torch.arange(self.most), self.at[items, None]), real

    def gathered(self, items: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """(m, F, D), zero at padding."""
        where, real = self.place(items)
        return self.rows[where].to(dtype).masked_fill_(~real[..., None], 0)

    def blocks(self, items: Tensor) -> list[Tensor]:
        """The items in pieces that can be gathered."""
        return list(items.split(max(1, BLOCK // max(1, self.most * self.rows.shape[1]))))

    @cached_property
    def gram(self) -> Tensor:
        """(M, F, F) inner products between an item's own frames, zero at padding."""
        found = torch.empty(len(self.at), self.most, self.most)
        for items in self.blocks(torch.arange(len(self.at))):
            frames = self.gathered(items)
            torch.bmm(frames, frames.mT, out=found[items[0] : items[-1] + 1])
        return found

    @cached_property
    def lengths(self) -> Tensor:
        """(M, F) norms of the frames, zero at padding."""
        found = torch.empty(len(self.at), self.most)
        for items in self.blocks(torch.arange(len(self.at))):
            found[items] = torch.linalg.vector_norm(self.gathered(items), dim=-1)
        return found

    def inner(self, query: Tensor, items: Tensor) -> Tensor:
        """(m, F) inner products with the query (D,), zero at padding."""
        where, real = self.place(items)
        found = torch.empty(len(items), self.most)
        if int(real.sum()) * 4 > len(self.rows):  # most of the file: one pass, in its own order
            flat, piece = torch.empty(len(self.rows)), max(1, PIECE // self.rows.shape[1])
            room = torch.empty(piece, self.rows.shape[1])
            for start in range(0, len(self.rows), piece):
                part = self.rows[start : start + piece]
                wider = room[: len(part)].copy_(part)
                torch.mv(wider, query, out=flat[start : start + piece])
            found = flat[where]
        else:
            for some in torch.arange(len(items)).split(max(1, BLOCK // max(1, self.most * self.rows.shape[1]))):
                found[some] = self.gathered(items[some]) @ query
        return found.masked_fill_(~real, 0)

    def inner_of_all(self, queries: Tensor) -> Tensor:
        """(Q, M, F) inner products of several queries (Q, D) with every item, zero at padding: the rows are read and widened once."""
        where, real = self.place(torch.arange(len(self.at)))
        flat, piece = torch.empty(len(queries), len(self.rows)), max(1, PIECE // self.rows.shape[1])
        room = torch.empty(piece, self.rows.shape[1])
        for start in range(0, len(self.rows), piece):
            part = self.rows[start : start + piece]
            flat[:, start : start + piece] = queries @ room[: len(part)].copy_(part).T
        return flat[:, where].masked_fill_(~real, 0)


class _OneQuery:
    """``xmafast.kernels.ranking.scores.Scores`` of one query (D,) and the items, of which only frames in ``real`` (m, F) count."""

    width = 1
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, query: Tensor, stored: Stored, items: Tensor, real: Tensor, inner: Tensor | None = None) -> None:
        self.query, self.stored, self.items, self.real = query.float(), stored, items, real
        self.shape = 1, len(items)
        self.inner = stored.inner(self.query, items) if inner is None else inner.masked_fill(~real, 0)
        self.scores = self.formed()

    def formed(self) -> Tensor:
        raise NotImplementedError

    def settled(self, inner: Tensor, frames: Tensor, real: Tensor) -> Tensor:
        """(p,) float64 scores of pairs, from inner products (p, F) and frames (p, F, D), all float64."""
        raise NotImplementedError

    def tile(self, rows: slice | Tensor, columns: slice) -> Tensor:
        return self.scores[None, columns].clone()

    def exact(self, n: Tensor, m: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        return in_chunks(self._exact, n, m, dtype, self.stored.most * len(self.query))

    def _exact(self, n: Tensor, m: Tensor, dtype: torch.dtype) -> Tensor:
        real = self.real[m]
        frames = self.stored.gathered(self.items[m], torch.float64).masked_fill_(~real[..., None], 0)
        return self.settled(total(self.query.double() * frames), frames, real)

    @property
    def errors(self) -> Tensor:
        raise NotImplementedError

    @property
    def candidate_errors(self) -> Tensor:
        return self.errors.expand(self.shape[1])

    @cached_property
    def length(self) -> Tensor:
        """The query's norm, not zero, float64."""
        return torch.sqrt(total(self.query.double().square())).clamp_min(torch.finfo(torch.float32).tiny)


class TextConditioned(_OneQuery):
    """cos(t, sum_j w_j f_j), w = softmax_j(<t, f_j> / temperature): the numerator is sum_j w_j a_j, the denominator |t| sqrt(w'Gw)."""

    def __init__(self, query: Tensor, stored: Stored, items: Tensor, real: Tensor, temperature: float, inner: Tensor | None = None) -> None:
        self.temperature = temperature
        super().__init__(query, stored, items, real, inner)

    def formed(self) -> Tensor:
        weights = frame_shares(self.inner, self.real, self.temperature)
        every = len(self.items) == len(self.stored.at)
        gram = self.stored.gram if every else self.stored.gram[self.items]
        square = (torch.bmm(gram, weights[..., None]).squeeze(-1) * weights).sum(1)
        tiny = torch.finfo(square.dtype).tiny
        return (weights * self.inner).sum(1) / (square.clamp_min(tiny).sqrt() * self.length.float())

    def settled(self, inner: Tensor, frames: Tensor, real: Tensor) -> Tensor:
        weights = frame_shares(inner, real, self.temperature)
        vector = total((weights[..., None] * frames).mT)
        return total(weights * inner) / (total(vector.square()).clamp_min(torch.finfo(torch.float64).tiny).sqrt() * self.length)

    @cached_property
    def errors(self) -> Tensor:  # as of the kernel of this header
        margin = rounding(self.query, len(self.query))
        longest = self.stored.gram.diagonal(dim1=1, dim2=2).amax(1).clamp_min(0).sqrt().double()
        return margin + margin_of(norms(self.query[None]), longest, margin / (4 * self.temperature))


class MeanOfSome(_OneQuery):
    """The mean header over the frames that count: cos(q, sum_j u_j), u_j = f_j / |f_j|, whose square is that of the Gram matrix."""

    def formed(self) -> Tensor:
        weights = self.real / self.stored.lengths[self.items].clamp_min(torch.finfo(torch.float32).tiny)
        gram = self.stored.gram[self.items]
        square = (torch.bmm(gram, weights[..., None]).squeeze(-1) * weights).sum(1).clamp_min(torch.finfo(torch.float32).tiny)
        self._spread = float((self.real.sum(1) / square.sqrt()).amax()) if len(square) else 0.0
        return (weights * self.inner).sum(1) / (square.sqrt() * self.length.float())

    def settled(self, inner: Tensor, frames: Tensor, real: Tensor) -> Tensor:
        lengths = total(frames.square()).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        square = total(total((frames / lengths[..., None]).mT).square()).clamp_min(torch.finfo(torch.float64).tiny)
        return total(inner / lengths * real) / (square.sqrt() * self.length)

    @cached_property
    def errors(self) -> Tensor:
        """A sum is as far off as its terms, and n / |sum_j u_j| says how much shorter than these it is; the square counts twice."""
        margin = rounding(self.query, len(self.query)) * (1 + self._spread + self._spread**2)
        return torch.full((1,), margin, dtype=torch.float64)


class BestFrame(_OneQuery):
    """max_j cos(q, f_j): an image is looked for in the frame that is most like it, however much else a video shows."""

    def formed(self) -> Tensor:
        lengths = self.stored.lengths[self.items].clamp_min(torch.finfo(torch.float32).tiny) * self.length.float()
        return (self.inner / lengths).masked_fill(~self.real, -torch.inf).amax(1)

    def settled(self, inner: Tensor, frames: Tensor, real: Tensor) -> Tensor:
        lengths = total(frames.square()).sqrt().clamp_min(torch.finfo(torch.float32).tiny) * self.length
        return (inner / lengths).masked_fill(~real, -torch.inf).amax(1)

    @cached_property
    def errors(self) -> Tensor:
        return torch.full((1,), 2 * rounding(self.query, len(self.query)), dtype=torch.float64)


def frame_shares(inner: Tensor, real: Tensor, temperature: float) -> Tensor:
    """How much each frame counts: softmax over an item's real frames, (m, F). Taken along columns, where it is five times as fast."""
    columns = (inner.T / temperature).masked_fill_(~real.T, -torch.inf).contiguous()
    return columns.softmax(0).T.masked_fill(~real, 0)


def best_pooled(
    query: Tensor, count: int, vectors: Callable[[slice], Tensor], k: int, width: int
) -> tuple[Tensor, Tensor]:  # (min(k, count),) float32, int64
    """``xmafast.kernels.topk`` of a unit query (D,) and ``count`` unit candidates, which ``vectors`` gives a piece at a time."""
    step = max(k, BLOCK // max(1, width))
    if count <= step:
        best, order = topk(query[None], vectors(slice(0, count)), k)
        return best[0], order[0]
    parts = []
    for start in range(0, count, step):
        parts.append(topk(query[None], vectors(slice(start, min(count, start + step))), k)[1][0] + start)
    found = torch.cat(parts).sort().values  # the best of each piece, and then of these
    few = torch.cat([vectors(slice(int(i), int(i) + 1)) for i in found])
    best, order = topk(query[None], few, k)
    return best[0], found[order[0]]


def best_frames(scores: _OneQuery, k: int) -> tuple[Tensor, Tensor]:
    best, order = topk_of(scores, k, None)
    return best[0], order[0]


def pooled_of(frames: Tensor) -> Tensor:
    """What the mean header makes of an item's frames (n, D) float32: the unit mean of unit frames (D,)."""
    return pool(frames[None], torch.ones(1, len(frames), dtype=torch.bool))[0]
