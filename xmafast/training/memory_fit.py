"""Fitting the cross-modal memory: its pairs from the training rows, its two scalars on the validation rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from xmafast.cache import FrameReader
from xmafast.evaluation import r_sum, rank_cache
from xmafast.frozen_embeddings import FrozenEmbeddings
from xmafast.kernels import pool
from xmafast.methods.memory import Memory
from xmafast.retriever import Retriever

ALPHAS, BETAS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0), (1.0, 5.0, 10.0, 20.0, 50.0, 100.0)
RULE = "the alpha and beta of highest R-sum (R@1 + R@5 + R@10, both directions) on the validation split, among {count} settings of them"


def remember(method: Memory, frozen: FrozenEmbeddings, cache: FrameReader, rows: np.ndarray) -> None:
    """Give the memory its pairs: of every row its first captions, as many as the method's ``captions`` says."""
    pairs = [(row, text) for row in rows for text in cache.captions[row][: method.captions or None]]
    if 0 < method.pairs < len(pairs):
        pairs = [pairs[i] for i in np.linspace(0, len(pairs) - 1, method.pairs).round().astype(int)]
    frames, mask = frozen.read(rows)
    videos = dict(zip((int(row) for row in rows), pool(frames, mask), strict=True))
    method.remember(frozen.text([text for _, text in pairs]), torch.stack([videos[int(row)] for row, _ in pairs]))


def fit_memory(
    retriever: Retriever,
    method: Memory,
    validation: tuple[FrozenEmbeddings, FrameReader, np.ndarray],
    tried: Callable[[dict[str, Any]], None],
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Set alpha and beta to the best on validation rows; returns ``{"alpha", "beta", "r_sum", "validation", "tried"}``.

    A memory that is not trained further may have alpha 0, the frozen model, which also wins ties: it never loses on the validation split.
    Keys that are to be trained need a memory that is on. tried: called with each setting's alpha, beta and r_sum. progress: (settings, of
    settings, what).
    """
    frozen, cache, rows = validation
    grid = [(alpha, beta) for alpha in ALPHAS for beta in BETAS]
    if not method.trainable_keys:
        grid.insert(0, (0.0, 1.0))
    best: dict[str, Any] = {"r_sum": -1.0}
    for i, (alpha, beta) in enumerate(grid, 1):
        method.alpha.fill_(alpha)
        method.beta.fill_(beta)
        metrics = rank_cache(retriever, cache, rows, captions=1, frozen=frozen).metrics()
        row = {"alpha": alpha, "beta": beta, "r_sum": r_sum(metrics)}
        tried(row)
        if progress:
            progress(i, len(grid), f"alpha {alpha:g}, beta {beta:g}")
        if row["r_sum"] > best["r_sum"]:
            best = {**row, "validation": metrics}
    method.alpha.fill_(best["alpha"])
    method.beta.fill_(best["beta"])
    return {**best, "tried": len(grid)}
