"""What the kernels are compared with: each form written as its owner writes it, same inputs, same kind of result.

Written here from descriptions of how each works. flashlib and siglip-kernel are called where they are installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

Ranks = tuple[Tensor, Tensor]  # (greater, ties)
TILE = 2**26  # logits that the two-pass loss holds at once


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def count(scores: Tensor, positives: Tensor) -> Ranks:
    """Ranks from the whole matrix: gather the positive, compare, sum."""
    own = scores.gather(1, positives[:, None])
    return (scores > own).sum(1), (scores == own).sum(1) - 1


def count_both(scores: Tensor, positives: Tensor, texts: int) -> tuple[Ranks, Ranks]:
    """Both directions of (N, M) scores, where each video has so many texts, one after the other, that compete by their best."""
    best = scores if texts == 1 else scores.view(len(scores) // texts, texts, -1).amax(1)
    return count(scores, positives), count(best.T, torch.arange(len(best), device=best.device))


def matmul_ranks(queries: Tensor, candidates: Tensor, positives: Tensor) -> Ranks:
    return count(queries @ candidates.T, positives)


def matmul_ranks_both(queries: Tensor, candidates: Tensor, positives: Tensor, texts: int) -> tuple[Ranks, Ranks]:
    return count_both(queries @ candidates.T, positives, texts)


def open_clip_ranks(queries: Tensor, candidates: Tensor, texts: int, *, both: bool, chunk: int = 4096) -> Ranks | tuple[Ranks, Ranks]:
    """The chunked exact ranks of open_clip's main branch (open_clip_train/metrics.py, 2026): float32 chunks of 4,096, ties by index.

    The release installed with this project (3.3) sorts the whole matrix instead; this is the stronger of the two. open_clip
    ranks paired sets, in both directions at once. Here it also takes several texts of a video, and, for one direction alone,
    leaves out what the other needs.
    """
    n, m, device = len(queries), len(candidates), queries.device
    rows = max(1, chunk // texts) * texts  # no video's texts are cut in two
    own = torch.empty(n, device=device)
    for start in range(0, n, rows):
        q = queries[start : start + rows].float()
        scores = q @ candidates[start // texts : (start + len(q)) // texts].float().T
        own[start : start + len(q)] = scores.gather(1, (torch.arange(len(q), device=device) // texts)[:, None]).squeeze(1)
    of_video = own.view(m, texts).amax(1)
    t2v, v2t = (torch.zeros(size, dtype=torch.int64, device=device) for size in (n, m))
    for start in range(0, n, rows):
        q = queries[start : start + rows].float()
        mine = own[start : start + len(q), None]
        video = (torch.arange(start, start + len(q), device=device) // texts)[:, None]
        for left in range(0, m, chunk):
            c = candidates[left : left + chunk].float()
            scores, column = q @ c.T, torch.arange(left, left + len(c), device=device)[None]
            t2v[start : start + len(q)] += ((scores > mine) | ((scores == mine) & (column < video))).sum(1)
            if both:
                best = scores if texts == 1 else scores.view(len(q) // texts, texts, -1).amax(1)
                target = of_video[left : left + len(c)][None]
                v2t[left : left + len(c)] += ((best > target) | ((best == target) & (video[::texts] < column))).sum(0)
    none = (torch.zeros_like(t2v), torch.zeros_like(v2t))  # a rank by index has no ties
    return ((t2v, none[0]), (v2t, none[1])) if both else (t2v, none[0])


def matmul_topk(queries: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return (queries @ candidates.T).topk(k, dim=1)


def matmul_topk_float32(queries: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Half-precision embeddings, scores kept as the product accumulates them."""
    return torch.mm(queries, candidates.T, out_dtype=torch.float32).topk(k, dim=1)


def flashlib_topk(queries: Tensor, candidates: Tensor, k: int) -> tuple[None, Tensor]:
    """flashlib's exact kNN has squared L2 alone: on unit vectors, the order of inner products."""
    from flashlib import flash_knn

    return None, flash_knn(queries, candidates, k, return_distances=False)


