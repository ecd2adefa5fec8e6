"""Evaluation: ranks of both directions under a data set's protocol, and the table of metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from xmafast.cache import FrameCache, FrameReader, Status
from xmafast.embeddings import Progress, adapt_frames, adapt_texts, embed_frames, embed_texts, stored_embeddings
from xmafast.errors import CacheError, DataError
from xmafast.kernels import ranks_both_over_frames, ranks_of_scores
from xmafast.metrics import bootstrap, metrics_of, rank_of
from xmafast.retriever import Retriever

if TYPE_CHECKING:
    from xmafast.frozen import FrozenEmbeddings


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
) -> Ranks:
    """Ranks over the captioned rows of a cache that are done, or over ``rows``.

    captions: how many of each video's captions are queries (None: all). store: a folder that keeps the frame embeddings. frozen: the
    cache's, for a method on features, which then acts on them. Raises CacheError where no row can be used.
    """
    done = cache.rows
    wanted = done if rows is None else rows
    wanted = np.array([row for row in wanted if cache.captions[row]], dtype=np.int64)
    if not len(wanted):
        reason = "has no video that could be decoded" if not len(done) else "has no captions to query with"
        raise CacheError(f"{cache.path} {reason}; `xmafast cache` lists what is missing.")
    if frozen is not None:
        frames, mask = frozen.read(wanted)
        frames = adapt_frames(retriever, frames, mask)
    elif store is None:
        frames, mask = embed_frames(retriever, cache, wanted, progress)
    else:
        frames, mask = stored_embeddings(retriever, cache, store, progress)
        index = torch.from_numpy(np.searchsorted(done, wanted)).to(frames.device)
        frames, mask = frames[index], mask[index]
    texts = [list(cache.captions[row][:captions]) for row in wanted]
    video_of = torch.tensor([i for i, group in enumerate(texts) for _ in group], device=frames.device)
    queries = [caption for group in texts for caption in group]
    text = (embed_texts(retriever, queries) if frozen is None else adapt_texts(retriever, frozen.text(queries))).to(frames.device)
    return rank_both(retriever, text, frames, mask, video_of)


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
