import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from xmafast.kernels import info_nce, info_nce_from_scores


def unit(n, d=8, seed=0):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def test_equals_two_cross_entropies():
    q, c = unit(6), unit(6, seed=1)
    logits, target = 100 * q @ c.T, torch.arange(6)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(info_nce(q, c, 100.0), expected)


def test_other_captions_of_the_same_video_are_no_negatives():
    q, c = unit(4), unit(4, seed=1)
    groups = torch.tensor([7, 7, 8, 9])
    logits = 20 * q @ c.T
    rows = columns = 0
    for i in range(4):
        keep = [j for j in range(4) if j == i or groups[j] != groups[i]]
        rows += logits[i, keep].logsumexp(0) - logits[i, i]
        columns += logits[keep, i].logsumexp(0) - logits[i, i]
    torch.testing.assert_close(info_nce(q, c, 20.0, group_ids=(groups, groups)), (rows + columns) / 8)


def test_an_offset_finds_the_positives_of_a_shard():
    q, c = unit(2), unit(5, seed=1)
    logits = 10 * q @ c.T
    rows = F.cross_entropy(logits, torch.tensor([3, 4]))
    columns = (logits[:, 3:5].logsumexp(0) - logits[[0, 1], [3, 4]]).mean()
    torch.testing.assert_close(info_nce(q, c, 10.0, offset=3), (rows + columns) / 2)


def test_all_logits_near_minus_a_hundred():
    scores = torch.full((70, 70), -1.0) + torch.randn(70, 70, generator=torch.Generator().manual_seed(0)) * 1e-3
    expected = info_nce_from_scores(scores.double(), 100.0)
    torch.testing.assert_close(info_nce_from_scores(scores, 100.0).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("groups", [None, (torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]))])
def test_gradients_in_float64(groups):
    q, c = unit(3).requires_grad_(), unit(3, seed=1).requires_grad_()
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda *t: info_nce(*t, group_ids=groups), (q, c, scale))


def test_a_group_that_leaves_out_everything_but_the_positive():
    q, c = unit(3).requires_grad_(), unit(5, seed=1).requires_grad_()
    groups = torch.zeros(3, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)
    loss = info_nce(q, c, 100.0, group_ids=groups, offset=1)
    assert loss == 0
    assert not any(grad.any() for grad in torch.autograd.grad(loss, (q, c)))


@pytest.mark.parametrize("offset", [0, 5])
def test_an_empty_batch_has_loss_zero_and_gradients_of_zero(offset):
    q, c = unit(0).requires_grad_(), unit(5, seed=1).requires_grad_()
    scale = torch.tensor(100.0, requires_grad=True)
    loss = info_nce(q, c, scale, offset=offset)
    assert loss == 0
    assert not any(grad.any() for grad in torch.autograd.grad(loss, (q, c, scale)))


@pytest.mark.parametrize(
    ("shapes", "options", "sentence"),
    [
        (((4, 8), (4, 7)), {}, r"queries are \(N, D\) and candidates \(M, D\), not \(4, 8\) and \(4, 7\)"),
        (((8,), (4, 8)), {}, r"queries are \(N, D\)"),
        (((4, 8), (5, 8)), {"offset": 2}, r"positive is candidate i \+ 2, so 4 queries do not fit 5 candidates"),
        (((4, 8), (5, 8)), {"offset": -1}, r"candidate i \+ -1"),
        (((4, 8), (5, 8)), {"group_ids": (torch.zeros(4), torch.zeros(4))}, r"shapes \(4,\) and \(5,\), not \(4,\) and \(4,\)"),
        (((4, 8), (4, 8)), {"scale": torch.ones(2)}, r"scale is one number, not a tensor of shape \(2,\)"),
        (((4, 8), (4, 8)), {"impl": "cuda"}, "unknown impl 'cuda'"),
    ],
)
@pytest.mark.parametrize("impl", ["eager", "triton"])
def test_what_does_not_fit_is_said(shapes, options, sentence, impl):
    with pytest.raises(ValueError, match=sentence):
        info_nce(*(torch.zeros(shape) for shape in shapes), **{"scale": 1.0, "impl": impl} | options)


def test_scores_whose_positives_lie_outside():
    with pytest.raises(ValueError, match="3 queries do not fit 4 candidates"):
        info_nce_from_scores(torch.zeros(3, 4), 1.0, offset=2)
