"""Weights of the backbone that a method trains itself: copies of its own, the backbone stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Tuned(nn.Module):
    """Trained copies of backbone tensors, named as open_clip names them, with ``/`` in place of dots.

    They get the backbone's values in ``adopt``. ``mapping`` is what stands in for the backbone's own in a forward.
    """

    def __init__(self, tensors: Mapping[str, tuple[int, ...]], names: Iterable[str]) -> None:
        super().__init__()
        self.names = list(names)
        for name in self.names:
            self.register_parameter(name.replace(".", "/"), nn.Parameter(torch.empty(tensors[name])))

    def __getitem__(self, name: str) -> Tensor:
        return self.get_parameter(name.replace(".", "/"))

    @torch.no_grad()
    def adopt(self, clip: Any) -> None:
        """Start from the values of open_clip's model."""
        own = dict(clip.named_parameters())
        for name in self.names:
            self[name].copy_(own[name])

    def mapping(self) -> dict[str, Tensor]:
        """Names of the backbone's tensors, as ``xmafast.Backbone`` has them -> the trained ones."""
        return {f"clip.{name}": self[name] for name in self.names}


def biases(tensors: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The names of all biases: what MV-Adapter's authors trained beside the adapters. SigLIP's ``logit_bias`` moves no rank."""
    return [name for name in tensors if name.endswith("bias") and name != "logit_bias"]
