"""How good a model is on the validation rows, of one data set or of several."""

from __future__ import annotations

import numpy as np

from xmafast.cache import FeatureCache
from xmafast.cache.joined import JoinedFrames
from xmafast.distributed import ALONE, Processes
from xmafast.evaluation import rank_cache
from xmafast.frozen_embeddings import FrozenEmbeddings
from xmafast.retriever import Retriever
from xmafast.training.split import Split, datasets_of

Metrics = dict[str, dict[str, float]]


def validate(
    retriever: Retriever,
    split: Split,
    frozen: FrozenEmbeddings | None = None,
    tokens: FeatureCache | None = None,
    processes: Processes = ALONE,
) -> dict[str, Metrics]:
    """The metrics of each data set, over its own validation videos. frozen: the validation cache's, for what acts on embeddings alone.

    tokens: of the validation cache's frames, to embed in their place. processes: those that share out the videos.
    """
    cache, rows = split.val_cache, split.val_rows
    of = cache.part_of(rows) if isinstance(cache, JoinedFrames) else np.zeros(len(rows), dtype=np.int64)
    found = {}
    for i, name in enumerate(datasets_of(cache)):
        if retriever.datasets:
            retriever.dataset = name
        own = rows[of == i]
        found[name] = rank_cache(retriever, cache, own, captions=1, frozen=frozen, tokens=tokens, processes=processes).metrics()
    return found


def mean_of(each: dict[str, Metrics]) -> Metrics:
    """The mean of several data sets' metrics, in which each weighs the same."""
    several = list(each.values())
    return {side: {key: float(np.mean([one[side][key] for one in several])) for key in several[0][side]} for side in several[0]}
