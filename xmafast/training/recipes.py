"""The published recipes: for each method and data set what its paper and its authors' code train with (docs/recipes.md).

A value that is not here is not published, and the run takes its own default for it. What the code alone says, and where it is not what the
paper says, stands beside the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xmafast.errors import UsageError

PAPER, DEFAULT = "paper", "default"
NAMES = (DEFAULT, PAPER)


@dataclass(frozen=True)
class Published:
    """backbone: of the published numbers; None where several were used. frames, words: the most of a video and of a caption. options:
    the method's. values: fields of ``Recipe``.
    """

    backbone: str | None
    frames: int
    words: int
    options: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


def _bert_adam(epochs: int, batch_size: int, lr: float, backbone_lr: float = 0.0) -> dict[str, Any]:
    """BertAdam with betas 0.9 and 0.98, eps 1e-6 and no bias correction; weight decay 0.2, the gradient's norm clipped to 1, warm-up over
    10 % of the steps, then the cosine of the whole training's progress: what CLIP4Clip's code has, and all that follow it.
    """
    return {"optimizer": "bert-adam", "epochs": epochs, "batch_size": batch_size, "lr": lr, "backbone_lr": backbone_lr}


def _adamw(epochs: int, batch_size: int, lr: float) -> dict[str, Any]:
    """AdamW, weight decay 0.2, warm-up over 10 % of the steps, cosine: our own default's."""
    return {"optimizer": "adamw", "epochs": epochs, "batch_size": batch_size, "lr": lr}


def _cross_modal(bottleneck: int, shared: int, epochs: int, frames: int, words: int) -> Published:
    return Published("ViT-B-32", frames, words, {"bottleneck": bottleneck, "shared": shared}, _bert_adam(epochs, 128, 1e-5))


def _mv_adapter(tied: int, epochs: int, frames: int, words: int, batch_size: int) -> Published:
    options = {"bottleneck": 64, "tied": tied, "tying": "down-in", "train_biases": True}
    return Published("ViT-B-16", frames, words, options, _bert_adam(epochs, batch_size, 5e-6, backbone_lr=1e-7))


def _full(frames: int, words: int) -> Published:
    return Published("ViT-B-32", frames, words, {"freeze": 0}, _bert_adam(5, 128, 1e-7))


PUBLISHED: dict[str, dict[str, Published]] = {
    # Jiang et al., arXiv 2211.09623v1, section 4 and appendix B; optimiser and clipping: train.py and modules/optimization.py of
    # LeapLabTHU/Cross-Modal-Adapter at 07b2203. The dropout that appendix B recommends has no stated rate, and the code's is 0.
    "cross-modal": {
        "msrvtt": _cross_modal(bottleneck=8, shared=16, epochs=5, frames=12, words=32),
        "msvd": _cross_modal(bottleneck=16, shared=16, epochs=5, frames=12, words=32),
        "vatex": _cross_modal(bottleneck=16, shared=64, epochs=5, frames=12, words=32),
        "didemo": _cross_modal(bottleneck=8, shared=8, epochs=5, frames=64, words=64),
        "activitynet": _cross_modal(bottleneck=16, shared=512, epochs=20, frames=64, words=64),
    },
    # Jin et al., CVPR 2024, arXiv 2301.07868, section 4.2; rates and groups: configs and optimizer/build.py of zhangbw17/MV-Adapter at
    # 08a61f3. Tied blocks as the published percentages say (2.39, 2.39, 2.42, 2.42, 2.40 of B/16), all at the input of Down: the released
    # files for msrvtt and didemo say "down out", and that for activitynet adds a LayerNorm. CLIP's biases are trained, at 1e-7.
    "mv-adapter": {
        "msrvtt": _mv_adapter(tied=2, epochs=5, frames=12, words=32, batch_size=128),
        "msvd": _mv_adapter(tied=2, epochs=5, frames=12, words=32, batch_size=128),
        "lsmdc": _mv_adapter(tied=3, epochs=5, frames=12, words=32, batch_size=128),
        "didemo": _mv_adapter(tied=2, epochs=15, frames=32, words=64, batch_size=64),
        "activitynet": _mv_adapter(tied=1, epochs=15, frames=32, words=64, batch_size=64),
    },
    # Full fine-tuning as CLIP4Clip's meanP: Luo et al., arXiv 2104.08860; the README and main_task_retrieval.py of ArrowLuo/CLIP4Clip at
    # 508ffa3, whose rate is 1e-4 times coef_lr 1e-3.
    "full": {
        "msrvtt": _full(frames=12, words=32),
        "msvd": _full(frames=12, words=32),
        "lsmdc": _full(frames=12, words=32),
        "didemo": _full(frames=64, words=64),
        "activitynet": _full(frames=64, words=64),
    },
    # The released code of TempMe (Shen et al., ICLR 2025), DiscoVLA (Shen et al., CVPR 2025) and DGL (Yang et al., AAAI 2024).
    "lora+tempme": {"msrvtt": Published(None, 12, 32, {"rank": 8}, _adamw(5, 128, 6e-4))},
    "lora+disco": {"msrvtt": Published(None, 12, 32, {"rank": 8}, _adamw(5, 128, 6e-4))},
    "dgl": {"msrvtt": Published(None, 12, 32, {}, _adamw(5, 128, 2e-3))},
}


def published(method: str, dataset: str) -> Published:
    """The recipe of a method, with its plugs as ``lora+tempme``, for a data set. Raises UsageError where none is published."""
    found = PUBLISHED.get(method)
    if found is None:
        raise UsageError(f"--recipe paper: no recipe of {method!r} is published here; there are those of {', '.join(PUBLISHED)}.")
    if dataset not in found:
        raise UsageError(f"--recipe paper: {method} has no published recipe for {dataset!r}; it has those for {', '.join(found)}.")
    return found[dataset]
