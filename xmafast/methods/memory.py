"""A cross-modal memory of training pairs, without training.

K_t (N, D) holds the normalised embeddings of N training captions, K_v (N, D) those of their videos, pooled by the mean header. With t and
f normalised,

    t' = norm(t + alpha softmax(beta t K_t^T) K_v)
    f' = norm(f + alpha softmax(beta f K_v^T) K_t)

each at the length that it had, so that a header which reads lengths still can. A caption thus moves towards the videos of the training
captions that are like it, and a frame towards the captions of the training videos that are like it. alpha and beta are chosen on the
validation split (``xmafast/training/memory_fit.py``). It is our retrieval form of XMAdapter (arXiv 2404.12588), which needs class labels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.errors import UsageError
from xmafast.methods.common.on_features import FeatureMethod

ALPHA, BETA = 1.0, 10.0  # until they are chosen


class Memory(FeatureMethod):
    """Held: ``text_keys`` and ``video_keys`` (pairs, D), ``alpha`` and ``beta``. Nothing is trained, with trainable_keys both keys are.

    captions: how many captions of each training video make a pair with it, 0 all. pairs: the most pairs that are kept, evenly spaced over
    the training set, 0 all; in a run, how many there are. Before any is kept it is the frozen model. Raises UsageError below 0.
    """

    apart = "is fitted to the features of a frozen model"
    name = "memory"
    adapts = "final embeddings, by a look-up among training pairs"
    paper = "after XMAdapter, Yang et al., arXiv 2404.12588"
    default_lr = 1e-4

    text_keys: Tensor
    video_keys: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, shape: Shape, captions: int = 1, pairs: int = 0, trainable_keys: bool = False) -> None:
        super().__init__()
        for option, value in (("captions", captions), ("pairs", pairs)):
            if value < 0:
                raise UsageError(f"{option} must be at least 0 (all of them), not {value}.")
        self.captions, self.pairs, self.trainable_keys = captions, pairs, trainable_keys
        self.register_buffer("alpha", torch.tensor(ALPHA))
        self.register_buffer("beta", torch.tensor(BETA))
        self._hold("text_keys", torch.zeros(pairs, shape.embed_dim))
        self._hold("video_keys", torch.zeros(pairs, shape.embed_dim))

    def options(self) -> dict[str, Any]:
        return {"captions": self.captions, "pairs": self.pairs, "trainable_keys": self.trainable_keys}

    def remember(self, text: Tensor, video: Tensor) -> None:
        """Take the embeddings of N captions and of the video that each one describes, both (N, D), as the pairs."""
        self.pairs = len(text)
        self._hold("text_keys", F.normalize(text, dim=-1))
        self._hold("video_keys", F.normalize(video, dim=-1))

    def _hold(self, name: str, keys: Tensor) -> None:
        """Keys that are trained are a parameter, if there are any; others are a buffer. Both go to a run's file."""
        self._buffers.pop(name, None)
        self._parameters.pop(name, None)
        if self.trainable_keys and len(keys):
            self.register_parameter(name, nn.Parameter(keys.clone()))
        else:
            self.register_buffer(name, keys)

    def on_frames(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        return self._look_up(frames, self.video_keys, self.text_keys)

    def on_text(self, text: Tensor) -> Tensor:
        return self._look_up(text, self.text_keys, self.video_keys)

    def _look_up(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        if not len(keys):
            return x
        unit = F.normalize(x, dim=-1)
        found = torch.softmax(self.beta * (unit @ keys.T), dim=-1) @ values
        moved = F.normalize(unit + self.alpha * found, dim=-1) * x.norm(dim=-1, keepdim=True)
        return torch.where(self.alpha == 0, x, moved)  # alpha 0 is the frozen model to the bit, not up to a rounding
