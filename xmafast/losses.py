"""The losses that a method is trained with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from xmafast.kernels import info_nce, info_nce_from_scores, pool
from xmafast.retriever import Retriever


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
