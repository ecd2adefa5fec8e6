"""Searching the videos of a cache by text, and a page that shows what was found, there or in a library (``xmafast.index``)."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from xmafast.cache import FrameReader
from xmafast.embeddings import embed_texts, stored_embeddings
from xmafast.errors import CacheError, UsageError
from xmafast.kernels import frame_weights, topk_over_frames
from xmafast.retriever import Retriever


@dataclass(frozen=True)
class Hit:
    """One found video: its score (cosine), the time in seconds of its best frame, and how much each frame counts (n,)."""

    rank: int
    id: str
    score: float
    best_time: float
    split: str
    captions: tuple[str, ...]
    source: Path
    weights: tuple[float, ...]
    frames: np.ndarray  # (n, H, W, 3) uint8, the real frames

    def pictures(self) -> list[bytes]:
        """A JPEG of each frame."""
        found = []
        for frame in self.frames:
            jpeg = io.BytesIO()
            Image.fromarray(frame).save(jpeg, "JPEG", quality=88)
            found.append(jpeg.getvalue())
        return found

    def record(self) -> dict[str, Any]:
        return {
            "rank": self.rank,
            "id": self.id,
            "score": self.score,
            "best_time": self.best_time,
            "split": self.split,
            "captions": list(self.captions),
            "source": str(self.source),
        }


def search(
    retriever: Retriever,
    caches: Sequence[FrameReader],
    query: str,
    *,
    topk: int = 5,
    store: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[Hit]:
    """The ``topk`` videos of the caches whose score with the query is highest, best first; ties by order in the cache.

    store: a folder that keeps the frame embeddings, so that the second search of the same model is instant.
    Raises UsageError for an empty query, CacheError where the caches hold no decoded video.
    """
    if not query.strip():
        raise UsageError('The query is empty; search for something, as: xmafast search "red heart"')
    parts = [stored_embeddings(retriever, cache, store, progress) for cache in caches]
    where = [(cache, int(row)) for cache in caches for row in cache.rows]
    if not where:
        raise CacheError(f"{caches[0].path.parent if caches else 'The cache'} holds no decoded video to search in.")
    text = embed_texts(retriever, [query]).to(retriever.device)
    frames, mask = _joined(parts, retriever.device)
    best, order = topk_over_frames(
        text, frames, mask, topk, header=retriever.pooling, temperature=retriever.temperature, impl=retriever.impl
    )
    hits = []
    for rank, (score, index) in enumerate(zip(best[0].tolist(), order[0].tolist(), strict=True), 1):
        cache, row = where[index]
        hits.append(_hit(rank, score, cache, row, text, frames[index], mask[index], retriever.temperature))
    return hits


def _joined(parts: list[tuple[Tensor, Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
    """The embeddings of several caches as one; those of fewer frames get padding."""
    most = max(mask.shape[1] for _, mask in parts)
    padded = [(pad(frames, (0, 0, 0, most - frames.shape[1])), pad(mask, (0, most - mask.shape[1]))) for frames, mask in parts]
    return torch.cat([f.to(device) for f, _ in padded]), torch.cat([m.to(device) for _, m in padded])


def _hit(rank: int, score: float, cache: FrameReader, row: int, text: Tensor, frames: Tensor, mask: Tensor, temperature: float) -> Hit:
    n = int(cache.num_frames[row])
    weights = frame_weights(text, frames[None], mask[None], temperature=temperature)[0, 0, :n]
    return Hit(
        rank=rank,
        id=cache.ids[row],
        score=score,
        best_time=float(cache.timestamps[row, int(weights.argmax())]),
        split=str(cache.attributes.get("split", cache.path.stem)),
        captions=cache.captions[row],
        source=cache.source_of(row),
        weights=tuple(weights.tolist()),
        frames=np.array(cache.frames_of(row)),
    )


class Shown(Protocol):
    """What a page shows of a hit: a ``Hit``, or an ``xmafast.index.Found``."""

    @property
    def rank(self) -> int: ...
    @property
    def id(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def best_time(self) -> float: ...
    @property
    def split(self) -> str: ...
    @property
    def captions(self) -> tuple[str, ...]: ...
    @property
    def weights(self) -> tuple[float, ...]: ...
    def pictures(self) -> list[bytes]: ...


_STYLE = """
:root { color-scheme: light dark; --line: #d0d4da; --soft: #5b6470; --mark: #0b6bcb; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) { :root { --line: #3a4048; --soft: #a3adb8; --mark: #6db3ff; --card: #1c1f24; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: 0; } .soft { color: var(--soft); }
ol { list-style: none; padding: 0; }
li { background: var(--card); border: 1px solid var(--line); border-radius: 10px; margin: 1rem 0; padding: 1rem; }
h2 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; } p { margin: .2rem 0 .6rem; overflow-wrap: anywhere; }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(4.1rem, 1fr)); gap: 6px; }
figure { margin: 0; } img { width: 100%; border-radius: 6px; display: block; border: 3px solid transparent; box-sizing: border-box; }
.best img { border-color: var(--mark); } figcaption { font-size: .75rem; color: var(--soft); text-align: center; }
.best figcaption { color: var(--mark); font-weight: 600; }
"""


def html_page(query: str, hits: Sequence[Shown], about: str) -> str:
    """One self-contained page: each hit with its captions, score and frames; the frame that counts most is marked."""
    items = "\n".join(_item(hit) for hit in hits)
    title = html.escape(query)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}: xmafast search</title><style>{_STYLE}</style></head>\n"
        f'<body><h1>{title}</h1><p class="soft">{html.escape(about)}</p>\n<ol>\n{items}\n</ol></body></html>\n'
    )


def _item(hit: Shown) -> str:
    best = max(range(len(hit.weights)), key=hit.weights.__getitem__)
    figures = []
    for i, jpeg in enumerate(hit.pictures()):
        source = base64.b64encode(jpeg).decode("ascii")
        share = f"{hit.weights[i]:.0%}"
        figures.append(
            f'<figure{" class=best" if i == best else ""}><img src="data:image/jpeg;base64,{source}" '
            f'alt="frame {i + 1}, weight {share}" loading="lazy"><figcaption>{share}</figcaption></figure>'
        )
    name = hit.captions[0] if hit.captions else hit.id
    split = f" · {html.escape(hit.split)}" if hit.split else ""
    return (
        f"<li><h2>{hit.rank}. {html.escape(name)}</h2>"
        f'<p class="soft">score {hit.score:.3f} · best at {hit.best_time:.1f} s{split} · {html.escape(hit.id)}</p>'
        f'<div class="frames">{"".join(figures)}</div></li>'
    )
