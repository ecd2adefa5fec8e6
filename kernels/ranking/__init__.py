"""Who scores above whom: ranks of positives, and the k best."""

from xmafast.kernels.ranking.op import ranks, ranks_both, score_positives, topk
from xmafast.kernels.ranking.reference import ranks_of_scores, topk_of_scores

__all__ = ["ranks", "ranks_both", "ranks_of_scores", "score_positives", "topk", "topk_of_scores"]
