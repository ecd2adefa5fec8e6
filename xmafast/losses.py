"""The losses that a method is trained with."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from xmafast.kernels import info_nce, info_nce_from_scores, pool
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
