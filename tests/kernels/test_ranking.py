import torch

from xmafast.kernels import ranks_of_scores
from xmafast.kernels.ranking import topk_of_scores


def test_counts_what_scores_above_and_what_ties():
    scores = torch.tensor([[0.3, 0.9, 0.3, 0.1], [0.5, 0.5, 0.5, 0.5]])
    greater, ties = ranks_of_scores(scores, torch.tensor([0, 2]))
    assert greater.tolist() == [1, 0]
    assert ties.tolist() == [1, 3]


def test_nan_candidates_are_above_nothing_and_a_nan_positive_is_last():
    nan = float("nan")
    scores = torch.tensor([[0.3, nan, 0.9], [nan, 0.2, 0.1]])
    greater, ties = ranks_of_scores(scores, torch.tensor([0, 0]))
    assert greater.tolist() == [1, 2]
    assert ties.tolist() == [0, 0]


def test_infinite_scores_rank_as_numbers():
    scores = torch.tensor([[torch.inf, torch.inf, 0.0], [-torch.inf, 0.0, -torch.inf]])
    greater, ties = ranks_of_scores(scores, torch.tensor([0, 0]))
    assert greater.tolist() == [0, 1]
    assert ties.tolist() == [1, 1]


def test_ranks_equal_a_sort_on_random_problems():
    g = torch.Generator().manual_seed(0)
    for _ in range(50):
        n, m = (int(torch.randint(1, 30, (), generator=g)) for _ in range(2))
        scores = torch.randn(n, m, generator=g, dtype=torch.float64)
        positives = torch.randint(0, m, (n,), generator=g)
        greater, ties = ranks_of_scores(scores, positives)
        order = scores.argsort(dim=1, descending=True)
        assert torch.equal((order == positives[:, None]).int().argmax(1), greater)
        assert not ties.any()


def test_topk_gives_ties_by_lower_index_and_nan_last():
    scores, index = topk_of_scores(torch.tensor([[2.0, float("nan"), 3.0, 2.0]]), 4)
    assert index.tolist() == [[2, 0, 3, 1]]
    assert scores[0, :3].tolist() == [3.0, 2.0, 2.0]