def clip4clip_similarity(text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """CLIP4Clip's meanP: normalise the frames, mean over the real ones, normalise, product."""
    real = mask[..., None].to(frames.dtype)
    frames = frames / frames.norm(dim=-1, keepdim=True)
    video = (frames * real).sum(1) / real.sum(1).clamp_min(1)
    return (text / text.norm(dim=-1, keepdim=True)) @ (video / video.norm(dim=-1, keepdim=True)).T


def published_similarity(text: Tensor, frames: Tensor, mask: Tensor, temperature: float = 5.0) -> Tensor:
    """The text-conditioned header as published: every video pooled for every text, an (N, M, D) tensor, then cosines."""
    weights = (torch.einsum("nd,mfd->nmf", text, frames) / temperature).masked_fill(~mask, -torch.inf).softmax(-1)
    pooled = torch.einsum("nmf,mfd->nmd", weights, frames)
    pooled = pooled / pooled.norm(dim=-1, keepdim=True)
    return torch.einsum("nd,nmd->nm", text / text.norm(dim=-1, keepdim=True), pooled)


def unfolded_patches(frames: Tensor, patch: int, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """The usual transform, then im2col: float images, normalised, unfolded."""
    images = frames.permute(0, 3, 1, 2).to(torch.promote_types(dtype, torch.float32)) / 255
    images = (images - mean[:, None, None]) / std[:, None, None]
    return F.unfold(images.to(dtype), patch, stride=patch).mT


@contextmanager
def _tf32() -> Iterator[None]:
    """float32 products in TF32, for the rival alone: it would cost our own their precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def two_pass_info_nce(queries: Tensor, candidates: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """InfoNCE as Inf-CL structures it: each direction on its own, in float32 with TF32 products. (loss, dq, dc, dscale).

    A direction needs one product for its log-sum-exps; its gradients at queries and at keys each form the logits again: five
    products, ten in all. Inf-CL does them in tiles of a kernel; here a tile is a chunk of cuBLAS, and no (N, M) tensor either.
    Float64 inputs stay float64: the truth of the benchmark.
    """
    dtype = torch.promote_types(queries.dtype, torch.float32)
    with _tf32():
        q, c, s = queries.to(dtype), candidates.to(dtype), scale.to(dtype)
        forward, dq, dc = _direction(q, c, s)
        backward, dc2, dq2 = _direction(c, q, s)
        dq, dc = dq + dq2, dc + dc2
    return (forward + backward) / 2, dq.to(queries.dtype), dc.to(candidates.dtype), (dq * q).sum() / s


def _direction(q: Tensor, k: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean cross-entropy of queries among keys, and half its gradients at both: the loss is the mean of two directions."""
    n, rows = len(q), max(1, TILE // len(q))
    lse, own = torch.empty_like(q[:, 0]), scale * (q * k).sum(1)
    dq, dk = torch.empty_like(q), torch.empty_like(k)
    share = scale / (2 * n)
    chunks = [slice(start, min(start + rows, n)) for start in range(0, n, rows)]
    for part in chunks:
        lse[part] = (scale * (q[part] @ k.T)).logsumexp(1)
    for part in chunks:
        p = (scale * (q[part] @ k.T)).sub_(lse[part, None]).exp_()
        dq[part] = share * (p @ k - k[part])
    for part in chunks:
        p = (scale * (k[part] @ q.T)).sub_(lse).exp_()
        dk[part] = share * (p @ q - q[part])
    return (lse - own).mean(), dq, dk


def siglip_step(queries: Tensor, candidates: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """siglip-kernel's sigmoid loss, forward and backward: another loss, of as many logits."""
    from siglip_kernel import fused_siglip_loss

    inputs = [t.detach().requires_grad_() for t in (queries, candidates)]
    inputs += [torch.tensor(value, device=queries.device, requires_grad=True) for value in (4.6, -10.0)]

    def step() -> tuple[Tensor, ...]:
        loss = fused_siglip_loss(*inputs)
        return loss, *torch.autograd.grad(loss, inputs)

    return step
