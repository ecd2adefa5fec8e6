"""Ranks of both directions under a data set's protocol: from embeddings, which need no matrix, and from scores that are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xmafast.errors import DataError
from xmafast.kernels import pool, ranks_both_over_frames, ranks_of_scores, topk_over_frames
from xmafast.kernels.pooling.scores import TextConditioned
from xmafast.kernels.ranking.op import rank_of_scores, topk_of
from xmafast.kernels.ranking.scores import InnerProducts, Scores
from xmafast.metrics import Intervals, Side, columns_of, intervals, metrics_of, precision_and_gain, rank_of
from xmafast.retriever import Retriever

SCORES_AT_ONCE = 2**22
SUMMED = ("R@1", "R@5", "R@10")


@dataclass(frozen=True)
class Ranks:
    """1-based ranks of the positives: of each text's video (N,), and of each captioned video's best caption (M,).

    video_of: (N,) which of the M captioned videos each text is about; None: each its own. precision, gain: (M,) average precision and
    nDCG, 0 to 1, of each video's captions among all captions; None where no video has several.
    """

    t2v: np.ndarray
    v2t: np.ndarray
    video_of: np.ndarray | None = None
    precision: np.ndarray | None = None
    gain: np.ndarray | None = None

    def metrics(self, topk: Sequence[int] = (1, 5, 10)) -> dict[str, dict[str, float]]:
        return {"t2v": metrics_of(self.t2v, topk), "v2t": metrics_of(self.v2t, topk, self.precision, self.gain)}

    @property
    def r_sum(self) -> dict[str, float]:
        """R@1 + R@5 + R@10 of each direction, and of both."""
        sides = {name: sum(side[metric] for metric in SUMMED) for name, side in self.metrics().items()}
        return {**sides, "both": sum(sides.values())}

    def intervals(self, topk: Sequence[int], samples: int, *, minus: Ranks | None = None) -> Intervals:
        """95 % intervals of every metric over videos drawn with replacement; with ``minus``, of the paired difference."""
        shown = [*dict.fromkeys([*topk, 1, 5, 10])]
        found = intervals(
            self.sides(shown), samples, minus=None if minus is None else minus.sides(shown), sums={"t2v": SUMMED, "v2t": SUMMED}
        )
        hidden = {f"R@{k}" for k in shown if k not in topk}
        return {side: {metric: ends for metric, ends in value.items() if metric not in hidden} for side, value in found.items()}

    def sides(self, topk: Sequence[int]) -> dict[str, Side]:
        own = np.arange(len(self.v2t))
        return {
            "t2v": Side(self.t2v, columns_of(self.t2v, topk), own if self.video_of is None else self.video_of),
            "v2t": Side(self.v2t, columns_of(self.v2t, topk, self.precision, self.gain), own),
        }


def r_sum(metrics: dict[str, dict[str, float]]) -> float:
    """The sum of R@K over both directions: what an epoch is chosen by."""
    return sum(value for side in metrics.values() for key, value in side.items() if key.startswith("R@"))


@torch.inference_mode()
def rank_both(retriever: Retriever, text: Tensor, frames: Tensor, mask: Tensor, video_of: Tensor) -> Ranks:
    """Ranks from embeddings: text (N, D), frames (M, F, D), mask (M, F), video_of (N,) the video of each text.

    Text to video, every text is a query. Video to text, a video's score for another video's captions, and for its own, is
    the best of them, as CLIP4Clip scores several captions a video; a video without captions is no query. Where a video has several,
    average precision and nDCG take each caption for itself.
    """
    t2v, v2t = ranks_both_over_frames(
        text, frames, mask, video_of, header=retriever.pooling, temperature=retriever.temperature, impl=retriever.impl
    )
    captioned, place = video_of.unique(return_inverse=True)
    each = None
    if len(captioned) < len(video_of):
        each = caption_counts(scores_of(retriever, text, frames, mask), video_of)
    return ranks_of(t2v, (v2t[0][captioned], v2t[1][captioned]), place, each)


def rank_matrix(similarity: np.ndarray, video_of: np.ndarray | None = None) -> Ranks:
    """Ranks of an (N, M) matrix, texts by videos. video_of: (N,) the video of each text; None: it is square, with the positives on its
    diagonal. Raises DataError for another shape."""
    if video_of is None and (similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1] or not similarity.size):
        raise DataError(
            f"The similarity matrix must be square, texts by videos, with the positives on its diagonal; it is {similarity.shape}."
        )
    scores = torch.from_numpy(np.ascontiguousarray(similarity, dtype=np.float64))
    of = torch.arange(len(scores)) if video_of is None else torch.from_numpy(np.asarray(video_of, dtype=np.int64))
    if scores.ndim != 2 or of.shape != scores.shape[:1] or (len(of) and not 0 <= int(of.min()) <= int(of.max()) < scores.shape[1]):
        raise DataError(f"{tuple(scores.shape)} scores need a video from 0 to {scores.shape[-1] - 1} for each text.")
    return rank_scores(lambda rows: scores[rows], lambda columns: scores[:, columns], of, scores.shape[1])


def rank_scores(rows: Callable[[slice], Tensor], columns: Callable[[slice], Tensor], video_of: Tensor, videos: int) -> Ranks:
    """Ranks of scores that are formed a part at a time: ``rows(texts)`` (n, M) for text to video, ``columns(videos)`` (N, m) for video
    to text, which may be other scores. NaN and ties as in ``xmafast.kernels.ranks_of_scores``."""
    texts = len(video_of)
    step = max(1, SCORES_AT_ONCE // max(1, videos))
    parts = [slice(start, min(start + step, texts)) for start in range(0, texts, step)]
    t2v = _joined([ranks_of_scores(rows(part), video_of[part]) for part in parts])
    captioned, place, sizes = video_of.unique(return_inverse=True, return_counts=True)
    several = len(captioned) < texts
    of_videos, each = [], []
    by_video = place.argsort(stable=True)  # the texts, those of one video after each other
    ends = [0, *sizes.cumsum(0).tolist()]
    step = max(1, SCORES_AT_ONCE // max(1, texts))
    for start in range(0, len(captioned), step):
        some = slice(start, min(start + step, len(captioned)))
        first, last = int(captioned[some][0]), int(captioned[some][-1]) + 1
        scores = columns(slice(first, last)).T[captioned[some] - first]  # (m, N)
        own = torch.arange(some.start, some.stop, device=scores.device)
        of_videos.append(ranks_of_scores(_best_of_sets(scores, place, len(captioned)) if several else scores[:, by_video], own))
        if several:
            for i in range(some.start, some.stop):
                mine = by_video[ends[i] : ends[i + 1]]
                each.append(ranks_of_scores(scores[i - some.start].expand(len(mine), -1), mine))
    order = by_video
    counted = None
    if several:
        greater, ties = _joined(each)
        counted = _numpy(greater), _numpy(ties), _numpy(place[order])
    return ranks_of(t2v, _joined(of_videos), place, counted)


def _best_of_sets(scores: Tensor, sets: Tensor, count: int) -> Tensor:
    """(m, N) scores -> (m, count), of each set the best that is a number; NaN where none is."""
    where = sets.expand_as(scores)
    best = scores.new_full((len(scores), count), -torch.inf)
    best.scatter_reduce_(1, where, scores.nan_to_num(-torch.inf, torch.inf, -torch.inf), "amax")
    number = torch.zeros_like(best).scatter_reduce_(1, where, (~scores.isnan()).to(best.dtype), "amax")
    return best.masked_fill(number == 0, torch.nan)


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    none = torch.zeros(0, dtype=torch.int64)
    return (torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])) if parts else (none, none)


Counts = tuple[np.ndarray, np.ndarray, np.ndarray]  # (greater, ties, query) of every caption with its own video as the query


def ranks_of(t2v: tuple[Tensor, Tensor], v2t: tuple[Tensor, Tensor], place: Tensor, each: Counts | None = None) -> Ranks:
    """From (greater, ties) of each direction; place: (N,) which of the captioned videos each text is of."""
    precision, gain = (None, None) if each is None else precision_and_gain(*each, len(place))
    of = rank_of(_numpy(t2v[0]), _numpy(t2v[1])), rank_of(_numpy(v2t[0]), _numpy(v2t[1]))
    return Ranks(*of, _numpy(place), precision, gain)


def _numpy(x: Tensor) -> np.ndarray:
    return np.asarray(x.cpu().numpy())


def scores_of(retriever: Retriever, text: Tensor, frames: Tensor, mask: Tensor) -> Scores:
    """The scores of texts (N, D) and videos (M, F, D) under the retriever's header, none of them formed."""
    text, frames = text.detach(), frames.detach()
    if retriever.pooling == "mean":
        return InnerProducts(F.normalize(text, dim=-1), pool(frames, mask, impl="eager"))
    return TextConditioned(text, frames, mask, retriever.temperature)


