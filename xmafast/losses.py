"""The losses that a method is trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xmafast.distributed import Processes
from xmafast.kernels import info_nce, info_nce_from_scores, pool
from xmafast.kernels.contrast import log_sum_exps, log_sum_exps_of_scores
from xmafast.methods.base import Batch
from xmafast.precision import autocast
from xmafast.retriever import Retriever


def total_loss(
    retriever: Retriever,
    texts: Sequence[str],
    frames: Tensor,
    mask: Tensor,
    groups: Tensor,
    stream: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The loss of a batch of pairs: ``contrastive_loss`` of their embeddings, and the method's own terms.

    texts (N), frames uint8 (N, F, H, W, 3), mask (N, F), groups (N,) the video that each pair shows, stream as
    ``encode_frames`` takes it.
    """
    with autocast(retriever.device):
        video = retriever.encode_frames(frames, mask, stream)
        text = retriever.encode_text(texts)
    text, video, groups = text.float(), video.float(), groups.to(text.device)
    loss = contrastive_loss(retriever, text, video, mask, groups)
    more = (
        retriever.acting.extra_loss(Batch(retriever, list(texts), frames, mask, text, video, groups, stream)) if retriever.acting else None
    )
    return loss if more is None else loss + more


def contrastive_loss(
    retriever: Retriever,
    text: Tensor,  # (N, D)
    frames: Tensor,  # (N, F, D)
    mask: Tensor,  # (N, F)
    groups: Tensor,  # (N,) the video that each pair shows
) -> Tensor:  # scalar
    """Symmetric InfoNCE over a batch of pairs under the retriever's header, at the backbone's temperature.

    Other captions of a video in the batch are no negatives. Under the mean header no score matrix is needed; the
    text-conditioned one has a vector for each pair, so its loss is taken from its scores.
    """
    scale, ids = retriever.logit_scale, (groups, groups)
    if retriever.pooling == "mean":
        video = pool(frames, mask.to(frames.device), impl=retriever.impl)
        return info_nce(F.normalize(text, dim=-1), video, scale, group_ids=ids, impl=retriever.impl)
    return info_nce_from_scores(retriever.similarity(text, frames, mask), scale, group_ids=ids)


def sharded_contrastive_loss(
    retriever: Retriever,
    text: Tensor,  # (n, D)
    frames: Tensor,  # (n, F, D)
    mask: Tensor,  # (n, F)
    groups: Tensor,  # (N,) the video that each pair of all processes shows
    processes: Processes,
    counts: Sequence[int],  # of pairs in each process: they sum to N
    scale: float | Tensor | None = None,
) -> Tensor:  # scalar
    """This process' share of ``contrastive_loss`` over the pairs of all processes; a process may have none.

    The shares sum to the loss, and so do their gradients. Each process scores its own videos with the texts of all: a text is one vector
    under either header, and a video F of them, so texts are what is sent. scale: in place of the retriever's.
    """
    scale = retriever.logit_scale if scale is None else scale
    start = sum(counts[: processes.rank])
    ids = (groups[start : start + len(text)], groups)
    if retriever.pooling == "mean":
        video = pool(frames, mask.to(frames.device), impl=retriever.impl) if len(frames) else frames.sum(1)
        text = F.normalize(text, dim=-1)
        return sharded_info_nce(video, text, scale, processes=processes, counts=counts, group_ids=ids, impl=retriever.impl)
    every = gathered(text, processes, counts)
    scores = retriever.similarity(every, frames, mask) if len(frames) else every @ frames.sum(1).T
    return sharded_info_nce_from_scores(scores.T, scale, processes=processes, counts=counts, group_ids=ids)


def sharded_info_nce(
    queries: Tensor,  # (n, D) unit vectors, this process'
    candidates: Tensor,  # (n, D) unit vectors, this process'
    scale: float | Tensor,
    *,
    processes: Processes,
    counts: Sequence[int],  # of pairs in each process: they sum to N
    group_ids: tuple[Tensor, Tensor] | None = None,  # (n,), (N,)
    impl: str = "auto",
) -> Tensor:  # scalar
    """This process' share of ``xmafast.kernels.info_nce`` over the pairs of all processes: the shares sum to the loss, and so do their
    gradients.

    Each process forms the rectangle of its own queries and the candidates of all (n x N) once. Its rows are whole; the log-sum-exps of
    the columns are merged by two all-reduces of N numbers. Backwards one more of N numbers, and a reduce-scatter of the candidates'
    gradients to the processes that they came from.
    """
    every = gathered(candidates, processes, counts)
    offset = sum(counts[: processes.rank])
    return _share(*log_sum_exps(queries, every, scale, group_ids=group_ids, offset=offset, impl=impl), processes, offset)


def sharded_info_nce_from_scores(
    scores: Tensor,  # (n, N) cosines of this process' queries and the candidates of all
    scale: float | Tensor,
    *,
    processes: Processes,
    counts: Sequence[int],
    group_ids: tuple[Tensor, Tensor] | None = None,  # (n,), (N,)
) -> Tensor:  # scalar
    """``sharded_info_nce`` for cosines that a header has formed."""
    offset = sum(counts[: processes.rank])
    return _share(*log_sum_exps_of_scores(scores, scale, group_ids=group_ids, offset=offset), processes, offset)


def _share(rows: Tensor, columns: Tensor, positives: Tensor, processes: Processes, offset: int) -> Tensor:
    """Own rows and own columns, from log-sum-exps (n,), (N,) of own rows, and the positives' logits (n,)."""
    merged = _Merged.apply(columns, processes)[offset : offset + len(rows)]
    loss: Tensor = ((rows - positives).sum() + (merged - positives).sum()) / (2 * len(columns))
    return loss


def gathered(own: Tensor, processes: Processes, counts: Sequence[int]) -> Tensor:
    """(n, ...) of each process -> (N, ...), in the order of the ranks; each gets the gradients of its own from all of them."""
    whole: Tensor = _Gathered.apply(own, processes, counts)
    return whole


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, processes: Processes, counts: Sequence[int]) -> Tensor:
        ctx.processes, ctx.counts = processes, counts
        return processes.gather(own, counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.processes.scatter_sum(gradients[0], ctx.counts), None, None


class _Merged(torch.autograd.Function):
    """Log-sum-exps over the rows of each process -> over the rows of all. -inf is one without any; not all of them may be."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, processes: Processes) -> Tensor:
        most = processes.most(own.clone())
        merged = most + processes.sum((own - most).exp()).log()
        ctx.processes = processes
        ctx.save_for_backward(own, merged)
        return merged

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        own, merged = ctx.saved_tensors
        return ctx.processes.sum(gradients[0].clone()) * (own - merged).exp(), None
