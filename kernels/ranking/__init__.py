"""Ranks and top-k, without sorting where a count is enough."""

from xmafast.kernels.ranking.reference import ranks_of_scores, topk, topk_of_scores

__all__ = ["ranks_of_scores", "topk", "topk_of_scores"]