class ByVideo:
    """``xmafast.kernels.ranking.scores.Scores`` turned round: P videos, any of them any number of times, are the queries, and the texts
    the candidates."""

    def __init__(self, scores: Scores, videos: Tensor) -> None:
        self.scores, self.videos = scores, videos
        self.shape = len(videos), scores.shape[0]
        self.dtype, self.width, self.device = scores.dtype, scores.width, scores.device

    def tile(self, rows: slice | Tensor, columns: slice) -> Tensor:
        unique, place = self.videos[rows].unique(return_inverse=True)
        if not len(unique):
            return torch.empty((0, columns.stop - columns.start), dtype=self.dtype, device=self.device)
        if int(unique[-1] - unique[0]) == len(unique) - 1:
            part = self.scores.tile(columns, slice(int(unique[0]), int(unique[-1]) + 1))
        else:
            part = torch.cat([self.scores.tile(columns, slice(v, v + 1)) for v in unique.tolist()], 1)
        return part.T[place]

    def exact(self, n: Tensor, m: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        return self.scores.exact(m, self.videos[n], dtype)

    @property
    def errors(self) -> Tensor:
        return self.scores.candidate_errors[self.videos]

    @property
    def candidate_errors(self) -> Tensor:
        return self.scores.errors


def caption_counts(scores: Scores, video_of: Tensor) -> Counts:
    """Every caption among all captions, with its own video as the query, in O(N) memory beside a tile."""
    order = video_of.argsort(stable=True)  # the captions of one video share the columns of a tile
    videos = video_of[order]
    greater, ties = rank_of_scores(lambda _: ByVideo(scores, videos), order, None, 0, None, None, both=False)[0]
    return _numpy(greater), _numpy(ties), _numpy(videos.unique(return_inverse=True)[1])


@torch.inference_mode()
def found_by(retriever: Retriever, text: Tensor, frames: Tensor, mask: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best videos of each text (N, k), and the k best texts of each video (M, k), best first."""
    best = topk_over_frames(text, frames, mask, k, header=retriever.pooling, temperature=retriever.temperature, impl=retriever.impl)
    turned = ByVideo(scores_of(retriever, text, frames, mask), torch.arange(len(frames), device=text.device))
    return _numpy(best[1]), _numpy(topk_of(turned, k, None)[1])
