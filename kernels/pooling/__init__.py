"""The similarity headers: frames pooled into one score with a text."""

from xmafast.kernels.pooling.op import (
    mean_similarity,
    pool,
    ranks_both_over_frames,
    ranks_over_frames,
    score_positives_over_frames,
    similarity,
    text_conditioned_similarity,
    topk_over_frames,
)
from xmafast.kernels.pooling.reference import HEADERS, frame_weights

__all__ = [
    "HEADERS",
    "frame_weights",
    "mean_similarity",
    "pool",
    "ranks_both_over_frames",
    "ranks_over_frames",
    "score_positives_over_frames",
    "similarity",
    "text_conditioned_similarity",
    "topk_over_frames",
]
