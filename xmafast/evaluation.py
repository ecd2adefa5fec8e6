"""Evaluation: ranks of both directions under a data set's protocol, and the table of metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from xmafast.cache import FrameCache, FrameReader, Status
from xmafast.distributed import ALONE, Processes
from xmafast.embeddings import VIDEOS_AT_ONCE, Progress, adapt_frames, adapt_texts, embed_frames, embed_texts, stored_embeddings
from xmafast.errors import CacheError, DataError
from xmafast.kernels import ranks_both_over_frames, ranks_of_scores, score_positives_over_frames
from xmafast.metrics import bootstrap, metrics_of, rank_of
from xmafast.retriever import Retriever

if TYPE_CHECKING:
    from xmafast.frozen import FrozenEmbeddings

TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class Ranks:
    """1-based ranks of the positives: of each text's video (N,), and of each video's caption (M,)."""

    t2v: np.ndarray
    v2t: np.ndarray

    def metrics(self, topk: Sequence[int] = (1, 5, 10)) -> dict[str, dict[str, float]]:
        return {"t2v": metrics_of(self.t2v, topk), "v2t": metrics_of(self.v2t, topk)}


def r_sum(metrics: dict[str, dict[str, float]]) -> float:
    """The sum of R@K over both directions: what an epoch is chosen by."""
    return sum(value for side in metrics.values() for key, value in side.items() if key.startswith("R@"))


@torch.inference_mode()
def rank_both(retriever: Retriever, text: Tensor, frames: Tensor, mask: Tensor, video_of: Tensor) -> Ranks:
    """Ranks from embeddings: text (N, D), frames (M, F, D), mask (M, F), video_of (N,) the video of each text.

    Text to video, every text is a query. Video to text, a video's score for another video's captions, and for its own, is
    the best of them, as CLIP4Clip scores several captions a video; a video without captions is no query.
    """
    t2v, v2t = ranks_both_over_frames(
        text, frames, mask, video_of, header=retriever.pooling, temperature=retriever.temperature, impl=retriever.impl
    )
    captioned = video_of.unique()
    return Ranks(_ranks(*t2v), _ranks(v2t[0][captioned], v2t[1][captioned]))


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
    captioned = video_of.unique()
    return Ranks(_ranks(*t2v), _ranks(*v2t[captioned].T))


def rank_matrix(similarity: np.ndarray) -> Ranks:
    """Ranks of an (N, N) similarity matrix, texts by videos, whose diagonal holds the positives. Raises DataError for another shape."""
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or not similarity.size:
        raise DataError(
            f"The similarity matrix must be square, texts by videos, with the positives on its diagonal; it is {similarity.shape}."
        )
    scores = torch.from_numpy(np.ascontiguousarray(similarity, dtype=np.float64))
    own = torch.arange(len(scores))
    return Ranks(_ranks(*ranks_of_scores(scores, own)), _ranks(*ranks_of_scores(scores.T, own)))


def _ranks(greater: Tensor, ties: Tensor) -> np.ndarray:
    return rank_of(greater.cpu().numpy(), ties.cpu().numpy())


def rank_cache(
    retriever: Retriever,
    cache: FrameReader,
    rows: np.ndarray | None = None,
    *,
    captions: int | None = None,
    store: Path | None = None,
    progress: Progress | None = None,
    frozen: FrozenEmbeddings | None = None,
    processes: Processes = ALONE,
) -> Ranks:
    """Ranks over the captioned rows of a cache that are done, or over ``rows``.

    captions: how many of each video's captions are queries (None: all). store: a folder that keeps the frame embeddings. frozen: the
    cache's, for a method on features, which then acts on them. processes: those that share out the videos, and get the ranks that one
    process would find: each embeds whole batches of the same videos, so that no embedding is rounded otherwise. Raises CacheError where
    no row can be used.
    """
    done = cache.rows
    wanted = done if rows is None else rows
    wanted = np.array([row for row in wanted if cache.captions[row]], dtype=np.int64)
    if not len(wanted):
        reason = "has no video that could be decoded" if not len(done) else "has no captions to query with"
        raise CacheError(f"{cache.path} {reason}; `xmafast cache` lists what is missing.")
    texts = [list(cache.captions[row][:captions]) for row in wanted]
    counts = _in_batches(len(wanted), VIDEOS_AT_ONCE, processes)
    wanted = wanted[sum(counts[: processes.rank]) :][: counts[processes.rank]]
    if frozen is not None and not len(wanted):
        frames, mask = frozen.read(wanted)
    elif frozen is not None:
        frames, mask = frozen.read(wanted)
        frames = adapt_frames(retriever, frames, mask)
    elif store is None:
        frames, mask = embed_frames(retriever, cache, wanted, progress)
    else:
        frames, mask = stored_embeddings(retriever, cache, store, progress)
        index = torch.from_numpy(np.searchsorted(done, wanted)).to(frames.device)
        frames, mask = frames[index], mask[index]
    frames, mask = frames.to(retriever.device), mask.to(retriever.device)  # also those of no video
    video_of = torch.tensor([i for i, group in enumerate(texts) for _ in group], device=frames.device)
    queries = [caption for group in texts for caption in group]
    if frozen is not None:
        text = adapt_texts(retriever, frozen.text(queries)).to(frames.device)
    else:
        shares = _in_batches(len(queries), TEXTS_AT_ONCE, processes)
        own = queries[sum(shares[: processes.rank]) :][: shares[processes.rank]]
        text = processes.gather(embed_texts(retriever, own, TEXTS_AT_ONCE).to(frames.device), shares)
    if processes.alone:
        return rank_both(retriever, text, frames, mask, video_of)
    return rank_shards(retriever, text, frames, mask, video_of, processes, counts)


def _in_batches(total: int, size: int, processes: Processes) -> list[int]:
    """How many of ``total`` items each process has, where all but the last batch of ``size`` are whole."""
    ends = [min(end * size, total) for end in accumulate(processes.counts(-(-total // size)))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def evaluate(
    retriever: Retriever,
    cache: FrameReader | str | Path,
    *,
    topk: Sequence[int] = (1, 5, 10),
    bootstrap_samples: int = 0,
    store: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The metrics of a retriever on a cache, both directions.

    Returns ``{"t2v": {"R@1": percent, ..., "MdR", "MnR"}, "v2t": {...}, "queries", "candidates", "missing", "failed", "protocol"}``;
    with ``bootstrap_samples`` also ``"interval"``, the 95 % intervals of R@K. Videos that are missing or failed are no
    candidates and their captions no queries. Raises CacheError where nothing can be evaluated.
    """
    cache = cache if isinstance(cache, FrameReader) else FrameCache(cache)
    ranks = rank_cache(retriever, cache, store=store, progress=progress)
    result: dict[str, Any] = {**ranks.metrics(topk), **counts(ranks, cache), "protocol": protocol(retriever, cache)}
    if bootstrap_samples:
        result["interval"] = {"t2v": bootstrap(ranks.t2v, topk, bootstrap_samples), "v2t": bootstrap(ranks.v2t, topk, bootstrap_samples)}
    return result


def counts(ranks: Ranks, cache: FrameReader) -> dict[str, int]:
    return {
        "queries": len(ranks.t2v),
        "candidates": len(ranks.v2t),
        "missing": cache.count(Status.MISSING),
        "failed": cache.count(Status.FAILED),
    }


def protocol(retriever: Retriever, cache: FrameReader) -> dict[str, Any]:
    """What a number must be read with: the data, the frames, the words, the backbone, the header."""
    a = cache.attributes
    return {
        "dataset": a.get("dataset"),
        "split": a.get("split"),
        "frames": a.get("frames"),
        "sampling": a.get("sampling"),
        "size": a.get("size"),
        "preprocessing": "bicubic to the shortest side, centre crop",
        "decoder": f"{a.get('decoder')} {a.get('decoder_version')}",
        "words": retriever.words,
        "backbone": retriever.backbone.name,
        "pretrained": retriever.backbone.pretrained,
        **({} if retriever.second is None else {"second": retriever.second.name, "second_pretrained": retriever.second.pretrained}),
        "header": retriever.header,
        "patch": retriever.patch,
        "temperature": retriever.temperature,
        "v2t": "the best of a video's captions",
        "rerank": "none",
    }
