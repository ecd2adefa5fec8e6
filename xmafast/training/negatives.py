"""Hard negatives: which videos the model, as it is, takes for each other, so that a batch can hold them side by side.

Before each epoch every training video is embedded with the weights of that moment, and so is its first caption; the videos that come
nearest to the caption, but for its own, are its hard negatives (nearest neighbours of the current index, as ANCE has it, Xiong et al.,
arXiv 2007.00808). The loss is as ever: what changes is which pairs meet in a batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from xmafast.cache import FeatureCache, FrameReader
from xmafast.cache.joined import JoinedFrames
from xmafast.distributed import ALONE, Processes
from xmafast.distributed_ranks import in_batches
from xmafast.embeddings import VIDEOS_AT_ONCE, Progress, adapt_frames, adapt_texts, embed_frames, embed_texts
from xmafast.frozen_embeddings import FrozenEmbeddings
from xmafast.kernels import topk_over_frames
from xmafast.retriever import Retriever
from xmafast.training.split import datasets_of

SPARE = 8  # more are asked for than are kept, as some show what the caption says too

Nearest = Mapping[int, list[int]]  # row of a cache -> rows, the nearest first


def hard_negatives(
    retriever: Retriever,
    cache: FrameReader,
    rows: np.ndarray,
    count: int,
    *,
    tokens: FeatureCache | None = None,
    frozen: FrozenEmbeddings | None = None,
    processes: Processes = ALONE,
    progress: Progress | None = None,
) -> np.ndarray:
    """For each of ``rows`` at most ``count`` others of its data set, the nearest first: (M, count), -1 where there are fewer.

    A video that shares a caption with it is none of them. tokens: of the cache's frames, to embed in their place. frozen: the cache's
    frozen embeddings, for what acts on them alone. processes: those that share out the videos; all get the same.
    """
    found = np.full((len(rows), count), -1, dtype=np.int64)
    of = cache.part_of(rows) if isinstance(cache, JoinedFrames) else np.zeros(len(rows), dtype=np.int64)
    for i, name in enumerate(datasets_of(cache)):
        if retriever.datasets:
            retriever.dataset = name
        at = np.flatnonzero(of == i)
        best = _nearest(retriever, cache, rows[at], count + SPARE, tokens, frozen, processes, progress)
        for place, others in zip(at, best, strict=True):
            own = set(cache.captions[rows[place]])
            kept = [other for other in rows[at][others] if own.isdisjoint(cache.captions[other])][:count]
            found[place, : len(kept)] = kept
    return found


@torch.inference_mode()
def _nearest(
    retriever: Retriever,
    cache: FrameReader,
    rows: np.ndarray,
    k: int,
    tokens: FeatureCache | None,
    frozen: FrozenEmbeddings | None,
    processes: Processes,
    progress: Progress | None,
) -> np.ndarray:
    """For each row's first caption the places in ``rows`` of the k nearest videos, itself among them: (M, k)."""
    counts = in_batches(len(rows), VIDEOS_AT_ONCE, processes)  # so that no embedding is rounded otherwise than by one process
    own = rows[sum(counts[: processes.rank]) :][: counts[processes.rank]]
    captions = [cache.captions[row][0] for row in own]
    if frozen is not None and len(own):
        frames, mask = frozen.read(own)
        frames, text = adapt_frames(retriever, frames, mask), adapt_texts(retriever, frozen.text(captions))
    elif len(own):
        frames, mask = embed_frames(retriever, cache if tokens is None else tokens, own, progress)
        text = embed_texts(retriever, captions)
    else:
        frames, text = torch.zeros(0, cache.shape[1], retriever.embed_dim), torch.zeros(0, retriever.embed_dim)
        mask = torch.zeros(0, cache.shape[1], dtype=torch.bool)
    text, frames, mask = (processes.gather(part.to(retriever.device).contiguous(), counts) for part in (text, frames, mask.byte()))
    header, temperature = retriever.pooling, retriever.temperature
    k = min(k, len(rows))
    _, best = topk_over_frames(text, frames, mask.bool(), k, header=header, temperature=temperature, impl=retriever.impl)
    best = best.clone()
    processes.share(best)  # machines may differ in the last bit
    return best.cpu().numpy()


def by_row(rows: np.ndarray, found: np.ndarray) -> Nearest:
    """What ``hard_negatives`` found, by the row that it is for."""
    return {int(row): [int(other) for other in others if other >= 0] for row, others in zip(rows, found, strict=True)}
