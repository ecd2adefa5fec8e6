"""Which problems are measured, and at what sizes: on a GPU, on a CPU, and to see that every row runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from kernels_case import Case, Setup
from kernels_retrieval import ranks, similarity, text_conditioned, text_conditioned_ranks, text_conditioned_training, topk
from kernels_training import adapter, adapter_dx, info_nce, patches

BIG = {"rows": 76_800, "width": 768}  # tokens of 128 videos of 12 frames, ViT-B/32
BUILD: dict[str, Callable[..., Case]] = {
    "adapter": adapter,
    "adapter-backward": partial(adapter, backward=True),
    "adapter-dx": adapter_dx,
    "adapter-norm": partial(adapter, norm=True),
    "adapter-norm-backward": partial(adapter, norm=True, backward=True),
    "patches": patches,
    "similarity": similarity,
    "ranks": ranks,
    "ranks-both": partial(ranks, both=True),
    "topk": topk,
    "text-conditioned": text_conditioned,
    "text-conditioned-training": text_conditioned_training,
    "text-conditioned-ranks": text_conditioned_ranks,
    "info-nce": info_nce,
}
ADAPTER_OPS = ("adapter", "adapter-backward", "adapter-norm", "adapter-norm-backward")
RANK_OPS = ("ranks", "ranks-both")
ADAPTERS = [BIG | {"r": 64}, BIG | {"r": 8, "shared": 16}, BIG | {"r": 256}]
RANKS = [{"n": 1000, "m": 1000, "d": 512}, {"n": 60_000, "m": 3000, "d": 512}, {"n": 1_000_000, "m": 100_000, "d": 512, "alone": True}]
CLIPS = [{"n": 1000, "m": 1000, "f": 12, "d": 512}, {"n": 60_000, "m": 3000, "f": 12, "d": 512}]


def each(ops: tuple[str, ...], sizes: list[dict]) -> dict[str, list[dict]]:
    return dict.fromkeys(ops, sizes)


SIZES: dict[str, dict[str, list[dict]]] = {
    "cuda": {
        **each(ADAPTER_OPS, ADAPTERS),
        "adapter-dx": [BIG | {"r": r} for r in (64, 8, 256)],
        "patches": [{"frames": 1536, "side": 224, "patch": 32}],
        "similarity": CLIPS,
        **each(RANK_OPS, RANKS),
        "topk": [{"n": n, "m": 1_000_000, "d": 512, "k": k} for n in (1000, 1) for k in (10, 100, 1000)],
        "text-conditioned": CLIPS,
        "text-conditioned-training": [{"n": n, "f": 12, "d": 512} for n in (128, 1024)],
        "text-conditioned-ranks": [CLIPS[0], CLIPS[1] | {"both": False}, CLIPS[1]],
        "info-nce": [{"n": n, "d": 512} for n in (1024, 8192, 65_536)],
    },
    "cpu": {
        # tokens of 64 captions, and of two videos of 12 frames, ViT-B/16
        **each(ADAPTER_OPS, [{"rows": n, "width": width, "r": 8, "shared": 16} for n, width in ((2400, 512), (4728, 768))]),
        "patches": [{"frames": 96, "side": 224, "patch": 32}],
        "similarity": CLIPS[:1],
        **each(RANK_OPS, [RANKS[0], {"n": 5000, "m": 5000, "d": 512}]),
        "topk": [{"n": 1000, "m": 10_000, "d": 512, "k": k} for k in (10, 100)],
        "text-conditioned": CLIPS[:1],
        "text-conditioned-training": [{"n": 128, "f": 12, "d": 512}],
        "text-conditioned-ranks": [CLIPS[0], CLIPS[0] | {"both": False}],
        "info-nce": [{"n": 1024, "d": 512}],
    },
    "quick": {
        **each(ADAPTER_OPS, [{"rows": 64, "width": 64, "r": 8}, {"rows": 64, "width": 64, "r": 8, "shared": 16}]),
        "adapter-dx": [{"rows": 64, "width": 64, "r": 8}],
        "patches": [{"frames": 2, "side": 64, "patch": 16}],
        "similarity": [{"n": 24, "m": 12, "f": 4, "d": 32}],
        **each(RANK_OPS, [{"n": 24, "m": 12, "d": 32}]),
        "topk": [{"n": 5, "m": 200, "d": 32, "k": 10}],
        "text-conditioned": [{"n": 24, "m": 12, "f": 4, "d": 32}],
        "text-conditioned-training": [{"n": 16, "f": 4, "d": 32}],
        "text-conditioned-ranks": [{"n": 24, "m": 12, "f": 4, "d": 32, "both": both} for both in (True, False)],
        "info-nce": [{"n": 48, "d": 32}],
    },
}


def build(op: str, size: dict, setup: Setup) -> Case:
    torch.manual_seed(0)
    if setup.compile:
        torch.compiler.reset()
        # a backward is run again and again on one forward's tensors, which a compiled backward would otherwise overwrite
        torch._functorch.config.donated_buffer = False
    return BUILD[op](setup, **size)


def ideal_ms(case: Case, roofs: dict) -> tuple[float, str]:
    """The least time, and what bounds it."""
    times = {"bytes": case.bytes / roofs["copy_bytes_per_s"], "FLOPs": case.flops / roofs["product_flops_per_s"]}
    bound = max(times, key=lambda name: times[name])
    return 1e3 * times[bound], bound
