"""The similarity headers as registered ops, as matrices, and as ranks and top-k that need no matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xmafast.kernels.dispatch import launch, use_triton
from xmafast.kernels.pooling import reference
from xmafast.kernels.pooling.scores import TextConditioned, Videos, length, pooled, score
from xmafast.kernels.ranking.op import NEAR, indices, limits, own_scores, rank_of_scores, settle, tile_order, topk_of
from xmafast.kernels.ranking.op import ranks as inner_ranks
from xmafast.kernels.ranking.op import ranks_both as inner_ranks_both
from xmafast.kernels.ranking.op import topk as inner_topk
from xmafast.kernels.ranking.scores import Scores, product, wide
from xmafast.kernels.ranking.sweep import Band, Positives, Ranks, Tally

CHUNK = {"cpu": 2**21, "cuda": 2**26}  # floats of (n, M, F) that a backward pass has in memory at once
MOST_FRAMES = 64  # of a video in the text-conditioned kernels, one program of which holds all of them


@torch.library.custom_op("xmafast::pool_frames", mutates_args=(), device_types="cuda")
def _pool(frames: Tensor, mask: Tensor) -> Tensor:
    from xmafast.kernels.pooling import triton

    return launch(triton.pool, frames, mask)


@_pool.register_kernel("cpu")
def _(frames: Tensor, mask: Tensor) -> Tensor:
    return reference.pool(frames if frames.dtype == torch.float64 else frames.float(), mask)


@_pool.register_fake
def _(frames: Tensor, mask: Tensor) -> Tensor:
    dtype = torch.float64 if frames.dtype == torch.float64 else torch.float32
    return frames.new_empty((frames.shape[0], frames.shape[2]), dtype=dtype)


@torch.library.custom_op("xmafast::pool_frames_backward", mutates_args=(), device_types="cuda")
def _pool_backward(frames: Tensor, mask: Tensor, grad: Tensor) -> Tensor:
    from xmafast.kernels.pooling import triton

    return launch(triton.pool_backward, frames, mask, grad)


@_pool_backward.register_kernel("cpu")
def _(frames: Tensor, mask: Tensor, grad: Tensor) -> Tensor:
    real = mask.bool()[..., None]
    x = frames.to(grad.dtype).masked_fill(~real, 0)
    total = F.normalize(x, dim=-1).sum(1)

    def through(x: Tensor, g: Tensor) -> Tensor:
        """The gradient at x of g at F.normalize(x), which below its eps divides by a constant."""
        length = x.norm(dim=-1, keepdim=True)
        unit = x / length.clamp_min(reference.EPS)
        along = (unit * g).sum(-1, keepdim=True).masked_fill(length <= reference.EPS, 0)
        gradient: Tensor = (g - unit * along) / length.clamp_min(reference.EPS)
        return gradient

    return through(x, through(total, grad)[:, None].expand_as(x)).masked_fill(~real, 0).to(frames.dtype)


@_pool_backward.register_fake
def _(frames: Tensor, mask: Tensor, grad: Tensor) -> Tensor:
    return frames.new_empty(frames.shape)


def _pool_setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _pool_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    frames, mask = ctx.saved_tensors
    return _pool_backward(frames, mask, grad.contiguous()), None


_pool.register_autograd(_pool_gradients, setup_context=_pool_setup)


@torch.library.custom_op("xmafast::text_conditioned", mutates_args=(), device_types="cuda")
def _score(text: Tensor, frames: Tensor, mask: Tensor, temperature: float) -> Tensor:
    from xmafast.kernels.pooling import triton

    return launch(triton.score, text, frames, mask, *_of_videos(text, frames, mask), temperature)


@_score.register_kernel("cpu")
def _(text: Tensor, frames: Tensor, mask: Tensor, temperature: float) -> Tensor:
    return TextConditioned(text, frames, mask, temperature).matrix()


@_score.register_fake
def _(text: Tensor, frames: Tensor, mask: Tensor, temperature: float) -> Tensor:
    return text.new_empty((text.shape[0], frames.shape[0]), dtype=wide(text))


@torch.library.custom_op("xmafast::text_conditioned_backward", mutates_args=(), device_types="cuda")
def _score_backward(text: Tensor, frames: Tensor, mask: Tensor, temperature: float, grad: Tensor) -> tuple[Tensor, Tensor]:
    from xmafast.kernels.pooling import triton

    gram, lengths = _of_videos(text, frames, mask)

    def pieces(rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return launch(triton.score_backward, text[rows], frames, mask, gram, lengths[rows], temperature, grad[rows])

    return _through_scores(text, frames, mask, pieces, max(1, CHUNK["cuda"] // max(1, frames.shape[0] * frames.shape[1])))


@_score_backward.register_kernel("cpu")
def _(text: Tensor, frames: Tensor, mask: Tensor, temperature: float, grad: Tensor) -> tuple[Tensor, Tensor]:
    videos = Videos.of(frames, mask)

    def pieces(rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        p = pooled(text[rows], videos, temperature)
        numerator, square = p.sums()
        s, g = score(text[rows], numerator, square), grad[rows]
        square = square.clamp_min(torch.finfo(square.dtype).tiny)
        root, ratio = g.T / (square.sqrt() * length(text[rows])), numerator / square
        da = p.e * root[:, None] * (1 + (p.a - ratio[:, None] * p.ge) / temperature)
        weighted = p.e * (root * ratio)[:, None]
        return da.to(text.dtype).permute(2, 0, 1), p.e.permute(2, 0, 1), weighted.permute(2, 0, 1), g * s

    return _through_scores(text, frames, mask, pieces, max(1, CHUNK["cpu"] // max(1, frames.shape[0] * frames.shape[1])))


@_score_backward.register_fake
def _(text: Tensor, frames: Tensor, mask: Tensor, temperature: float, grad: Tensor) -> tuple[Tensor, Tensor]:
    return text.new_empty(text.shape), frames.new_empty(frames.shape)


def _through_scores(
    text: Tensor, frames: Tensor, mask: Tensor, pieces: Callable[[slice], tuple[Tensor, Tensor, Tensor, Tensor]], step: int
) -> tuple[Tensor, Tensor]:
    """Gradients at text and frames from those at their inner products, at the Gram matrices and at the texts' norms, chunk by chunk.

    ``pieces(rows)`` is what ``triton.score_backward`` gives for those texts.
    """
    m, f, d = frames.shape
    kept = frames.masked_fill(~mask.bool()[..., None], 0)
    flat = kept.reshape(m * f, d)
    dtext = torch.empty_like(text, memory_format=torch.contiguous_format)
    dflat = flat.new_zeros((m * f, d), dtype=wide(text))
    gram = flat.new_zeros((m, f, f), dtype=wide(text))
    for start in range(0, len(text), step):
        rows = slice(start, start + step)
        da, e, weighted, shrink = pieces(rows)
        da = da.reshape(len(da), m * f)
        own = shrink.sum(1, keepdim=True) / length(text[rows])[:, None].square()
        dtext[rows] = (product(da, flat.T) - own * text[rows]).to(text.dtype)
        dflat += product(da.T, text[rows].T)
        gram += torch.bmm(weighted.permute(1, 2, 0), e.permute(1, 0, 2))
    dframes = dflat.view(m, f, d) - torch.bmm(gram, kept.to(gram.dtype))
    return dtext, dframes.masked_fill(~mask.bool()[..., None], 0).to(frames.dtype)


def _score_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.temperature = inputs[3]


def _score_gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *_score_backward(*ctx.saved_tensors, ctx.temperature, grad.contiguous()), None, None


_score.register_autograd(_score_gradients, setup_context=_score_setup)


@torch.library.custom_op("xmafast::text_conditioned_count", mutates_args=(), device_types="cuda")
def _score_count(
    text: Tensor, frames: Tensor, mask: Tensor, temperature: float, columns: Tensor, sets: Tensor | None,
    query_groups: Tensor | None, candidate_groups: Tensor | None,
    low_n: Tensor, high_n: Tensor, low_m: Tensor | None, high_m: Tensor | None, capacity: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    from xmafast.kernels.pooling import triton

    groups = None if query_groups is None or candidate_groups is None else (query_groups, candidate_groups)
    bands = (low_n, high_n) if low_m is None or high_m is None else (low_n, high_n, low_m, high_m)
    return launch(triton.score_ranks, text, frames, mask, *_of_videos(text, frames, mask), temperature, columns, groups, bands, capacity)


@_score_count.register_kernel("cpu")
def _(
    text: Tensor, frames: Tensor, mask: Tensor, temperature: float, columns: Tensor, sets: Tensor | None,
    query_groups: Tensor | None, candidate_groups: Tensor | None,
    low_n: Tensor, high_n: Tensor, low_m: Tensor | None, high_m: Tensor | None, capacity: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    from xmafast.kernels.ranking.reference import count_above

    scores = _score(text, frames, mask, temperature)
    return count_above(scores, columns, sets, query_groups, candidate_groups, low_n, high_n, low_m, high_m, capacity)


@_score_count.register_fake
def _(
    text: Tensor, frames: Tensor, mask: Tensor, temperature: float, columns: Tensor, sets: Tensor | None,
    query_groups: Tensor | None, candidate_groups: Tensor | None,
    low_n: Tensor, high_n: Tensor, low_m: Tensor | None, high_m: Tensor | None, capacity: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    def made(n: int, dtype: torch.dtype) -> Tensor:
        return text.new_empty(n, dtype=dtype)

    counted = frames.shape[0] if low_m is not None else 1
    return made(text.shape[0], torch.int32), made(counted, torch.int32), made(capacity, torch.int64), made(1, torch.int32)


def similarity(
    text: Tensor,  # (N, D)
    frames: Tensor,  # (M, F, D)
    mask: Tensor,  # (M, F), true where the frame is real
    *,
    header: str = "mean",
    temperature: float = 5.0,
    impl: str = "auto",
) -> Tensor:  # (N, M)
    """Cosines between N texts and M videos under a header; embeddings are un-normalised. Raises ValueError for an unknown header."""
    if reference.known(header) == "mean":
        return mean_similarity(text, frames, mask, impl=impl)
    return text_conditioned_similarity(text, frames, mask, temperature=temperature, impl=impl)


def pool(
    frames: Tensor,  # (M, F, D)
    mask: Tensor,  # (M, F), true where the frame is real
    *,
    impl: str = "auto",
) -> Tensor:  # (M, D)
    """The mean header's unit vector of each video: normalise its frames, masked mean, normalise (CLIP4Clip, arXiv 2104.08860, meanP).

    Zero for a video without real frames, and in the dtype of the frames.
    """
    if not use_triton(impl, frames):
        return reference.pool(frames, mask)
    pooled: Tensor = _pool(_unit_stride(frames), _bytes(mask, frames)).to(frames.dtype)
    return pooled


def mean_similarity(text: Tensor, frames: Tensor, mask: Tensor, *, impl: str = "auto") -> Tensor:
    """CLIP4Clip's parameter-free header: cosine of the text and the pooled video. (N, D), (M, F, D), (M, F) -> (N, M)."""
    return F.normalize(text, dim=-1) @ pool(frames, mask, impl=impl).T


