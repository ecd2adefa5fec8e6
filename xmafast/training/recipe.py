"""How to optimise: the recipe, its checks, the optimiser and the schedule."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from xmafast.errors import UsageError
from xmafast.headers import SeqTransf
from xmafast.retriever import Retriever

WARMUP = 0.1


@dataclass(frozen=True)
class Recipe:
    """How to optimise: AdamW with float32 masters, linear warm-up over 10 % of the steps, cosine decay to zero.

    Weight decay acts on weights, not on biases. A batch holds ``batch_size`` pairs of video and caption. With ``train_frames``,
    each step sees that many frames of each video, drawn anew and kept in order; 0 is all of them, as published. patch_drop: the share of
    each frame's patches that a step leaves out. patience: after how many epochs without a better R-sum on validation the training ends,
    the schedule being that of all ``epochs``; 0 is never. micro_batch: pairs of a batch that are held with their graph at once
    (``xmafast.training.gradients``); 0 is all.
    """

    epochs: int = 5
    batch_size: int = 128
    lr: float = 1e-3
    train_frames: int = 0
    patch_drop: float = 0.0
    weight_decay: float = 0.2
    clip_norm: float = 1.0
    seed: int = 0
    patience: int = 0
    micro_batch: int = 0

    def check(self) -> None:
        """Raise UsageError for what cannot be trained with."""
        for option, low in (("epochs", 1), ("batch_size", 2), ("train_frames", 0), ("patience", 0), ("micro_batch", 0)):
            if getattr(self, option) < low:
                raise UsageError(f"--{option.replace('_', '-')} must be at least {low}, not {getattr(self, option)}.")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"--lr must be above 0, not {self.lr}.")


def recipe_for(attributes: Mapping[str, Any], retriever: Retriever, given: Mapping[str, Any]) -> Recipe:
    """The recipe that was given, filled up from a cache's attributes and then from the method. Raises UsageError."""
    named = _named_lr(attributes, retriever.method.name if retriever.method else retriever.header)
    defaults: dict[str, Any] = {
        "epochs": int(attributes.get("epochs", Recipe.epochs)),
        "batch_size": int(attributes.get("batch_size", Recipe.batch_size)),
        "lr": named or (retriever.method or SeqTransf).default_lr,
        "train_frames": int(attributes.get("train_frames", Recipe.train_frames)),
    }
    recipe = Recipe(**{**defaults, **given})
    recipe.check()
    return recipe


def _named_lr(attributes: Mapping[str, Any], method: str) -> float:
    """The rate that a data set was found to want for a method, or for the one that plugs stand beside; 0 for none."""
    rates = attributes.get("lr", 0.0)
    known = json.loads(rates) if isinstance(rates, str) else {"cross-modal": float(rates)}  # caches once named a single one
    return float(known.get(method.partition("+")[0], 0.0))


def make_optimizer(retriever: Retriever, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW over what is trained, and nothing else."""
    parameters = list(retriever.trained.values())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-8)


def schedule(step: int, steps: int) -> float:
    """The share of the peak learning rate in a 0-based step."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
