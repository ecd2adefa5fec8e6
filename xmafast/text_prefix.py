"""The frozen text blocks below the first one that is adapted, run once for each caption and kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from xmafast.precision import autocast
from xmafast.retriever import Retriever

AT_ONCE = 256  # captions
MOST_BYTES = 4 * 2**30  # a number of its own and not the machine's free memory, so that a run that is resumed does the same elsewhere


class TextPrefix:
    """Captions -> the tokens that enter the first text block of a retriever that is adapted, in float16.

    All are computed when it is made, in the order of the captions: a batch of others would round otherwise, and a run that is resumed would
    not see the same bits. Of a causal encoder no token behind a caption's end is kept: none of those before can see it. progress:
    (captions, of captions).

    Attributes: ``bytes``.
    """

    @torch.no_grad()
    def __init__(self, retriever: Retriever, captions: Sequence[str], progress: Callable[[int, int], None] | None = None) -> None:
        self.words = retriever.words
        self._place: dict[str, slice] = {}
        parts, end = [torch.zeros(0, retriever.backbone.shape.text_width, dtype=torch.float16)], 0
        captions = list(dict.fromkeys(captions))
        for start in range(0, len(captions), AT_ONCE):
            some = captions[start : start + AT_ONCE]
            tokens = retriever.backbone.tokenize(some, self.words)
            with autocast(retriever.device):
                found = retriever.backbone.encode_text_prefix(tokens.to(retriever.device), retriever.adapted.first_text)
            for caption, rows, count in zip(some, found.to(torch.float16).cpu(), _lengths(retriever, tokens), strict=True):
                parts.append(rows[:count].clone())  # without the rest of its batch behind it
                self._place[caption] = slice(end, end + count)
                end += count
            if progress:
                progress(min(start + AT_ONCE, len(captions)), len(captions))
        self._tokens = torch.cat(parts)

    @property
    def bytes(self) -> int:
        return self._tokens.numel() * self._tokens.element_size()

    def read(self, captions: Sequence[str]) -> Tensor | None:
        """Captions -> tokens (N, words, D) in float32, zero behind what is kept; None where one of them is not known."""
        if any(caption not in self._place for caption in captions):
            return None
        found = torch.zeros(len(captions), self.words, self._tokens.shape[1])
        for row, caption in zip(found, captions, strict=True):
            kept = self._tokens[self._place[caption]]
            row[: len(kept)] = kept
        return found


def text_prefix(retriever: Retriever, captions: Sequence[str], progress: Callable[[int, int], None] | None = None) -> TextPrefix | None:
    """``TextPrefix`` of all captions; None where no text block is below the first that is adapted, or it would not fit ``MOST_BYTES``."""
    if not retriever.adapted.first_text or prefix_bytes(retriever, captions) > MOST_BYTES:
        return None
    return TextPrefix(retriever, captions, progress)


def prefix_bytes(retriever: Retriever, captions: Sequence[str]) -> int:
    """What ``TextPrefix`` will take."""
    captions, count = list(dict.fromkeys(captions)), 0
    for start in range(0, len(captions), AT_ONCE):
        count += sum(_lengths(retriever, retriever.backbone.tokenize(captions[start : start + AT_ONCE], retriever.words)))
    return 2 * retriever.backbone.shape.text_width * count


def _lengths(retriever: Retriever, tokens: Tensor) -> list[int]:
    """How many tokens of each caption are kept."""
    if not retriever.backbone.shape.causal:
        return [tokens.shape[1]] * len(tokens)
    return (retriever.backbone.text_ends(tokens) + 1).tolist()