def text_conditioned_similarity(
    text: Tensor,  # (N, D)
    frames: Tensor,  # (M, F, D)
    mask: Tensor,  # (M, F), true where the frame is real
    *,
    temperature: float = 5.0,
    impl: str = "auto",
) -> Tensor:  # (N, M)
    """The header of the Cross-Modal Adapter (arXiv 2211.09623, section 3.3).

    ``a_j = <t, f_j>``, ``w = softmax_j(a_j / temperature)``, ``score = cos(t, sum_j w_j f_j)``. The pooled vector depends on
    the text, but it need not be formed: ``<t, sum_j w_j f_j> = w'a`` and ``|sum_j w_j f_j|^2 = w'Gw`` with the Gram matrix G
    of the video's frames. A video without real frames scores 0.
    """
    dtype = torch.promote_types(text.dtype, frames.dtype)
    text, frames = text.to(dtype), frames.to(dtype)
    if use_triton(impl, text, frames) and frames.shape[1] <= MOST_FRAMES:
        scores: Tensor = _score(_unit_stride(text), _unit_stride(frames), _bytes(mask, frames), temperature).to(dtype)
        return scores
    if torch.is_grad_enabled() and (text.requires_grad or frames.requires_grad):
        return reference.text_conditioned_similarity(text, frames, mask, temperature=temperature)
    return TextConditioned(text, frames, mask, temperature).matrix().to(dtype)


