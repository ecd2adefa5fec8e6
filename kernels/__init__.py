"""The arithmetic of adapters, similarity, ranking and the loss, as functions from tensors to tensors.

One folder per idea. ``reference.py`` is the eager form that every other form is checked against; it runs on any device
and in any floating dtype. ``triton.py`` holds the kernel, and ``op.py`` registers it and chooses.
"""

from xmafast.kernels.bottleneck import adapter, adapter_norm
from xmafast.kernels.contrast import info_nce, info_nce_from_scores
from xmafast.kernels.frames import patches
from xmafast.kernels.pooling import (
    frame_weights,
    mean_similarity,
    pool,
    ranks_both_over_frames,
    ranks_over_frames,
    score_positives_over_frames,
    similarity,
    text_conditioned_similarity,
    topk_over_frames,
)
from xmafast.kernels.ranking import ranks, ranks_both, ranks_of_scores, score_positives, topk

__all__ = [
    "adapter",
    "adapter_norm",
    "frame_weights",
    "info_nce",
    "info_nce_from_scores",
    "mean_similarity",
    "patches",
    "pool",
    "ranks",
    "ranks_both",
    "ranks_both_over_frames",
    "ranks_of_scores",
    "ranks_over_frames",
    "score_positives",
    "score_positives_over_frames",
    "similarity",
    "text_conditioned_similarity",
    "topk",
    "topk_over_frames",
]
