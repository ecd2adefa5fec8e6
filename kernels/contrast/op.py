"""Symmetric InfoNCE as a registered op: Triton on CUDA, row chunks on the CPU, gradients through a second op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xmafast.kernels.contrast import chunked, reference
from xmafast.kernels.contrast.reference import Groups, wide
from xmafast.kernels.dispatch import launch, use_triton


@torch.library.custom_op("xmafast::info_nce_forward", mutates_args=(), device_types="cuda")
def _forward(
    queries: Tensor, candidates: Tensor, scale: Tensor, query_groups: Tensor | None, candidate_groups: Tensor | None, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    from xmafast.kernels.contrast import triton

    return launch(triton.forward, queries, candidates, scale, query_groups, candidate_groups, offset)


@_forward.register_kernel("cpu")
def _(
    queries: Tensor, candidates: Tensor, scale: Tensor, query_groups: Tensor | None, candidate_groups: Tensor | None, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    return chunked.forward(queries, candidates, scale, query_groups, candidate_groups, offset)


@_forward.register_fake
def _(
    queries: Tensor, candidates: Tensor, scale: Tensor, query_groups: Tensor | None, candidate_groups: Tensor | None, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows = queries.new_empty(queries.shape[0], dtype=wide(queries.dtype))
    return rows, rows.new_empty(candidates.shape[0]), torch.empty_like(rows)


@torch.library.custom_op("xmafast::info_nce_backward", mutates_args=(), device_types="cuda")
def _backward(
    d_rows: Tensor, d_columns: Tensor, d_positives: Tensor,
    queries: Tensor, candidates: Tensor, scale: Tensor, rows: Tensor, columns: Tensor,
    query_groups: Tensor | None, candidate_groups: Tensor | None, offset: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from xmafast.kernels.contrast import triton

    return launch(
        triton.backward, d_rows, d_columns, d_positives, queries, candidates, scale, rows, columns, query_groups, candidate_groups, offset
    )


@_backward.register_kernel("cpu")
def _(
    d_rows: Tensor, d_columns: Tensor, d_positives: Tensor,
    queries: Tensor, candidates: Tensor, scale: Tensor, rows: Tensor, columns: Tensor,
    query_groups: Tensor | None, candidate_groups: Tensor | None, offset: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return chunked.backward(
        d_rows, d_columns, d_positives, queries, candidates, scale, rows, columns, query_groups, candidate_groups, offset
    )


@_backward.register_fake
def _(
    d_rows: Tensor, d_columns: Tensor, d_positives: Tensor,
    queries: Tensor, candidates: Tensor, scale: Tensor, rows: Tensor, columns: Tensor,
    query_groups: Tensor | None, candidate_groups: Tensor | None, offset: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return queries.new_empty(queries.shape), candidates.new_empty(candidates.shape), scale.new_empty(())


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    queries, candidates, scale, query_groups, candidate_groups, offset = inputs
    ctx.save_for_backward(queries, candidates, scale, output[0], output[1], query_groups, candidate_groups)
    ctx.offset = offset


def _gradients(ctx: Any, d_rows: Tensor, d_columns: Tensor, d_positives: Tensor) -> tuple[Any, ...]:
    return *_backward(d_rows, d_columns, d_positives, *ctx.saved_tensors, ctx.offset), None, None, None


_forward.register_autograd(_gradients, setup_context=_setup)


def info_nce(
    queries: Tensor,  # (N, D) unit vectors
    candidates: Tensor,  # (M, D) unit vectors
    scale: float | Tensor,  # of one element, where it is learnt
    *,
    group_ids: Groups | None = None,  # (N,), (M,)
    offset: int = 0,
    impl: str = "auto",
) -> Tensor:  # scalar: float64 for float64, else float32
    """The mean of the cross-entropies of both directions, over the N positives: query i's is candidate i + offset.

    ``scale`` multiplies the cosines (100, not its logarithm). With ``group_ids``, candidates of the query's own group other
    than its positive are left out of its denominator, and so in the other direction: captions of one video are no negatives.
    An empty batch has loss zero and gradients of zero. impl: auto, eager or triton (``xmafast.kernels.dispatch``).

    Raises ValueError for shapes that do not fit each other or the offset, and for an unknown impl.
    """
    return reference.loss(*log_sum_exps(queries, candidates, scale, group_ids=group_ids, offset=offset, impl=impl), offset)


def log_sum_exps(
    queries: Tensor,  # (N, D) unit vectors
    candidates: Tensor,  # (M, D) unit vectors
    scale: float | Tensor,
    *,
    group_ids: Groups | None = None,  # (N,), (M,)
    offset: int = 0,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:  # (N,), (M,), (N,)
    """What ``info_nce`` is made of: the log-sum-exps of the logits' rows and columns, and the positives' logits.

    All M columns, over these N queries: processes that share out the queries merge theirs. -inf where none is seen.
    """
    reference.check_embeddings(queries, candidates, scale, group_ids, offset)
    if not use_triton(impl, queries, candidates):
        return reference.log_sum_exps_of_scores(queries @ candidates.T, scale, group_ids=group_ids, offset=offset)
    dtype, device = wide(queries.dtype), queries.device
    # a number is filled in on the device: nothing waits for a copy
    factor = scale if isinstance(scale, Tensor) else torch.full((), scale, dtype=dtype, device=device)
    ids = (None, None) if group_ids is None else tuple(t.to(device, torch.int64).contiguous() for t in group_ids)
    found: tuple[Tensor, Tensor, Tensor] = _forward(
        queries, candidates.to(queries.dtype), factor.to(device, dtype).reshape(()), *ids, offset
    )
    return found