def ranks_over_frames(
    text: Tensor,  # (N, D)
    frames: Tensor,  # (M, F, D)
    mask: Tensor,  # (M, F), true where the frame is real
    positives: Tensor,  # (N,) int64, the video of each text
    *,
    header: str = "mean",
    temperature: float = 5.0,
    group_ids: tuple[Tensor, Tensor] | None = None,  # (N,), (M,)
    offset: int = 0,
    positive_scores: Tensor | None = None,  # (N,) float64
    impl: str = "auto",
) -> Ranks:  # (N,), (N,) int64
    """``xmafast.kernels.ranks`` of texts among videos under a header, in O(N + M) memory beside inputs and a tile."""
    if reference.known(header) == "mean":
        queries, candidates = _unit(text, frames, mask, impl)
        return inner_ranks(queries, candidates, positives, group_ids=group_ids, offset=offset, positive_scores=positive_scores, impl=impl)
    return _text_conditioned_ranks(text, frames, mask, positives, temperature, group_ids, offset, positive_scores, impl, both=False)[0]


def ranks_both_over_frames(
    text: Tensor,  # (N, D)
    frames: Tensor,  # (M, F, D)
    mask: Tensor,  # (M, F), true where the frame is real
    positives: Tensor | None = None,  # (N,) int64, the video of each text; None: the diagonal
    *,
    header: str = "mean",
    temperature: float = 5.0,
    group_ids: tuple[Tensor, Tensor] | None = None,  # (N,), (M,)
    offset: int = 0,
    positive_scores: Tensor | None = None,  # (N,) float64
    impl: str = "auto",
) -> tuple[Ranks, Ranks]:  # ((N,), (N,)), ((M,), (M,)) int64
    """``xmafast.kernels.ranks_both`` of texts and videos under a header, from one sweep."""
    if reference.known(header) == "mean":
        queries, candidates = _unit(text, frames, mask, impl)
        return inner_ranks_both(
            queries, candidates, positives, group_ids=group_ids, offset=offset, positive_scores=positive_scores, impl=impl
        )
    t2v, v2t = _text_conditioned_ranks(text, frames, mask, positives, temperature, group_ids, offset, positive_scores, impl, both=True)
    assert v2t is not None
    return t2v, v2t


