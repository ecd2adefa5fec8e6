"""How to optimise: the recipe, its checks, the optimiser and the schedule."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from xmafast.errors import UsageError, unknown
from xmafast.headers import SeqTransf
from xmafast.retriever import Retriever
from xmafast.training.recipes import DEFAULT

WARMUP = 0.1
BERT_ADAM = "bert-adam"
OPTIMIZERS = ("adamw", BERT_ADAM)


@dataclass(frozen=True)
class Recipe:
    """How to optimise: AdamW with float32 masters, linear warm-up over 10 % of the steps, cosine decay to zero.

    Weight decay acts on weights, not on biases. A batch holds ``batch_size`` pairs of video and caption. With ``train_frames``,
    each step sees that many frames of each video, drawn anew and kept in order; 0 is all of them, as published. patch_drop: the share of
    each frame's patches that a step leaves out. patience: after how many epochs without a better R-sum on validation the training ends,
    the schedule being that of all ``epochs``; 0 is never. micro_batch: pairs of a batch that are held with their graph at once
    (``xmafast.training.gradients``); 0 is all. hard_negatives: how many of the videos that the model, as it is, takes for a video are put
    into its batch (``xmafast.training.negatives``); 0 draws batches at random, as published.

    recipe: ``default``, or ``paper`` for a published one (``xmafast.training.recipes``). optimizer: ``adamw``, or ``bert-adam``, the
    published code's (``BertAdam``), with the schedule that it is used with. backbone_lr: the peak rate of the backbone's own weights that a
    method trains beside its modules, all of which are decayed then; 0 is ``lr``, and biases without decay.
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
    recipe: str = DEFAULT
    optimizer: str = "adamw"
    backbone_lr: float = 0.0
    micro_batch: int = 0
    hard_negatives: int = 0

    def check(self) -> None:
        """Raise UsageError for what cannot be trained with."""
        least = {"epochs": 1, "batch_size": 2, "train_frames": 0, "patience": 0, "micro_batch": 0, "hard_negatives": 0}
        for option, low in least.items():
            if getattr(self, option) < low:
                raise UsageError(f"--{option.replace('_', '-')} must be at least {low}, not {getattr(self, option)}.")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"--lr must be above 0, not {self.lr}.")
        if self.optimizer not in OPTIMIZERS:
            raise unknown("optimizer", self.optimizer, OPTIMIZERS)


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
    """The recipe's optimiser over what is trained, and nothing else. ``share``: of a group's rate in the recipe's.

    Ours decays what has two dimensions or more. The published one decays whatever is not called a bias, LayerNorms and positions too.
    """
    parameters = list(retriever.trained.items())
    own = [(name, p) for name, p in parameters if recipe.backbone_lr and ".tuned." in f".{name}"]
    rest = [(name, p) for name, p in parameters if name not in dict(own)]
    decayed = {name for name, p in rest if ("bias" not in name if recipe.optimizer == BERT_ADAM else p.ndim > 1)}
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in rest if name in decayed], "weight_decay": recipe.weight_decay},
        {"params": [p for name, p in rest if name not in decayed], "weight_decay": 0.0},
    ]
    if own:
        groups.append({"params": [p for _, p in own], "weight_decay": recipe.weight_decay, "share": recipe.backbone_lr / recipe.lr})
    if recipe.optimizer == BERT_ADAM:
        return BertAdam(groups, lr=recipe.lr)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-8)


class BertAdam(torch.optim.Optimizer):
    """Adam as the published recipes use it: no bias correction, and the decay added to the update, under the same rate.

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  p <- p - lr (m / (sqrt(v) + eps) + decay p)

    The published code holds weights, m and v of linear layers in float16, where v is 0 for every gradient below 1.2e-3 and the update
    m / eps: another optimiser at the same rate. This one is float32 throughout (docs/recipes.md).
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.98), eps: float = 1e-6) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # it takes none
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                mean = state["exp_avg"].lerp_(p.grad, 1 - first)
                square = state["exp_avg_sq"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
                update = mean / square.sqrt().add_(group["eps"])
                p.sub_(update.add_(p, alpha=group["weight_decay"]), alpha=group["lr"])


def schedule(step: int, steps: int, optimizer: str = "adamw") -> float:
    """The share of the peak learning rate in a 0-based step.

    The published one begins at 0, and after its warm-up takes the cosine of the whole training's progress: it falls from 1 to 0.9755 there.
    """
    if optimizer == BERT_ADAM:
        progress = step / steps
        return progress / WARMUP if progress < WARMUP else 0.5 * (1 + math.cos(math.pi * progress))
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
