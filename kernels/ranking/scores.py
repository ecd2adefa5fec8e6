"""Scores in two precisions: whole tiles in float32, single pairs in float64.

Ranks need the order of scores alone. A tile is as fast as the hardware's matrix product and off by a known margin; the few
pairs that lie within the margin of what they are compared with are scored again in float64. So the ranks are those of
float64 arithmetic, at the speed of float32 or bfloat16.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

PAIRS = {"cpu": 2**18, "cuda": 2**26}  # float64 numbers of a chunk of re-scored pairs: in a core's cache, or enough to fill a GPU
# PyTorch's own float32 product on CPU is MKL's, which is slower than oneDNN's where the processor is AMD's
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
RANGE = 1e37  # products beyond may overflow float32


def at_once(sizes: dict[str, int], device: torch.device) -> int:
    """The size of a chunk on a kind of device."""
    return sizes["cpu" if device.type == "cpu" else "cuda"]


class Scores(Protocol):
    """The scores of N queries and M candidates, none of them formed yet."""

    shape: tuple[int, int]
    dtype: torch.dtype  # of a tile: float32, or float64 of float64 embeddings
    width: int  # numbers of working memory that a pair of a tile needs
    device: torch.device

    def tile(self, rows: slice | Tensor, columns: slice) -> Tensor:
        """(n, m) scores."""

    def exact(self, n: Tensor, m: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Float64 scores of the pairs (n_i, m_i); the same pair of vectors gives the same bits, whatever else is asked for.

        In float32 it is quicker, and as far off as a tile may be.
        """

    @property
    def errors(self) -> Tensor:
        """How far a tile may be from ``exact``, for each query: (N,) float64."""

    @property
    def candidate_errors(self) -> Tensor:
        """The same for each candidate: (M,)."""


