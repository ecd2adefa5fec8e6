"""What evaluation and search run: ranks, top-k, and the similarity headers (with the training step of the second)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import kernels_rivals as rivals
import torch
import torch.nn.functional as F
from kernels_case import OURS, Case, Form, Setup, against, compiled, doubled, nbytes, ours, pairs, step, tolerances
from torch import Tensor

from xmafast import kernels
from xmafast.kernels.pooling import reference as pooling
from xmafast.kernels.ranking.scores import product


def clips(setup: Setup, n: int, m: int, f: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Texts and frames with the norms of CLIP's, around 10, and a mask with 1 frame to all f real."""
    text, video, _ = pairs(setup, n, m, d, 0.3)
    frames = F.normalize(video[:, None].float() + torch.randn(m, f, d, device=setup.device) / d**0.5, dim=-1)
    mask = torch.arange(f, device=setup.device) < torch.randint(1, f + 1, (m, 1), device=setup.device)
    return 10 * text, (10 * frames).to(setup.dtype), mask


def some(size: int, count: int, device: str) -> Tensor:
    return torch.linspace(0, size - 1, min(size, count), device=device).long()


def rank_error(truth: Callable[[], Sequence[tuple[Tensor, Tensor, Tensor]]], counted: int) -> Callable[[Any], float]:
    """Mean distance of counts, as a share of the candidates. ``truth``: per direction a sample, and its (greater, ties)."""
    known = cache(truth)

    def error(result: Any) -> float:
        directions = [result] if isinstance(result[0], Tensor) else result
        worst = 0.0
        for (greater, ties), (sample, *exact) in zip(directions, known(), strict=True):
            off = (greater[sample] - exact[0]).abs() + (ties[sample] - exact[1]).abs()
            worst = max(worst, float(off.double().mean()) / counted)
        return worst

    return error


