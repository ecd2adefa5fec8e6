"""The arithmetic of adapters, similarity, ranking and the loss, as functions from tensors to tensors.

One folder per idea. ``reference.py`` is the eager form that every other form is checked against; it runs on any device
and in any floating dtype. Where there is a kernel, ``triton.py`` holds it and ``op.py`` registers it and chooses.
"""

from xmafast.kernels.bottleneck import adapter
from xmafast.kernels.contrast import info_nce, info_nce_from_scores
from xmafast.kernels.pooling import frame_weights, mean_similarity, similarity, text_conditioned_similarity
from xmafast.kernels.ranking import ranks_of_scores, topk

__all__ = [
    "adapter",
    "frame_weights",
    "info_nce",
    "info_nce_from_scores",
    "mean_similarity",
    "ranks_of_scores",
    "similarity",
    "text_conditioned_similarity",
    "topk",
]
