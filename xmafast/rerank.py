"""Re-ranking by hubness: scores changed by what else was asked for, or by a bank of training queries.

None of these is a metric of a model alone. Dual and inverted softmax use every query of the test at once, so one query's result depends
on the others; QB-Norm and NNN use queries from the training set. Numbers with and without them are not comparable.

s(q, c) is the cosine of query q and candidate c. In either direction the queries are that direction's: texts for text to video.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xmafast.errors import UsageError, unknown
from xmafast.kernels import pool
from xmafast.kernels.pooling.scores import TextConditioned
from xmafast.ranks import SCORES_AT_ONCE, Ranks, rank_scores
from xmafast.retriever import Retriever

WHOLE_SET = "the whole query set at once: one query's result depends on the others"
VIDEOS_AT_ONCE = 64
KEPT_BITS = 32  # of the 53 that a float64 has: scores that differ by rounding alone must tie


@dataclass(frozen=True)
class Settings:
    """temperature: of dual and inverted softmax, on cosines (0.01 is 1 on logits of 100 times the cosine). beta: QB-Norm's inverse
    temperature, on cosines; 20 is the paper's. weight, neighbours: NNN's alpha and k, which the paper tunes for each model."""

    temperature: float = 0.01
    beta: float = 20.0
    weight: float = 0.75
    neighbours: int = 16

    def check(self) -> None:
        for name, value in (("temperature", self.temperature), ("beta", self.beta), ("neighbours", self.neighbours)):
            if not 0 < value < float("inf"):
                raise UsageError(f"The {name} of re-ranking must be above 0, not {value}.")


class Cosines:
    """The float64 scores of texts (N, D) and videos (M, F, D) under a retriever's header, formed a part at a time."""

    def __init__(self, retriever: Retriever, text: Tensor, frames: Tensor, mask: Tensor) -> None:
        if text.device.type == "mps":  # which has no float64
            text, frames, mask = text.cpu(), frames.cpu(), mask.cpu()
        self.text, self.frames, self.mask, self.temperature = text.double(), frames, mask, retriever.temperature
        self.device = text.device
        self.shape = len(text), len(frames)
        self.video: Tensor | None = None
        if retriever.pooling == "mean":
            self.text, self.video = F.normalize(self.text, dim=-1), pool(frames.double(), mask, impl="eager")

    def part(self, texts: slice, videos: slice) -> Tensor:
        text = self.text[texts]
        if self.video is not None:
            return text @ self.video[videos].T
        out = []
        for frames, mask in zip(self.frames[videos].split(VIDEOS_AT_ONCE), self.mask[videos].split(VIDEOS_AT_ONCE), strict=True):
            out.append(TextConditioned(text, frames.double(), mask, self.temperature).matrix())
        return torch.cat(out, 1) if out else text.new_zeros(len(text), 0)

    def rows(self, texts: slice) -> Tensor:
        return self.part(texts, slice(0, self.shape[1]))

    def columns(self, videos: slice) -> Tensor:
        return self.part(slice(0, self.shape[0]), videos)


class Matrix:
    """The same of an (N, M) array of scores that is there."""

    def __init__(self, scores: Tensor) -> None:
        self.scores, self.shape, self.device = scores, (int(scores.shape[0]), int(scores.shape[1])), scores.device

    def rows(self, texts: slice) -> Tensor:
        return self.scores[texts]

    def columns(self, videos: slice) -> Tensor:
        return self.scores[:, videos]


Pairs = Cosines | Matrix


@dataclass(frozen=True)
class Bank:
    """Training queries against the test's candidates: ``texts`` (B, M) of training captions and the test's videos, ``videos`` (N, C) of
    the test's captions and training videos."""

    texts: Pairs
    videos: Pairs

    @property
    def size(self) -> dict[str, int]:
        return {"texts": self.texts.shape[0], "videos": self.videos.shape[1]}