def rank_truth(
    scores: Callable[[Tensor | slice, Tensor | slice], Tensor], n: int, m: int, positives: Tensor, *, both: bool, sample: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per direction a sample of queries, and their (greater, ties) by float64 ``scores(rows, columns)``."""
    rows = some(n, sample, str(positives.device))
    exact = [(rows, *rivals.count(scores(rows, slice(None)), positives[rows]))]
    if both:
        columns = some(m, sample, str(positives.device))
        best = scores(slice(None), columns).view(m, n // m, -1).amax(1)
        exact.append((columns, *rivals.count(best.T, columns)))
    return exact


def ranks(setup: Setup, *, n: int, m: int, d: int, both: bool = False, alone: bool = False) -> Case:
    """alone: ours alone, where a matrix is out of the question."""
    queries, candidates, positives = pairs(setup, n, m, d)
    texts, matrix = n // m, float(n * m * setup.dtype.itemsize)

    def call(impl: str) -> Callable[[], Any]:
        run = kernels.ranks_both if both else kernels.ranks
        return lambda: run(queries, candidates, positives, impl=impl)

    def matmul(f: Callable) -> Callable[[], Any]:
        return lambda: f(queries, candidates, positives, *([texts] if both else []))

    plain, loose = rivals.matmul_ranks_both if both else rivals.matmul_ranks, 0.01
    forms = ours(setup, call, 0.0, 0.0)
    if alone:
        forms = {OURS: forms[OURS]}
    else:
        forms |= {"open_clip chunked": Form(lambda: rivals.open_clip_ranks(queries, candidates, texts, both=both), loose)}
        forms |= compiled(setup, matmul, plain, loose)
    forms |= {"matmul + comparison": Form(matmul(plain), loose, needs=matrix)}
    if not alone:
        forms |= {"the product alone": Form(lambda: queries @ candidates.T, None, needs=matrix)}
    if setup.device == "cpu":
        forms |= {"the product alone, oneDNN's": Form(lambda: product(queries, candidates), None, needs=matrix)}

    def truth() -> list[tuple[Tensor, Tensor, Tensor]]:
        def scores(rows: Tensor | slice, columns: Tensor | slice) -> Tensor:
            return queries[rows].double() @ candidates[columns].double().T

        return rank_truth(scores, n, m, positives, both=both, sample=64)

    moved = nbytes(queries, candidates)
    return Case(f"{n:,} x {m:,} x {d}", forms, rank_error(truth, m), moved, 2.0 * n * m * d, moved)  # one product


def topk(setup: Setup, *, n: int, m: int, d: int, k: int) -> Case:
    queries, candidates = (F.normalize(setup.randn(size, d).float(), dim=-1).to(setup.dtype) for size in (n, m))
    matrix, half = float(n * m * setup.dtype.itemsize), setup.dtype != torch.float32
    loose = 0.5 if half else 0.01  # half-precision scores tie by the hundred near the top of a million

    def matmul(f: Callable) -> Callable[[], Any]:
        return lambda: f(queries, candidates, k)

    forms = ours(setup, lambda impl: lambda: kernels.topk(queries, candidates, k, impl=impl), 0.0, 0.0)
    forms |= {"matmul + topk": Form(matmul(rivals.matmul_topk), loose, needs=matrix)}
    forms |= compiled(setup, matmul, rivals.matmul_topk, loose)
    if setup.device == "cuda":
        forms |= {"matmul + topk, float32 scores": Form(matmul(rivals.matmul_topk_float32), 0.01, needs=4.0 * n * m)}
        forms |= {"flashlib": Form(matmul(rivals.flashlib_topk) if rivals.installed("flashlib") else None, loose)}

    @cache
    def truth() -> tuple[Tensor, Tensor]:
        rows = some(n, 16, setup.device)
        parts = [queries[rows].double() @ part.double().T for part in candidates.split(100_000)]
        return rows, torch.cat(parts, 1).topk(k, dim=1).indices.sort(1).values

    def error(result: Any) -> float:
        """The share of the k best that is not found."""
        rows, best = truth()
        found = result[1][rows].long().sort(1).values
        at = torch.searchsorted(found, best).clamp_max(k - 1)
        return float((found.gather(1, at) != best).double().mean())

    moved = nbytes(queries, candidates)
    return Case(f"{n:,} x {m:,} x {d}, k {k:,}", forms, error, moved, 2.0 * n * m * d, moved)  # one product


def similarity(setup: Setup, *, n: int, m: int, f: int, d: int) -> Case:
    text, frames, mask = clips(setup, n, m, f, d)
    tolerance, loose = tolerances(setup.dtype)
    forms = ours(setup, lambda impl: lambda: kernels.mean_similarity(text, frames, mask, impl=impl), tolerance, loose)
    forms |= {"CLIP4Clip's": Form(lambda: rivals.clip4clip_similarity(text, frames, mask), loose)}
    forms |= compiled(setup, lambda g: lambda: g(text, frames, mask), rivals.clip4clip_similarity, loose)
    truth = against(lambda: [rivals.clip4clip_similarity(text.double(), frames.double(), mask)])
    moved = nbytes(text, frames) + n * m * setup.dtype.itemsize
    return Case(f"{n:,} x {m:,} x {f} x {d}", forms, truth, moved, 2.0 * n * m * d)  # one product


def _published_needs(n: int, m: int, f: int, d: int, dtype: torch.dtype, copies: int) -> float:
    """Bytes of the (N, M, D) tensors: the pooled vectors, and their unit vectors (and gradients)."""
    return float(copies * n * m * d * dtype.itemsize)


def text_conditioned(setup: Setup, *, n: int, m: int, f: int, d: int) -> Case:
    text, frames, mask = clips(setup, n, m, f, d)
    tolerance, loose = tolerances(setup.dtype)
    one_piece = float(3 * n * m * f * setup.dtype.itemsize)  # products, weights, and the weights times the Gram matrix

    def run_of(function: Callable) -> Callable[[], Any]:
        return lambda: function(text, frames, mask)

    forms = ours(setup, lambda impl: run_of(partial(kernels.text_conditioned_similarity, impl=impl)), tolerance, loose)
    forms |= {"Gram identity, one piece": Form(run_of(pooling.text_conditioned_similarity), loose, needs=one_piece)}
    forms |= compiled(setup, run_of, pooling.text_conditioned_similarity, loose)
    forms |= {"published (N, M, D)": Form(run_of(rivals.published_similarity), loose, needs=_published_needs(n, m, f, d, setup.dtype, 2))}

    rows = some(n, 16, setup.device)
    truth = against(lambda: [rivals.published_similarity(text[rows].double(), frames.double(), mask)])
    moved = nbytes(text, frames) + n * m * setup.dtype.itemsize
    # one product with all frames; the work for each pair of text and video is left out
    return Case(f"{n:,} x {m:,} x {f} x {d}", forms, lambda result: truth(result[rows]), moved, 2.0 * n * m * f * d)


def text_conditioned_training(setup: Setup, *, n: int, f: int, d: int) -> Case:
    text, frames, mask = clips(setup, n, n, f, d)
    leaves, grad = [text.requires_grad_(), frames.requires_grad_()], setup.randn(n, n, std=1 / n)
    tolerance, loose = tolerances(setup.dtype)

    def run_of(function: Callable) -> Callable[[], Any]:
        return step(lambda t, v: function(t, v, mask), leaves, grad)

    forms = ours(setup, lambda impl: run_of(partial(kernels.text_conditioned_similarity, impl=impl)), tolerance, loose, op=True)
    forms |= compiled(setup, run_of, pooling.text_conditioned_similarity, loose)
    forms |= {"published (N, M, D)": Form(run_of(rivals.published_similarity), loose, needs=_published_needs(n, n, f, d, setup.dtype, 4))}
    truth = against(lambda: step(lambda t, v: rivals.published_similarity(t, v, mask), doubled(leaves), grad.double())())
    moved = 2 * nbytes(text, frames) + 2 * nbytes(grad)
    # the product with all frames, again in the backward as it is not kept, and one each for the two gradients
    return Case(f"{n:,} x {n:,} x {f} x {d}", forms, truth, moved, 8.0 * n * n * f * d)


def text_conditioned_ranks(setup: Setup, *, n: int, m: int, f: int, d: int, both: bool = True) -> Case:
    text, frames, mask = clips(setup, n, m, f, d)
    positives, texts = torch.arange(n, device=setup.device) // (n // m), n // m

    def call(impl: str) -> Callable[[], Any]:
        run = kernels.ranks_both_over_frames if both else kernels.ranks_over_frames
        return lambda: run(text, frames, mask, positives, header="text-conditioned", impl=impl)

    def matrix(function: Callable) -> Callable[[], Any]:
        if both:
            return lambda: rivals.count_both(function(text, frames, mask), positives, texts)
        return lambda: rivals.count(function(text, frames, mask), positives)

    one_piece = float(3 * n * m * f * setup.dtype.itemsize)
    forms = ours(setup, call, 0.0, 0.0)
    forms |= {"Gram identity, one piece": Form(matrix(pooling.text_conditioned_similarity), 0.01, needs=one_piece)}
    forms |= {"published (N, M, D)": Form(matrix(rivals.published_similarity), 0.01, needs=_published_needs(n, m, f, d, setup.dtype, 2))}

    def truth() -> list[tuple[Tensor, Tensor, Tensor]]:
        def scores(rows: Tensor | slice, columns: Tensor | slice) -> Tensor:
            parts = text[rows].double().split(1000)  # of all texts, with a few videos
            return torch.cat([rivals.published_similarity(part, frames[columns].double(), mask[columns]) for part in parts])

        return rank_truth(scores, n, m, positives, both=both, sample=16)

    moved = nbytes(text, frames)
    size = f"{n:,} x {m:,} x {f} x {d}, {'both' if both else 't2v'}"
    return Case(size, forms, rank_error(truth, m), moved, 2.0 * n * m * f * d, moved)  # one product with all frames
