"""Ranks of a cache that several processes share out: each embeds its own videos and texts, and counts over its own videos."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from xmafast.cache import FeatureCache, FrameReader
from xmafast.distributed import Processes
from xmafast.embeddings import VIDEOS_AT_ONCE, adapt_frames, adapt_texts, embed_frames, embed_texts, queries_of
from xmafast.kernels import ranks_both_over_frames, score_positives_over_frames
from xmafast.ranks import Ranks, ranks_of
from xmafast.retriever import Retriever

if TYPE_CHECKING:
    from xmafast.frozen_embeddings import FrozenEmbeddings

TEXTS_AT_ONCE = 256


@torch.inference_mode()
def rank_shared(
    retriever: Retriever,
    cache: FrameReader,
    rows: np.ndarray,
    processes: Processes,
    *,
    captions: int | None = None,
    frozen: FrozenEmbeddings | None = None,
    tokens: FeatureCache | None = None,
) -> Ranks:
    """``xmafast.evaluation.rank_cache`` over captioned rows, with the ranks that one process would find.

    Each process embeds whole batches of the same videos and texts as one would, so that no embedding is rounded otherwise. Average
    precision and nDCG are not computed.
    """
    counts = in_batches(len(rows), VIDEOS_AT_ONCE, processes)
    own = rows[sum(counts[: processes.rank]) :][: counts[processes.rank]]
    if frozen is None:
        frames, mask = embed_frames(retriever, cache if tokens is None else tokens, own)
    else:
        frames, mask = frozen.read(own)
        frames = adapt_frames(retriever, frames, mask) if len(own) else frames
    frames, mask = frames.to(retriever.device), mask.to(retriever.device)  # also those of no video
    queries, video_of = queries_of(cache, rows, captions, frames.device)
    if frozen is not None:
        text = adapt_texts(retriever, frozen.text(queries)).to(frames.device)
    else:
        shares = in_batches(len(queries), TEXTS_AT_ONCE, processes)
        part = queries[sum(shares[: processes.rank]) :][: shares[processes.rank]]
        text = processes.gather(embed_texts(retriever, part, TEXTS_AT_ONCE).to(frames.device), shares)
    return rank_shards(retriever, text, frames, mask, video_of, processes, counts)


@torch.inference_mode()
def rank_shards(
    retriever: Retriever, text: Tensor, frames: Tensor, mask: Tensor, video_of: Tensor, processes: Processes, counts: Sequence[int]
) -> Ranks:
    """``rank_both`` where each process has the frames (m, F, D) and mask (m, F) of its own videos alone, and all texts and ``video_of``.

    counts: how many videos each process has, the first ones first. Ranks are sums of counts, so they are those of one process.
    """
    first = sum(counts[: processes.rank])
    header, temperature = retriever.pooling, retriever.temperature
    own = torch.zeros(len(text), dtype=torch.float64, device=text.device)
    if len(frames):
        own = score_positives_over_frames(text, frames, mask, video_of, header=header, temperature=temperature, offset=first)
    own = processes.sum(own)
    t2v, v2t = torch.zeros(2, len(text), dtype=torch.int64, device=text.device), torch.zeros(0, 2, dtype=torch.int64, device=text.device)
    if len(frames):
        rows, columns = ranks_both_over_frames(
            text, frames, mask, video_of, header=header, temperature=temperature, offset=first, positive_scores=own, impl=retriever.impl
        )
        t2v, v2t = torch.stack(rows), torch.stack(columns, dim=1)
    t2v, v2t = processes.sum(t2v), processes.gather(v2t, counts)
    captioned, place = video_of.unique(return_inverse=True)
    greater, ties = v2t[captioned].T
    return ranks_of((t2v[0], t2v[1]), (greater, ties), place)


def in_batches(total: int, size: int, processes: Processes) -> list[int]:
    """How many of ``total`` items each process has, where all but the last batch of ``size`` are whole."""
    ends = [min(end * size, total) for end in accumulate(processes.counts(-(-total // size)))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
