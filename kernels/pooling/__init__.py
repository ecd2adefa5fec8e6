"""Similarity headers: how a text and the frames of a video become one score."""

from xmafast.kernels.pooling.reference import HEADERS, frame_weights, mean_similarity, similarity, text_conditioned_similarity

__all__ = ["HEADERS", "frame_weights", "mean_similarity", "similarity", "text_conditioned_similarity"]
