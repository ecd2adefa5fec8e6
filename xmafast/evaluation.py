"""Evaluation: a cache's texts and videos as a retriever embeds them, the table of metrics, and what it must be read with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from xmafast.cache import FeatureCache, FrameCache, FrameReader, Status
from xmafast.datasets import DATASETS
from xmafast.distributed import ALONE, Processes
from xmafast.distributed_ranks import rank_shared
from xmafast.embeddings import Progress, adapt_frames, adapt_texts, embed_frames, embed_texts, queries_of, stored_embeddings
from xmafast.errors import CacheError
from xmafast.ranks import Ranks, found_by, r_sum, rank_both, rank_matrix
from xmafast.rerank import NEED_BANK, Bank, Cosines, Settings, check, described, rerank
from xmafast.retriever import Retriever

if TYPE_CHECKING:
    from xmafast.frozen_embeddings import FrozenEmbeddings

__all__ = ["Assessed", "Ranks", "assess", "counts", "evaluate", "protocol", "r_sum", "rank_both", "rank_cache", "rank_matrix"]

FOUND = 3  # of the best candidates of each query, how many an assessment keeps
BANK = 1000  # videos of the training set


@dataclass(frozen=True)
class Embedded:
    """Un-normalised embeddings of M videos of a cache and of their N captions: text (N, D), frames (M, F, D), mask (M, F), video_of
    (N,), and where they come from: rows (M,) of the cache, captions (N)."""

    text: Tensor
    frames: Tensor
    mask: Tensor
    video_of: Tensor
    rows: np.ndarray
    captions: list[str]


def embed(
    retriever: Retriever,
    cache: FrameReader,
    rows: np.ndarray | None = None,
    *,
    captions: int | None = None,
    store: Path | None = None,
    progress: Progress | None = None,
    frozen: FrozenEmbeddings | None = None,
    tokens: FeatureCache | None = None,
) -> Embedded:
    """The captioned rows of a cache that are done, or ``rows``, embedded.

    captions: how many of each video's captions are queries (None: all). store: a folder that keeps the frame embeddings of the whole
    cache. frozen: the cache's, for a method on features, which then acts on them. Raises CacheError where no row can be used.
    """
    wanted = wanted_rows(cache, rows)
    if frozen is not None:
        frames, mask = frozen.read(wanted)
        frames = adapt_frames(retriever, frames, mask)
    elif store is None:
        frames, mask = embed_frames(retriever, cache if tokens is None else tokens, wanted, progress)
    else:
        frames, mask = stored_embeddings(retriever, cache, store, progress)
        index = torch.from_numpy(np.searchsorted(cache.rows, wanted)).to(frames.device)
        frames, mask = frames[index], mask[index]
    queries, video_of = queries_of(cache, wanted, captions, frames.device)
    text = (embed_texts(retriever, queries) if frozen is None else adapt_texts(retriever, frozen.text(queries))).to(frames.device)
    return Embedded(text, frames, mask, video_of, wanted, queries)


def wanted_rows(cache: FrameReader, rows: np.ndarray | None = None) -> np.ndarray:
    """The rows that are done, or ``rows``, that have captions. Raises CacheError where there is none."""
    wanted = cache.rows if rows is None else rows
    wanted = np.array([row for row in wanted if cache.captions[row]], dtype=np.int64)
    if not len(wanted):
        reason = "has no video that could be decoded" if not len(cache.rows) else "has no captions to query with"
        raise CacheError(f"{cache.path} {reason}; `xmafast cache` lists what is missing.")
    return wanted


def rank_cache(
    retriever: Retriever,
    cache: FrameReader,
    rows: np.ndarray | None = None,
    *,
    captions: int | None = None,
    frozen: FrozenEmbeddings | None = None,
    tokens: FeatureCache | None = None,
    processes: Processes = ALONE,
) -> Ranks:
    """Ranks over the captioned rows of a cache that are done, or over ``rows``; captions and frozen as in ``embed``.

    tokens: of the cache's frames, to embed in their place. processes: those that share out the videos, and get the ranks that one process
    would find. Raises CacheError where no row can be used.
    """
    if not processes.alone:
        return rank_shared(retriever, cache, wanted_rows(cache, rows), processes, captions=captions, frozen=frozen, tokens=tokens)
    e = embed(retriever, cache, rows, captions=captions, frozen=frozen, tokens=tokens)
    return rank_both(retriever, e.text, e.frames, e.mask, e.video_of)


@dataclass(frozen=True)
class Assessed:
    """What an evaluation found: ranks, ranks after each way of re-ranking, and the best candidates of each query, best first.

    ids, rows: (M,) the videos, and where they are in the cache. captions: (N,) the texts, whose videos ``ranks.video_of`` says.
    t2v: (N, k) the best videos of each text. v2t: (M, k) the best texts of each video.
    """

    ranks: Ranks
    reranked: dict[str, tuple[Ranks, dict[str, Any]]]
    ids: list[str]
    captions: list[str]
    rows: np.ndarray
    t2v: np.ndarray
    v2t: np.ndarray

    def result(self, topk: Sequence[int] = (1, 5, 10), samples: int = 0) -> dict[str, Any]:
        """The metrics, with ``samples`` also their intervals, and ``"rerank"`` where there is any."""
        result: dict[str, Any] = summary(self.ranks, topk, samples)
        if self.reranked:
            result["rerank"] = {name: {**summary(ranks, topk, samples), **how} for name, (ranks, how) in self.reranked.items()}
        return result


def summary(ranks: Ranks, topk: Sequence[int], samples: int = 0) -> dict[str, Any]:
    """``{"t2v", "v2t", "R-sum"}``, with ``samples`` also ``"interval"``, the 95 % intervals of them all."""
    result: dict[str, Any] = {**ranks.metrics(topk), "R-sum": ranks.r_sum}
    return result | ({"interval": ranks.intervals(topk, samples)} if samples else {})


def assess(
    retriever: Retriever,
    cache: FrameReader,
    *,
    rerank_by: Sequence[str] = (),
    settings: Settings | None = None,
    bank: FrameReader | None = None,
    bank_videos: int = BANK,
    keep: int = FOUND,
    store: Path | None = None,
    progress: Progress | None = None,
) -> Assessed:
    """Evaluate a retriever on a cache, and keep what each query found.

    rerank_by: names of ``xmafast.rerank.METHODS``. bank: the training set's cache, of which ``bank_videos`` videos are taken with all
    their captions. keep: how many of the best candidates of each query; 0 saves the search for them.
    Raises CacheError where nothing can be evaluated; UsageError for re-ranking that is unknown or lacks its bank.
    """
    check(list(rerank_by))
    settings = settings or Settings()
    settings.check()
    e = embed(retriever, cache, store=store, progress=progress)
    ranks = rank_both(retriever, e.text, e.frames, e.mask, e.video_of)
    reranked = {}
    if rerank_by:
        pairs = Cosines(retriever, e.text, e.frames, e.mask)
        queries = _bank(retriever, e, bank, bank_videos, progress) if bank is not None and NEED_BANK & {*rerank_by} else None
        for name in rerank_by:
            reranked[name] = rerank(name, pairs, e.video_of, settings, queries), described(name, settings, queries)
    none = np.zeros((len(e.captions), 0), np.int64), np.zeros((len(e.rows), 0), np.int64)
    found = found_by(retriever, e.text, e.frames, e.mask, keep) if keep else none
    return Assessed(ranks, reranked, [cache.ids[row] for row in e.rows], e.captions, e.rows, *found)


def _bank(retriever: Retriever, test: Embedded, cache: FrameReader, videos: int, progress: Progress | None) -> Bank:
    """Training captions against the test's videos, and the test's captions against training videos."""
    captioned = [int(row) for row in cache.rows if cache.captions[row]]
    order = sorted(captioned, key=lambda row: hashlib.sha256(cache.ids[row].encode("utf-8")).digest())  # the same for every run
    e = embed(retriever, cache, np.array(sorted(order[:videos]), dtype=np.int64), progress=progress)
    return Bank(Cosines(retriever, e.text, test.frames, test.mask), Cosines(retriever, test.text, e.frames, e.mask))


def evaluate(
    retriever: Retriever,
    cache: FrameReader | str | Path,
    *,
    topk: Sequence[int] = (1, 5, 10),
    bootstrap_samples: int = 0,
    rerank_by: Sequence[str] = (),
    settings: Settings | None = None,
    bank: FrameReader | str | Path | None = None,
    store: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The metrics of a retriever on a cache, both directions.

    Returns ``{"t2v": {"R@1": percent, ..., "MdR", "MnR"}, "v2t": {...}, "R-sum", "queries", "candidates", "missing", "failed",
    "protocol"}``; where videos have several captions v2t also has mAP and nDCG. With ``bootstrap_samples`` there is ``"interval"``, the
    95 % intervals of all of them, and with ``rerank_by`` (names of ``xmafast.rerank.METHODS``; some need ``bank``, the training set's
    cache) ``"rerank"``, the same of each. Videos that are missing or failed are no candidates and their captions no queries.
    Raises CacheError where nothing can be evaluated; UsageError for re-ranking that is unknown or lacks its bank.
    """
    cache = cache if isinstance(cache, FrameReader) else FrameCache(cache)
    bank = bank if bank is None or isinstance(bank, FrameReader) else FrameCache(bank)
    assessed = assess(retriever, cache, rerank_by=rerank_by, settings=settings, bank=bank, keep=0, store=store, progress=progress)
    return {**assessed.result(topk, bootstrap_samples), **counts(assessed.ranks, cache), "protocol": protocol(retriever, cache)}


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
        "queries": query_protocol(cache),
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
        **({"routed_to": retriever.dataset or "the mean of all"} if retriever.datasets else {}),
        "patch": retriever.patch,
        "temperature": retriever.temperature,
        "v2t": "the best of a video's captions",
        "rerank": "none",
    }


def query_protocol(cache: FrameReader) -> str:
    """``single`` (one caption a video), ``multi-caption`` (several, each a query), or ``paragraph`` (all sentences of a video in one)."""
    published = getattr(DATASETS.get(str(cache.attributes.get("dataset"))), "PROTOCOL", None)
    if published is not None and "paragraph" in published.queries:
        return "paragraph"
    return "multi-caption" if any(len(captions) > 1 for captions in cache.captions) else "single"
