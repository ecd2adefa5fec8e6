"""The headers' kernels under the interpreter, on the CPU: run by test_interpreted.py with TRITON_INTERPRET=1."""

import pytest
import torch

from xmafast.kernels.pooling import op, reference, triton
from xmafast.kernels.ranking.reference import count_above

RAGGED = [(1, 1, 1, 8), (33, 5, 12, 48), (70, 19, 3, 96), (65, 3, 64, 40), (20, 9, 17, 384)]  # N, M, F, D


def problem(n, m, f, d, dtype):
    g = torch.Generator().manual_seed(n + m)
    text, frames = (torch.randn(size, generator=g).mul(2).to(dtype) for size in ((n, d), (m, f, d)))
    mask = torch.rand(m, f, generator=g) < 0.7
    mask[0] = m == 1  # a video without frames
    return text, frames.masked_fill(~mask[..., None], float("nan")), mask.view(torch.uint8)


def tolerance(dtype):
    return {"rtol": 1e-4, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 5e-3}


def doubles(text, frames, mask):
    return text.double().requires_grad_(), frames.double().masked_fill(~mask.bool()[..., None], 0).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", RAGGED)
def test_pooling_forward_and_backward(shape, dtype):
    text, frames, mask = problem(*shape, dtype)
    _, exact = doubles(text, frames, mask)
    pooled = reference.pool(exact, mask)
    torch.testing.assert_close(triton.pool(frames, mask).double(), pooled, rtol=1e-4, atol=1e-5)
    grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(0))
    (expected,) = torch.autograd.grad(pooled, exact, grad.double())
    made = triton.pool_backward(frames, mask, grad)
    torch.testing.assert_close(made.double(), expected, **tolerance(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", RAGGED)
def test_text_conditioned_forward_and_backward(shape, dtype):
    text, frames, mask = problem(*shape, dtype)
    exact = doubles(text, frames, mask)
    scores = reference.text_conditioned_similarity(*exact, mask)
    gram, length = of_videos(text, frames, mask)
    torch.testing.assert_close(triton.score(text, frames, mask, gram, length, 5.0).double(), scores, rtol=1e-4, atol=1e-5)
    grad = torch.randn(scores.shape, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.grad(scores, exact, grad.double())

    def pieces(rows):
        return triton.score_backward(text[rows], frames, mask, gram, length[rows], 5.0, grad[rows])

    for made, wanted in zip(op._through_scores(text, frames, mask, pieces, 32), expected, strict=True):
        torch.testing.assert_close(made.double(), wanted, **tolerance(dtype))


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("both", [False, True])
def test_counts_equal_those_of_the_matrix(groups, both):
    text, frames, mask = problem(100, 37, 12, 64, torch.float32)
    gram, length = of_videos(text, frames, mask)
    g = torch.Generator().manual_seed(1)
    low_n, low_m = torch.rand(100, generator=g) - 0.5, torch.rand(37, generator=g) - 0.5
    bands = (low_n, low_n + 0.1, low_m, low_m + 0.1) if both else (low_n, low_n + 0.1)
    columns, sets = torch.arange(100, dtype=torch.int32) % 37, torch.arange(100, dtype=torch.int32)
    ids = (torch.arange(100, dtype=torch.int32) % 5, torch.arange(37, dtype=torch.int32) % 5) if groups else None
    made = triton.score_ranks(text, frames, mask, gram, length, 5.0, columns, ids, bands, 4000)
    scores = triton.score(text, frames, mask, gram, length, 5.0)
    padded = (*bands, None, None)[:4]
    expected = count_above(scores, columns, sets if both else None, *(ids or (None, None)), *padded, 4000)
    for counts in (0, 1, 3):
        assert torch.equal(made[counts], expected[counts])
    found = int(made[3])
    assert found > 10
    assert torch.equal(made[2][:found].sort().values, expected[2][:found])


def test_rows_that_are_a_slice_of_a_wider_tensor():
    text, frames, mask = problem(9, 4, 5, 32, torch.float32)
    gram, length = of_videos(text, frames, mask)
    wide_text, wide_frames = torch.full((9, 50), float("nan")), torch.full((4, 7, 40), float("nan"))
    wide_text[:, 3:35], wide_frames[:, 1:6, 4:36] = text, frames
    text2, frames2 = wide_text[:, 3:35], wide_frames[:, 1:6, 4:36]
    assert torch.equal(triton.score(text2, frames2, mask, gram, length, 5.0), triton.score(text, frames, mask, gram, length, 5.0))
    assert torch.equal(triton.pool(frames2, mask), triton.pool(frames, mask))


def test_nothing_to_score():
    text, frames, mask = problem(3, 2, 4, 8, torch.float32)
    gram, length = of_videos(text, frames, mask)
    assert triton.score(text[:0], frames, mask, gram, length[:0], 5.0).shape == (0, 2)
    assert triton.score(text, frames[:0], mask[:0], gram[:0], length, 5.0).shape == (3, 0)
    assert triton.pool(frames[:0], mask[:0]).shape == (0, 8)


def of_videos(text, frames, mask):
    kept = frames.float().masked_fill(~mask.bool()[..., None], 0)
    return kept @ kept.mT, text.float().norm(dim=1)


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Outputs start as NaN, so that an element that no program writes is seen."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(-7 if k.get("dtype") == torch.int64 else float("nan")))