def _spans(count: int, width: int) -> list[slice]:
    step = max(1, SCORES_AT_ONCE // max(1, width))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _numbers(scores: Tensor) -> Tensor:
    return scores.nan_to_num(-torch.inf, torch.inf, -torch.inf)


def _over_texts(pairs: Pairs, one: Callable[[Tensor], Tensor]) -> Tensor:
    """``one`` of the scores (m, N) of every video with all texts: (M, ...)."""
    n, m = pairs.shape
    return torch.cat([one(_numbers(pairs.columns(span)).T) for span in _spans(m, n)])


def _over_videos(pairs: Pairs, one: Callable[[Tensor], Tensor]) -> Tensor:
    """``one`` of the scores (n, M) of every text with all videos: (N, ...)."""
    n, m = pairs.shape
    return torch.cat([one(_numbers(pairs.rows(span))) for span in _spans(n, m)])


Change = Callable[[Tensor], Tensor]  # the scores (n, C) of n queries with all candidates -> those to rank by
Changes = tuple[Change, Change]  # of text to video, of video to text


def dual_softmax(pairs: Pairs, settings: Settings, bank: Bank | None = None) -> Changes:
    """s'(q, c) = s(q, c) exp(s(q, c) / T) / sum_q' exp(s(q', c) / T), q' over all queries.

    CAMoE, Cheng et al. 2021, arXiv 2109.04290.
    """
    t = settings.temperature
    of_video = _over_texts(pairs, lambda s: (s / t).logsumexp(1))
    of_text = _over_videos(pairs, lambda s: (s / t).logsumexp(1))

    def change(total: Tensor) -> Change:
        return lambda s: torch.where(s.isneginf(), s, s * (s / t - total).exp())

    return change(of_video), change(of_text)


def inverted_softmax(pairs: Pairs, settings: Settings, bank: Bank | None = None) -> Changes:
    """s'(q, c) = exp(s(q, c) / T) / sum_q' exp(s(q', c) / T), q' over all queries; ranked by its logarithm.

    Smith et al. 2017, arXiv 1702.03859.
    """
    t = settings.temperature
    of_video = _over_texts(pairs, lambda s: (s / t).logsumexp(1))
    of_text = _over_videos(pairs, lambda s: (s / t).logsumexp(1))
    return lambda s: s / t - of_video, lambda s: s / t - of_text


def qb_norm(pairs: Pairs, settings: Settings, bank: Bank | None = None) -> Changes:
    """Dynamic inverted softmax with a bank B of training queries: for a query whose best candidate is that of some b in B too,
    s'(q, c) = exp(beta s(q, c)) / sum_b exp(beta s(b, c)), ranked by its logarithm; for any other s'(q, c) = s(q, c).

    QB-Norm, Bogolin et al. 2022, arXiv 2112.12777.
    """
    bank = _needed(bank)
    beta = settings.beta

    def change(total: Tensor, best: Tensor) -> Change:
        active = torch.zeros(len(total), dtype=torch.bool, device=total.device)
        active[best] = True

        def changed(s: Tensor) -> Tensor:
            return torch.where(active[_numbers(s).argmax(1)][:, None], beta * s - total, s)

        return changed

    return (
        change(_over_texts(bank.texts, lambda s: (beta * s).logsumexp(1)), _over_videos(bank.texts, lambda s: s.argmax(1))),
        change(_over_videos(bank.videos, lambda s: (beta * s).logsumexp(1)), _over_texts(bank.videos, lambda s: s.argmax(1))),
    )


def nearest_neighbour(pairs: Pairs, settings: Settings, bank: Bank | None = None) -> Changes:
    """s'(q, c) = s(q, c) - alpha / k sum_i s(b_i, c), b_1 to b_k the queries of the bank that score highest with c.

    NNN, Chowdhury et al. 2024, arXiv 2410.24114.
    """
    bank = _needed(bank)

    def bias(s: Tensor) -> Tensor:
        return settings.weight * s.topk(min(settings.neighbours, s.shape[1]), dim=1).values.mean(1)

    of_video, of_text = _over_texts(bank.texts, bias), _over_videos(bank.videos, bias)
    return lambda s: s - of_video, lambda s: s - of_text


def _needed(bank: Bank | None) -> Bank:
    if bank is None or not (bank.size["texts"] and bank.size["videos"]):
        raise UsageError("qbnorm and nnn need a bank of training queries, from the cache of a train split; dsl and is do without.")
    return bank


METHODS: dict[str, Callable[[Pairs, Settings, Bank | None], Changes]] = {
    "dsl": dual_softmax,
    "is": inverted_softmax,
    "qbnorm": qb_norm,
    "nnn": nearest_neighbour,
}
NEED_BANK = {"qbnorm", "nnn"}
USED = {"dsl": ["temperature"], "is": ["temperature"], "qbnorm": ["beta"], "nnn": ["weight", "neighbours"]}


def check(names: list[str]) -> None:
    """Raises UsageError for a name that is no way of re-ranking."""
    for name in names:
        if name not in METHODS:
            raise unknown("re-ranking", name, METHODS)


def rerank(name: str, pairs: Pairs, video_of: Tensor, settings: Settings | None = None, bank: Bank | None = None) -> Ranks:
    """Ranks by the changed scores, under the same protocol: several captions of a video compete by their best changed score.

    Memory is O(N + M) beside a tile; the scores are formed anew for each pass over them. Raises UsageError for an unknown name, and
    where a bank is needed and missing.
    """
    check([name])
    settings = settings or Settings()
    settings.check()
    to_videos, to_texts = METHODS[name](pairs, settings, bank)
    return rank_scores(
        lambda texts: _settled(to_videos(pairs.rows(texts))),
        lambda videos: _settled(to_texts(pairs.columns(videos).T)).T,
        video_of.to(pairs.device),
        pairs.shape[1],
    )


def described(name: str, settings: Settings, bank: Bank | None = None) -> dict[str, Any]:
    """What a re-ranked number must be read with."""
    size = {} if bank is None else bank.size
    uses = f"a bank of {size.get('texts')} captions and {size.get('videos')} videos of the training set" if name in NEED_BANK else WHOLE_SET
    return {"uses": uses, **{key: getattr(settings, key) for key in USED[name]}, **({"bank": size} if name in NEED_BANK else {})}


def _settled(scores: Tensor) -> Tensor:
    """Float64 scores cut to ``KEPT_BITS`` significant bits (Veltkamp's splitting), so that equals differ by no rounding."""
    far = scores * (2.0 ** (53 - KEPT_BITS) + 1)
    cut = far - (far - scores)
    return torch.where(cut.isfinite(), cut, scores)
