"""The headers' registered ops, and their ranks and top-k, which need no matrix."""

import pytest
import torch
from test_pooling import problem
from torch.library import opcheck

from xmafast.kernels import (
    pool,
    ranks_both_over_frames,
    ranks_of_scores,
    ranks_over_frames,
    score_positives_over_frames,
    similarity,
    topk_over_frames,
)
from xmafast.kernels.pooling import op
from xmafast.kernels.ranking import topk_of_scores

HEADERS = ["mean", "text-conditioned"]
IMPLS = ["eager", "triton"]


def random_problem(n, m, f, d, seed, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    text, frames = torch.randn(n, d, generator=g) * 3, torch.randn(m, f, d, generator=g) * 3
    mask = torch.rand(m, f, generator=g) < 0.7
    mask[:, 0] = True
    return text.to(dtype), frames.to(dtype), mask


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_forms_agree_in_value_and_gradient(header, dtype):
    text, frames, mask = (t.to(dtype) if t.is_floating_point() else t for t in problem(9, 4, 6, 32))
    text = text[:, None].expand(9, 2, 32)[:, 1].requires_grad_()  # rows that are not contiguous
    frames = torch.cat([frames, frames], 2)[..., :32].requires_grad_()
    results = []
    for impl in IMPLS:
        scores = similarity(text, frames, mask, header=header, impl=impl)
        assert scores.dtype == dtype
        results.append((scores, *torch.autograd.grad(scores.float().square().sum(), (text, frames))))
    tolerance = {} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.02}
    torch.testing.assert_close(*results, **tolerance)


def test_the_ops_pass_opcheck_and_compile_in_one_graph():
    text, frames, mask = problem(dtype=torch.float32)
    flags, grad = mask.view(torch.uint8), torch.randn(5, 4)
    text.requires_grad_()
    frames.requires_grad_()
    opcheck(op._pool, (frames, flags))
    opcheck(op._score, (text, frames, flags, 5.0))
    with torch.no_grad():
        opcheck(op._pool_backward, (frames.detach(), flags, torch.randn(4, 16)))
        opcheck(op._score_backward, (text.detach(), frames.detach(), flags, 5.0, grad))
        bands = (torch.zeros(5), torch.ones(5), torch.zeros(4), torch.ones(4))
        columns = torch.arange(5, dtype=torch.int32) % 4
        opcheck(op._score_count, (text.detach(), frames.detach(), flags, 5.0, columns, columns, None, None, *bands, 10))
    for header in HEADERS:
        compiled = torch.compile(
            lambda t, v, h=header: similarity(t, v, mask, header=h, impl="triton"), fullgraph=True, backend="aot_eager"
        )
        torch.testing.assert_close(compiled(text, frames), similarity(text, frames, mask, header=header, impl="eager"))


def test_a_pooled_vector_is_a_unit_vector_of_the_frames_dtype():
    _, frames, mask = problem(dtype=torch.float32)
    for impl in IMPLS:
        torch.testing.assert_close(pool(frames, mask, impl=impl).norm(dim=-1), torch.ones(4))
        assert pool(frames.bfloat16(), mask, impl=impl).dtype == torch.bfloat16


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ranks_and_topk_equal_those_of_the_float64_matrix(header, impl, dtype):
    for seed in range(25):
        g = torch.Generator().manual_seed(seed)
        n, m, f, d = (int(torch.randint(low, high, (), generator=g)) for low, high in ((1, 40), (1, 20), (1, 13), (2, 60)))
        text, frames, mask = random_problem(n, m, f, d, seed, dtype)
        video_of = torch.randint(0, m, (n,), generator=g)
        if header == "mean":  # the ranks are those of the unit vectors in float32
            unit_text, unit_video = op._unit(text, frames, mask, impl)
            scores = unit_text.double() @ unit_video.double().T
        else:
            scores = similarity(text.double(), frames.double(), mask, header=header, impl="eager")
        expected = ranks_of_scores(scores, video_of)
        found = ranks_over_frames(text, frames, mask, video_of, header=header, impl=impl)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        t2v, v2t = ranks_both_over_frames(text, frames, mask, video_of, header=header, impl=impl)
        assert torch.equal(t2v[0], expected[0])
        described = video_of.unique()
        best = torch.stack([scores[video_of == v].amax(0) for v in described])  # of each video's texts
        expected = ranks_of_scores(best.T[described], torch.arange(len(described)))
        assert torch.equal(v2t[0][described], expected[0])
        assert torch.equal(topk_over_frames(text, frames, mask, 5, header=header, impl=impl)[1], topk_of_scores(scores, 5)[1])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("header", HEADERS)
def test_shards_of_videos_sum_to_the_whole(header, impl):
    text, frames, mask = random_problem(30, 11, 5, 24, 0)
    video_of = torch.arange(30) % 11
    shards = [(start, frames[start : start + 4], mask[start : start + 4]) for start in (0, 4, 8)]
    own = sum(score_positives_over_frames(text, f, m, video_of, header=header, offset=start) for start, f, m in shards)
    whole = ranks_over_frames(text, frames, mask, video_of, header=header, impl=impl)
    parts = [ranks_over_frames(text, f, m, video_of, header=header, offset=start, positive_scores=own, impl=impl) for start, f, m in shards]
    assert torch.equal(sum(p[0] for p in parts), whole[0])
    assert torch.equal(sum(p[1] for p in parts), whole[1])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("header", HEADERS)
def test_the_same_video_twice_is_a_tie(header, impl):
    text, frames, mask = random_problem(10, 6, 4, 33, 3)
    frames[4], mask[4] = frames[1], mask[1]
    _, ties = ranks_over_frames(text, frames, mask, torch.full((10,), 1), header=header, impl=impl)
    assert (ties == 1).all()
    index = topk_over_frames(text, frames, mask, 6, header=header, impl=impl)[1]
    assert ((index == 1).int().argmax(1) + 1 == (index == 4).int().argmax(1)).all()


@pytest.mark.parametrize("header", HEADERS)
def test_nothing_to_rank(header):
    text, frames, mask = random_problem(3, 4, 2, 8, 0)
    none = torch.zeros(0, dtype=torch.int64)
    assert ranks_over_frames(text[:0], frames, mask, none, header=header)[0].shape == (0,)
    assert topk_over_frames(text, frames[:0], mask[:0], 3, header=header)[1].shape == (3, 0)
    assert similarity(text[:0], frames, mask, header=header, impl="triton").shape == (0, 4)


def test_more_frames_than_a_kernel_holds_are_scored_by_eager():
    text, frames, mask = random_problem(3, 2, 130, 8, 0)
    torch.testing.assert_close(
        similarity(text, frames, mask, header="text-conditioned", impl="triton"),
        similarity(text, frames, mask, header="text-conditioned", impl="eager"),
    )
