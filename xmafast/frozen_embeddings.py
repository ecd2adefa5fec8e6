"""The frozen backbone's embeddings of a cache in memory: what methods on features train from, without the backbone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from xmafast.cache import FrameReader
from xmafast.embeddings import Progress, embed_texts, frozen_embeddings, frozen_models
from xmafast.retriever import Retriever


class FrozenEmbeddings:
    """What the backbone of a retriever makes of a cache; that of its second backbone, where it has one, stands beside it.

    The frames of the whole cache come from its embedding cache, or are computed once and kept (``frozen_embeddings``). A caption is
    embedded when it is first asked for. progress: (videos, of videos).
    """

    def __init__(self, retriever: Retriever, cache: FrameReader, progress: Progress | None = None) -> None:
        self.models = frozen_models(retriever)
        frames, mask = frozen_embeddings(retriever, cache, progress)
        self._frames, self._mask = frames.clone(), mask.clone()  # tensors of inference mode cannot enter a backward pass
        self._row = {int(row): i for i, row in enumerate(cache.rows)}
        self._text: dict[str, Tensor] = {}

    def read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Rows of the cache -> frame embeddings (B, F, D) and mask (B, F), as a cache reads frames."""
        index = torch.tensor([self._row[int(row)] for row in rows], dtype=torch.long, device=self._frames.device)
        return self._frames[index], self._mask[index]

    def text(self, captions: Sequence[str]) -> Tensor:
        """Captions -> text embeddings (N, D)."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._text]
        if new:
            found = torch.cat([embed_texts(model, new) for model in self.models], dim=-1).to(self._frames.device)
            self._text.update(zip(new, found.clone(), strict=True))
        return torch.stack([self._text[caption] for caption in captions])
