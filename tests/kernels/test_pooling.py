import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from xmafast.kernels import frame_weights, mean_similarity, similarity, text_conditioned_similarity


def problem(n=5, m=4, f=6, d=16, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    text = torch.randn(n, d, generator=g, dtype=dtype) * 3
    frames = torch.randn(m, f, d, generator=g, dtype=dtype) * 3
    mask = torch.arange(f) < torch.tensor([6, 1, 3, 5])[:m, None]
    return text, frames, mask


def published_form(text, frames, mask, tau):
    """The (N, M, D) form of the official code."""
    a = torch.einsum("nd,mfd->nmf", text, frames).masked_fill(~mask, -torch.inf)
    pooled = torch.einsum("nmf,mfd->nmd", (a / tau).softmax(-1), frames)
    return F.cosine_similarity(text[:, None], pooled, dim=-1)


def test_the_gram_identity_equals_the_published_form():
    text, frames, mask = problem()
    expected = published_form(text, frames, mask, 5.0)
    torch.testing.assert_close(text_conditioned_similarity(text, frames, mask), expected, rtol=0, atol=1e-12)


def test_the_identity_holds_in_float32_at_the_scale_of_clip():
    text, frames, mask = problem(50, 4, 6, 512, torch.float32)
    expected = published_form(text.double(), frames.double(), mask, 5.0)
    assert (text_conditioned_similarity(text, frames, mask) - expected).abs().max() < 1e-6


def test_an_endless_temperature_is_mean_pooling():
    text, frames, mask = problem()
    mean = (frames * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    expected = F.cosine_similarity(text[:, None], mean[None], dim=-1)
    torch.testing.assert_close(text_conditioned_similarity(text, frames, mask, temperature=1e12), expected)


@pytest.mark.parametrize("impl", ["eager", "triton"])
@pytest.mark.parametrize("header", ["mean", "text-conditioned"])
def test_padding_is_never_seen(header, impl):
    text, frames, mask = problem()
    poisoned = frames.masked_fill(~mask[..., None], float("nan"))
    results = []
    for video in (frames.requires_grad_(), poisoned.requires_grad_()):
        scores = similarity(text, video, mask, header=header, impl=impl)
        results.append((scores, *torch.autograd.grad(scores.square().sum(), video)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("impl", ["eager", "triton"])
@pytest.mark.parametrize("header", ["mean", "text-conditioned"])
def test_a_video_without_frames_scores_zero(header, impl):
    text, frames, mask = problem()
    mask = mask.clone()
    mask[2] = False
    scores = similarity(text, frames, mask, header=header, impl=impl)
    assert (scores[:, 2] == 0).all()
    assert scores.isfinite().all()


def test_all_logits_far_below_zero_keep_their_weights():
    text, frames, mask = torch.full((1, 4), -50.0), torch.full((2, 3, 4), 50.0), torch.tensor([[1, 1, 0], [1, 0, 0]])
    torch.testing.assert_close(text_conditioned_similarity(text, frames, mask), torch.full((1, 2), -1.0))


def test_the_mean_header_is_clip4clips():
    text, frames, mask = problem()
    unit = F.normalize(frames, dim=-1)
    pooled = F.normalize((unit * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)
    torch.testing.assert_close(mean_similarity(text, frames, mask), F.normalize(text, dim=-1) @ pooled.T)


def test_one_frame_is_plain_cosine_under_both_headers():
    text, frames, _ = problem()
    single, mask = frames[:, :1], torch.ones(4, 1)
    torch.testing.assert_close(similarity(text, single, mask, header="mean"), similarity(text, single, mask, header="text-conditioned"))


@pytest.mark.parametrize("impl", ["eager", "triton"])
@pytest.mark.parametrize("header", ["mean", "text-conditioned"])
def test_gradients_in_float64(header, impl):
    text, frames, mask = problem()
    mask[3] = False
    inputs = (text.requires_grad_(), frames.requires_grad_())
    assert gradcheck(lambda t, v: similarity(t, v, mask, header=header, impl=impl), inputs)


def test_frame_weights_sum_to_one_over_real_frames():
    text, frames, mask = problem()
    w = frame_weights(text, frames, mask)
    torch.testing.assert_close(w.sum(-1), torch.ones(5, 4, dtype=w.dtype))
    assert (w.masked_select(~mask.expand_as(w)) == 0).all()


def test_an_unknown_header_is_refused():
    with pytest.raises(ValueError, match="text-conditioned"):
        similarity(*problem(), header="max")
