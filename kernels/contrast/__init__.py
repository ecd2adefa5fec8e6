"""The symmetric contrastive loss."""

from xmafast.kernels.contrast.op import info_nce, log_sum_exps
from xmafast.kernels.contrast.reference import info_nce_from_scores, log_sum_exps_of_scores

__all__ = ["info_nce", "info_nce_from_scores", "log_sum_exps", "log_sum_exps_of_scores"]