def topk_over_frames(
    text: Tensor,  # (N, D)
    frames: Tensor,  # (M, F, D)
    mask: Tensor,  # (M, F), true where the frame is real
    k: int,
    *,
    header: str = "mean",
    temperature: float = 5.0,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:  # (N, min(k, M)), (N, min(k, M)) int64
    """``xmafast.kernels.topk`` of the videos for each text under a header; scores are cosines."""
    if reference.known(header) == "mean":
        return inner_topk(*_unit(text, frames, mask, impl), k, impl=impl)
    return topk_of(_scores(text, frames, mask, temperature, impl), k, None)


def score_positives_over_frames(
    text: Tensor, frames: Tensor, mask: Tensor, positives: Tensor, *, header: str = "mean", temperature: float = 5.0, offset: int = 0
) -> Tensor:
    """``xmafast.kernels.score_positives`` under a header: what shards of videos add up before they rank."""
    if reference.known(header) == "mean":
        from xmafast.kernels.ranking.op import score_positives

        return score_positives(*_unit(text, frames, mask, "eager"), positives, offset=offset)
    return own_scores(_scores(text, frames, mask, temperature, "eager"), positives.long() - offset)


def _text_conditioned_ranks(
    text: Tensor, frames: Tensor, mask: Tensor, positives: Tensor | None, temperature: float, group_ids: tuple[Tensor, Tensor] | None,
    offset: int, given: Tensor | None, impl: str, *, both: bool,
) -> tuple[Ranks, Ranks | None]:  # fmt: skip
    def build(order: Tensor | None) -> Scores:
        return _scores(text if order is None else text[order], frames, mask, temperature, impl)

    with torch.no_grad():
        counter = _count if _kernel_for(text, frames, impl) else None
        return rank_of_scores(build, positives, group_ids, offset, given, counter, both=both)


def _count(scores: Scores, positives: Positives, bands: list[Band], rows: Tally, columns: Tally | None) -> bool:
    """The kernel's ``Counter``. Sets of several texts go through the kernel of the matrix, a chunk of texts at a time."""
    assert isinstance(scores, TextConditioned)
    if positives.sets is not None and tile_order(positives.sets) != (True, None):
        return False
    capacity = NEAR + 8 * sum(scores.shape)
    above_n, above_m, near, found = _score_count(
        scores.text, scores.frames, scores.mask, scores.temperature, *indices(positives), *limits(bands), capacity
    )
    return settle(scores, positives, rows, columns, above_n, above_m, near, int(found))


def _kernel_for(text: Tensor, frames: Tensor, impl: str) -> bool:
    return use_triton(impl, text, frames) and frames.shape[1] <= MOST_FRAMES and torch.float64 not in (text.dtype, frames.dtype)


def _scores(text: Tensor, frames: Tensor, mask: Tensor, temperature: float, impl: str) -> TextConditioned:
    dtype = torch.promote_types(text.dtype, frames.dtype)
    text, frames, mask = _unit_stride(text.detach().to(dtype)), _unit_stride(frames.detach().to(dtype)), _bytes(mask, frames)
    return TextConditioned(text, frames, mask, temperature, _score if _kernel_for(text, frames, impl) else None)


def _unit(text: Tensor, frames: Tensor, mask: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    """Unit vectors of texts and videos, float32 at least: rounded to half precision, neighbours would change places."""
    dtype = wide(text)
    with torch.no_grad():
        return F.normalize(text.detach().to(dtype), dim=-1), pool(frames.detach().to(dtype), mask, impl=impl)


def _of_videos(text: Tensor, frames: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Gram matrices (M, F, F), zero at padding, and the texts' norms (N,), float32, as the kernels want them."""
    real = mask.bool()
    kept = frames.masked_fill(~real[..., None], 0)
    gram = torch.bmm(kept, kept.mT) if kept.dtype == torch.float32 else torch.bmm(kept, kept.mT, out_dtype=torch.float32)
    return gram, length(text)


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or not x.numel() else x.contiguous()


def _bytes(mask: Tensor, frames: Tensor) -> Tensor:
    """The mask as the kernels read it: 0 or 1 in contiguous bytes, whatever its dtype was."""
    return mask.to(frames.device).bool().contiguous().view(torch.uint8)
