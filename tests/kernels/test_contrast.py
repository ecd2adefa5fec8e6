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
