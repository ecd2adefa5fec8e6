"""The headers' kernels on a GPU: no further from float64 than twice eager's own error in the same dtype."""

import pytest
import torch
from oracle import DTYPES, close_as_eager, gpu

from xmafast.kernels import ranks_both_over_frames, similarity, topk_over_frames
from xmafast.kernels.pooling import reference

pytestmark = gpu
HEADERS = ["mean", "text-conditioned"]
SHAPES = [(1, 1, 1, 512), (333, 70, 12, 512), (70, 33, 64, 768), (129, 17, 5, 384)]  # N, M, F, D


def problem(n, m, f, d, dtype):
    g = torch.Generator("cuda").manual_seed(n)
    text, frames = (torch.randn(size, generator=g, device="cuda").mul(0.4).to(dtype) for size in ((n, d), (m, f, d)))
    mask = torch.rand(m, f, generator=g, device="cuda") < 0.8
    mask[:, 0] = True
    return text.requires_grad_(), frames.requires_grad_(), mask


def naive(text, frames, mask, header):
    if header == "mean":
        return torch.nn.functional.normalize(text, dim=-1) @ reference.pool(frames, mask).T
    return reference.text_conditioned_similarity(text, frames, mask)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_and_gradients(shape, header, dtype):
    text, frames, mask = problem(*shape, dtype)
    doubles = [t.detach().double().requires_grad_() for t in (text, frames)]
    grad = torch.randn(shape[:2], device="cuda")
    results = []
    for scores, inputs in (
        (similarity(text, frames, mask, header=header, impl="triton"), (text, frames)),
        (naive(text, frames, mask, header), (text, frames)),
        (naive(*doubles, mask, header), doubles),
    ):
        results.append([scores, *torch.autograd.grad(scores, inputs, grad.to(scores.dtype))])
    for fused, eager, truth in zip(*results, strict=True):
        close_as_eager(fused, eager, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("captions", [1, 3])
def test_ranks_and_topk_equal_those_of_the_cpu(header, dtype, captions):
    text, frames, mask = (t.detach() for t in problem(100 * captions, 100, 12, 512, dtype))
    video_of = torch.arange(len(text), device="cuda") // captions
    fused = ranks_both_over_frames(text, frames, mask, video_of, header=header, impl="triton")
    eager = ranks_both_over_frames(*(t.cpu() for t in (text, frames, mask, video_of)), header=header)
    for a, b in zip((*fused[0], *fused[1]), (*eager[0], *eager[1]), strict=True):
        if header == "text-conditioned":
            assert torch.equal(a.cpu(), b)
        else:  # the unit vectors are rounded to float32 on either device, so neighbours may differ
            assert (a.cpu() != b).float().mean() < 0.01
    index = topk_over_frames(text, frames, mask, 7, header=header, impl="triton")[1].cpu()
    expected = topk_over_frames(*(t.cpu() for t in (text, frames, mask)), 7, header=header)[1]
    assert (index != expected).float().mean() < (1e-9 if header == "text-conditioned" else 0.01)


@pytest.mark.parametrize("header", HEADERS)
def test_padding_is_never_read_and_the_same_comes_twice(header):
    text, frames, mask = (t.detach() for t in problem(70, 30, 12, 512, torch.bfloat16))
    poisoned = frames.masked_fill(~mask[..., None], float("nan"))
    first = similarity(text, poisoned, mask, header=header, impl="triton")
    assert torch.equal(first, similarity(text, frames, mask, header=header, impl="triton"))
    assert first.isfinite().all()


def test_many_texts_and_videos_need_no_matrix():
    text, frames, mask = (t.detach() for t in problem(60_000, 3_000, 12, 64, torch.bfloat16))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ranks_both_over_frames(text, frames, mask, torch.arange(60_000, device="cuda") % 3_000, header="text-conditioned", impl="triton")
    assert torch.cuda.max_memory_allocated() - before < 2**30  # (N, M, F) in bfloat16 would take 4 GB