class InnerProducts:
    """Raw inner products of queries (N, D) and candidates (M, D)."""

    width = 1

    def __init__(self, queries: Tensor, candidates: Tensor) -> None:
        if queries.ndim != 2 or candidates.ndim != 2 or queries.shape[1] != candidates.shape[1]:
            raise ValueError(f"queries (N, D) and candidates (M, D) are needed, not {tuple(queries.shape)} and {tuple(candidates.shape)}")
        self.queries, self.candidates = queries.detach(), candidates.detach()
        self.shape = len(queries), len(candidates)
        self.device, self.dtype = queries.device, wide(queries)

    def tile(self, rows: slice | Tensor, columns: slice) -> Tensor:
        return product(self.queries[rows], self.candidates[columns])

    def exact(self, n: Tensor, m: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        return in_chunks(self._exact, n, m, dtype, self.queries.shape[1])

    def _exact(self, n: Tensor, m: Tensor, dtype: torch.dtype) -> Tensor:
        return total(numbers(self.queries[n], dtype) * numbers(self.candidates[m], dtype))

    @cached_property
    def _norms(self) -> tuple[Tensor, Tensor, float]:
        return norms(self.queries), norms(self.candidates), rounding(self.queries, self.queries.shape[1])

    @cached_property
    def errors(self) -> Tensor:
        q, c, margin = self._norms
        return margin_of(q, c, margin)

    @cached_property
    def candidate_errors(self) -> Tensor:
        q, c, margin = self._norms
        return margin_of(c, q, margin)


def wide(x: Tensor) -> torch.dtype:
    """What scores of these embeddings are kept in: float32 at least."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class Formed:
    """Scores that one tile holds, formed at once: the positives' are among them."""

    width = 1

    def __init__(self, scores: Scores) -> None:
        self.scores, self.shape, self.dtype, self.device = scores, scores.shape, scores.dtype, scores.device
        self.errors = scores.errors  # before the product, which then finds its operands in the cache
        self.matrix = scores.tile(slice(0, self.shape[0]), slice(0, self.shape[1]))

    @property
    def candidate_errors(self) -> Tensor:
        return self.scores.candidate_errors

    def tile(self, rows: slice | Tensor, columns: slice) -> Tensor:
        return self.matrix[rows, columns]

    def exact(self, n: Tensor, m: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        return self.scores.exact(n, m, dtype)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b' accumulated and kept in float32 (float64 of float64)."""
    if a.is_cuda and a.dtype not in (torch.float32, torch.float64):
        return torch.mm(a, b.T, out_dtype=torch.float32)
    a, b = a.to(wide(a)), b.to(wide(b))
    if ONEDNN and a.device.type == "cpu" and a.dtype == torch.float32 and a.numel() and b.numel():
        products: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
        return products
    return a @ b.T


def float32_unit(device: torch.device) -> float:
    """How finely float32 products are rounded: PyTorch may have been told to multiply in fewer bits, by its older or newer settings."""
    units = {"tf32": 2.0**-11, "high": 2.0**-11, "bf16": 2.0**-8, "medium": 2.0**-8}
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    settings = [getattr(place, "fp32_precision", None) for place in (torch.backends, backend, getattr(backend, "matmul", None))]
    with contextlib.suppress(RuntimeError):  # the newer settings are in use, and forbid to ask for the older
        settings.append(torch.get_float32_matmul_precision())
    return max(units.get(str(setting), 2.0**-24) for setting in settings)


def rounding(x: Tensor, terms: int) -> float:
    """How far a float32 inner product of so many terms may be off, relative to the product of the norms.

    The probabilistic bound of Higham and Mary (2019), lambda sqrt(n) u, with lambda = 4: were every rounding as large as it can
    be, twenty standard deviations.
    """
    unit = 2.0**-53 if x.dtype == torch.float64 else 2.0**-24
    if x.dtype == torch.float32 or not x.is_cuda:  # half precision is widened on the CPU
        unit = max(unit, float32_unit(x.device))
    return 4 * math.sqrt(terms + 2) * unit


def numbers(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in this dtype, on the CPU where its device has no float64."""
    return (x.cpu() if x.device.type == "mps" and dtype == torch.float64 else x).to(dtype)


def in_chunks(pairs: Callable[[Tensor, Tensor, torch.dtype], Tensor], n: Tensor, m: Tensor, dtype: torch.dtype, size: int) -> Tensor:
    """``pairs(n, m, dtype)`` for a bounded number of pairs of ``size`` numbers at a time, as float64 on n's device."""
    step = max(1, at_once(PAIRS, n.device) // max(1, size))
    parts = [pairs(n[i : i + step], m[i : i + step], dtype).to(n.device).double() for i in range(0, len(n), step)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=n.device)


def finite(x: Tensor) -> bool:
    """Whether every number is finite; no too may be said of large ones, whose sum runs over."""
    return math.isfinite(float(x.sum()))


def norms(x: Tensor) -> Tensor:
    """(n, D) -> (n,) Euclidean norms in float64; inf where a component is not finite."""
    length: Tensor = torch.linalg.vector_norm(x, dim=1, dtype=wide(x)).double()
    if not finite(length):  # float32 may have run over
        length = torch.linalg.vector_norm(numbers(x, torch.float64), dim=1).nan_to_num(torch.inf, torch.inf).to(x.device)
    return length


def margin_of(own: Tensor, other: Tensor, margin: float) -> Tensor:
    """margin * |own| * max |other|; a vector with NaN or inf scores NaN or inf in either precision, and needs no margin.

    Where a product may leave the range of float32, the margin is inf: every pair is scored again.
    """
    longest = float(other.amax()) if len(other) else 0.0
    if math.isinf(longest):
        longest = float(other.masked_fill(other.isinf(), 0).amax())
    if len(own) and float(own.amax()) * longest < RANGE:
        return margin * longest * own
    return (margin * longest * own).masked_fill(~(own * longest < RANGE), torch.inf)


def total(x: Tensor) -> Tensor:
    """The sum over the last axis; of float64 in one fixed order, pairs of halves: the same bits on every device and for every batch."""
    if x.dtype != torch.float64:
        return x.sum(-1)
    while (n := x.shape[-1]) > 1:
        half = n // 2
        if n % 2 == 0:
            left, right = x.split(half, -1)
            x = left + right
        else:
            x = torch.cat([x[..., :half] + x[..., half : 2 * half], x[..., -1:]], -1)
    return x.squeeze(-1) if x.shape[-1] else x.sum(-1)
