"""``xmafast.Index``: a library of videos and images, opened once and searched by text, by image or by clip."""

from __future__ import annotations

import copy
import fnmatch
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from xmafast.embeddings import embed_texts
from xmafast.errors import DataError, UsageError, unknown
from xmafast.index.catalog import Adapter, Item, token_of
from xmafast.index.models import Models
from xmafast.index.scoring import (
    BestFrame,
    MeanOfSome,
    Stored,
    TextConditioned,
    best_frames,
    best_pooled,
    frame_shares,
    tensor_of,
)
from xmafast.index.snapshot import Snapshot, revision
from xmafast.index.sources import Progress, read_frames
from xmafast.index.update import Updated, embed
from xmafast.kernels import pool
from xmafast.retriever import Retriever, best_device


@dataclass(frozen=True)
class Filters:
    """Which items and frames are searched.

    path: a glob over ids, as ``holiday/*.mp4``; ``*`` also stands for slashes. since, until: the file's modification time in seconds
    since 1970, both ends included. start, end: only frames from ``start`` on and before ``end``, in seconds of the video; an item
    without such a frame is not found.
    """

    path: str | None = None
    since: float | None = None
    until: float | None = None
    start: float | None = None
    end: float | None = None


EVERYTHING = Filters()


@dataclass(frozen=True)
class Found:
    """One hit: its score (cosine), and of each of its n frames the second and how much it counts (n,), zero outside a filter's span.

    id: the path below the library's root (of a cache, ``SPLIT/ID``). token: the same for addresses. best_time: the second of the frame
    that counts most, ``frame``. modified: the file's, in seconds since 1970; 0 where a cache's video is gone.
    """

    rank: int
    id: str
    token: str
    score: float
    best_time: float
    frame: int
    times: tuple[float, ...]
    weights: tuple[float, ...]
    split: str
    captions: tuple[str, ...]
    source: Path
    modified: float
    library: Index = field(repr=False, compare=False)

    def pictures(self) -> list[bytes]:
        """A small JPEG of each frame."""
        return [self.library.thumbnail(self.id, frame) for frame in range(len(self.times))]

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        plain = ("rank", "id", "token", "score", "best_time", "frame", "split", "modified")
        lists = {"captions": list(self.captions), "times": list(self.times), "weights": list(self.weights)}
        return {**{key: getattr(self, key) for key in plain}, **lists, "source": str(self.source)}


class Index:
    """A library that ``xmafast index`` wrote, as it is now; searches may run in several threads.

    path: the folder. retrievers: models that are in memory already, by their adapter's name; others are loaded when a query first needs
    them, and share the backbone. device: where queries are encoded; None takes the GPU where there is one. Scores are formed on the CPU.

    Opening reads the catalogue and maps the embeddings, it does not read them. ``refresh`` takes over what an update has changed since.
    Raises CacheError for what is no library, a damaged one, one of a newer format, and one whose first indexing has not ended.
    """

    def __init__(
        self, path: str | Path, retrievers: Mapping[str, Retriever] | None = None, *, device: torch.device | str | None = None
    ) -> None:
        self.path = Path(path)
        self._given, self._device = dict(retrievers or {}), torch.device(device) if device is not None else best_device()
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._models = Models(self.path, self._device, self._given)  # by the hash of what they are, so that they outlive an update
        self._take(Snapshot(self.path))
        if stray := sorted(set(self._given) - set(self.adapters)):
            raise unknown("adapter", stray[0], self.adapters)

    def _take(self, snapshot: Snapshot) -> None:
        self._stored: dict[str, _Embeddings] = {}
        self._row = {item.id: row for row, item in enumerate(snapshot.items)}
        self._modified = np.array([_seconds(item.mtime) for item in snapshot.items])
        counts = np.array([len(content.times) for content in snapshot.contents], dtype=np.int64)
        self._counts, most = counts, int(counts.max()) if len(counts) else 0
        self._times = np.zeros((len(counts), most), np.float32)
        self._times[np.arange(most) < counts[:, None]] = [t for content in snapshot.contents for t in content.times]
        self._tokens: dict[str, str] = {}  # filled when one is first asked for
        self._snapshot = snapshot

    def refresh(self) -> bool:
        """Read the library again where it has been updated since; whether it was."""
        if revision(self.path) == self._snapshot.meta["revision"]:
            return False
        snapshot = Snapshot(self.path)
        with self._lock:
            self._take(snapshot)
        return True

    def now(self) -> Index:
        """The library as it is at this moment, whatever ``refresh`` does to it meanwhile in another thread."""
        with self._lock:
            return copy.copy(self)

    def prepare(self, adapter: str | None = None) -> None:
        """Load an adapter's model and what its scores need, which the first query would do; None: those of every adapter."""
        for name in self.adapters if adapter is None else [adapter]:
            self.search("ready", topk=1, adapter=name)
            stored = self._embeddings(self._adapter(name))
            _ = stored.gram, stored.lengths

    # what is in it

    def __len__(self) -> int:
        return len(self._snapshot.items)

    @property
    def ids(self) -> list[str]:
        """Of every item, sorted: the order in which equal scores are found."""
        return [item.id for item in self._snapshot.items]

    @property
    def newest(self) -> list[str]:
        """The ids again, of the files that were changed last first."""
        return [self._snapshot.items[row].id for row in np.argsort(-self._modified, kind="stable").tolist()]

    @property
    def adapters(self) -> dict[str, Mapping[str, Any]]:
        """What is known of each adapter, by name: its backbone, method, header, and where it came from."""
        return {name: adapter.about for name, adapter in self._snapshot.adapters.items()}

    @property
    def revision(self) -> int:
        """How often the library was updated; another number, another content."""
        return int(self._snapshot.meta["revision"])

    @property
    def failures(self) -> dict[str, str]:
        """Files that could not be indexed, with the reason."""
        return dict(self._snapshot.failures)

    @property
    def settings(self) -> dict[str, Any]:
        """root, kind (``folder`` or ``cache``), frames, sampling and size."""
        return {key: self._snapshot.meta[key] for key in ("root", "kind", "frames", "sampling", "size")}

    def id_of(self, token: str) -> str:
        """The item that a token stands for. Raises DataError where there is none."""
        if not self._tokens:
            self._tokens.update({token_of(item.id): item.id for item in self._snapshot.items})
        if token not in self._tokens:
            raise DataError(f"{self.path} holds no item {token[:40]!r}; search again, it may have been taken out.")
        return self._tokens[token]

    def _item(self, name: str) -> tuple[int, Item]:
        row = self._row.get(name)
        if row is None:
            raise DataError(f"{self.path} holds no item {name!r}; its ids are paths below {self._snapshot.meta['root']}.")
        return row, self._snapshot.items[row]

    def item(self, name: str) -> Item:
        """What the catalogue says of an item: its file's size and time when it was indexed, a hash of its content, its captions."""
        return self._item(name)[1]

    def source(self, name: str) -> Path:
        """The file of an item, where it was when it was indexed."""
        return Path(self._snapshot.meta["root"]) / self._item(name)[1].source

    def thumbnail(self, name: str, frame: int = 0) -> bytes:
        """A small JPEG of one of an item's frames. Raises DataError for an item or a frame that is not there."""
        row, _ = self._item(name)
        if not 0 <= frame < self._counts[row]:
            raise DataError(f"{name} has {self._counts[row]} frames, and no frame {frame}.")
        return self._snapshot.thumbnail(row, frame)

    def times(self, name: str) -> tuple[float, ...]:
        """Seconds of an item's frames (n,)."""
        return self._snapshot.contents[self._item(name)[0]].times

    def embeddings(self, name: str, adapter: str | None = None) -> np.ndarray:
        """The un-normalised frame embeddings of an item, (n, D) float16."""
        row = self._item(name)[0]
        frames, _, at, _ = self._snapshot.vectors(self._adapter(adapter).model)
        return np.array(frames[at[row] : at[row] + self._counts[row]])

    def pooled(self, adapter: str | None = None) -> np.ndarray:
        """What the mean header compares a query with, (M, D) float32 unit vectors in the order of ``ids``."""
        return self._embeddings(self._adapter(adapter)).pooled(slice(0, len(self))).numpy()

    def damaged(self) -> list[str]:
        """The ids of items whose embeddings or thumbnails are not what was written; reads all of the library."""
        hashes = self._snapshot.damaged()
        return [item.id for item in self._snapshot.items if item.hash in hashes]

    def retriever(self, adapter: str | None = None) -> Retriever:
        """The model of an adapter. Raises CacheError or BackboneError where its weights cannot be had."""
        with self._loading:
            return self._models.of(self._adapter(adapter))

    def _adapter(self, name: str | None) -> Adapter:
        adapters = self._snapshot.adapters
        if name is None:
            if len(adapters) > 1:
                raise UsageError(f"{self.path} has several adapters; name one of: {', '.join(adapters)} (--adapter NAME).")
            return next(iter(adapters.values()))
        if name not in adapters:
            raise unknown("adapter", name, adapters)
        return adapters[name]

    def _embeddings(self, adapter: Adapter) -> _Embeddings:
        with self._lock:
            if adapter.model not in self._stored:
                self._stored[adapter.model] = _Embeddings(*self._snapshot.vectors(adapter.model), self._counts)
            return self._stored[adapter.model]

    # searching

    def search(self, query: str, *, topk: int = 5, adapter: str | None = None, filters: Filters = EVERYTHING) -> list[Found]:
        """The ``topk`` items that match a text best, under the adapter's own header; equal scores in the order of ``ids``.

        Raises UsageError for an empty query, an unknown adapter and filters that leave nothing.
        """
        if not query.strip():
            raise UsageError('The query is empty; search for something, as: xmafast search "red heart" lib.xma')
        chosen = self._adapter(adapter)
        vector = embed_texts(self.retriever(chosen.name), [query])[0]
        return self.search_vector(vector, topk=topk, adapter=chosen.name, filters=filters)

    def search_image(
        self, image: str | Path | Image.Image | np.ndarray, *, topk: int = 5, adapter: str | None = None, filters: Filters = EVERYTHING
    ) -> list[Found]:
        """The items with the frame that is most like an image: a file, a picture in memory, or (H, W, 3) uint8."""
        if isinstance(image, (str, Path)):
            frames = self.read(image)[:1]
        else:
            frames = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)[None]
        chosen = self._adapter(adapter)
        return self.search_vector(self._seen(frames, chosen)[0], topk=topk, adapter=chosen.name, filters=filters, header="frame")

    def search_clip(self, path: str | Path, *, topk: int = 5, adapter: str | None = None, filters: Filters = EVERYTHING) -> list[Found]:
        """The items most like a clip, a video file. Raises DataError where it cannot be decoded."""
        return self.search_frames(self.read(path), topk=topk, adapter=adapter, filters=filters)

    def search_frames(self, frames: np.ndarray, *, topk: int = 5, adapter: str | None = None, filters: Filters = EVERYTHING) -> list[Found]:
        """The items most like a clip, given as its frames (n, H, W, 3) uint8: cosine between the mean header's vectors."""
        chosen = self._adapter(adapter)
        vectors = self._seen(frames, chosen)
        mean = pool(vectors[None], torch.ones(1, len(vectors), dtype=torch.bool))[0] * vectors.norm(dim=1).mean()
        return self.search_vector(mean, topk=topk, adapter=chosen.name, filters=filters, header="mean")

    def read(self, path: str | Path, *, time_limit: float = 60.0) -> np.ndarray:
        """The frames (n, H, W, 3) of a video or an image, taken as those of the library were, in a process of its own."""
        settings = {key: self._snapshot.meta[key] for key in ("frames", "sampling", "size")}
        return read_frames(path, **settings, time_limit=time_limit)

    def _seen(self, frames: np.ndarray, adapter: Adapter) -> Tensor:
        """Frames (n, H, W, 3) uint8 -> (n, D)."""
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise UsageError(f"Frames are (n, height, width, 3) in uint8, not {frames.shape} in {frames.dtype}.")
        return torch.from_numpy(embed(self.retriever(adapter.name), np.ascontiguousarray(frames))[0]).float()

    def search_vector(
        self,
        query: Tensor | np.ndarray,
        *,
        topk: int = 5,
        adapter: str | None = None,
        filters: Filters = EVERYTHING,
        header: str | None = None,
    ) -> list[Found]:
        """The best items for a query that is embedded already, (D,).

        header: ``mean``, ``text-conditioned``, or ``frame`` (the best frame's cosine); None takes the adapter's own. Exact: scores are
        those of the stored float16 embeddings, and what float32 cannot tell apart is settled in float64.
        """
        if topk < 1:
            raise UsageError(f"topk must be at least 1, not {topk}.")
        return self.now()._search(query, topk, adapter, filters, header)

    def search_vectors(self, queries: Tensor, *, topk: int = 5, adapter: str | None = None) -> list[list[Found]]:
        """``search_vector`` of several queries (Q, D) under the adapter's own header, for servers: the embeddings are read once for all.

        The same items in the same order; scores of the text-conditioned header may differ from those of one query by float32's rounding.
        """
        if topk < 1:
            raise UsageError(f"topk must be at least 1, not {topk}.")
        index, inner = self.now(), None
        chosen = index._adapter(adapter)
        queries = queries.detach().float().cpu()
        if len(queries) > 1 and chosen.about["pooling"] == "text-conditioned" and queries.shape[1:] == (int(chosen.about["dim"]),):
            with torch.inference_mode():
                inner = index._embeddings(chosen).inner_of_all(queries)
        each = [None] * len(queries) if inner is None else list(inner)
        return [index._search(query, topk, chosen.name, EVERYTHING, None, own) for query, own in zip(queries, each, strict=True)]

    def _search(
        self,
        query: Tensor | np.ndarray,
        topk: int,
        adapter: str | None,
        filters: Filters,
        header: str | None,
        inner: Tensor | None = None,
    ) -> list[Found]:
        chosen = self._adapter(adapter)
        stored, about = self._embeddings(chosen), chosen.about
        header = header or str(about["pooling"])
        if header not in ("mean", "text-conditioned", "frame"):
            raise unknown("header", header, ("mean", "text-conditioned", "frame"))
        vector = torch.as_tensor(query).detach().float().cpu()
        if vector.shape != (int(about["dim"]),) or not bool(vector.isfinite().all()):
            raise UsageError(f"A query of {chosen.name!r} is ({about['dim']},) finite numbers, not {tuple(vector.shape)}.")
        items, real = self._chosen(filters, stored)
        temperature = float(about["temperature"])
        with torch.inference_mode():
            if header == "text-conditioned":
                best, order = best_frames(TextConditioned(vector, stored, items, real, temperature, inner), topk)
            elif header == "frame":
                best, order = best_frames(BestFrame(vector, stored, items, real), topk)
            elif filters.start is not None or filters.end is not None:
                best, order = best_frames(MeanOfSome(vector, stored, items, real), topk)
            else:
                every = len(items) == len(self)
                pooled = (lambda part: stored.pooled(part)) if every else (lambda part: stored.pooled(items[part]))
                best, order = best_pooled(normalize(vector, dim=0), len(items), pooled, topk, len(vector))
            rows, kept = items[order], real[order]
            inner = stored.inner(vector, rows)
            if header != "text-conditioned":  # what these compare are directions: the frames' lengths are made equal
                lengths = stored.lengths_of(rows)
                inner = inner / lengths * ((lengths * kept).sum(1) / kept.sum(1))[:, None]
            shares = frame_shares(inner, kept, temperature)
            peaks = inner.masked_fill(~kept, -torch.inf).argmax(1)
        found = zip(best.tolist(), rows.tolist(), shares.tolist(), peaks.tolist(), strict=True)
        return [self._hit(rank, score, row, weights, peak) for rank, (score, row, weights, peak) in enumerate(found, 1)]

    def _chosen(self, filters: Filters, stored: Stored) -> tuple[Tensor, Tensor]:
        """(m,) items that pass the filters, and which of their frames do (m, F). Raises UsageError where none does."""
        keep = np.ones(len(self), bool)
        if filters.path is not None:
            keep &= np.array([fnmatch.fnmatchcase(item.id, filters.path) for item in self._snapshot.items], dtype=bool)
        if filters.since is not None:
            keep &= self._modified >= filters.since
        if filters.until is not None:
            keep &= self._modified <= filters.until
        real = stored.real
        if filters.start is not None or filters.end is not None:
            times = torch.from_numpy(self._times)
            real = real & (times >= (filters.start or 0.0)) & (times < (torch.inf if filters.end is None else filters.end))
            keep &= real.any(1).numpy()
        items = torch.from_numpy(np.flatnonzero(keep))
        if not len(items):
            raise UsageError(f"The filters leave none of the {len(self)} items of {self.path}; widen them.")
        return items, real if len(items) == len(self) else real[items]

    def _hit(self, rank: int, score: float, row: int, weights: Sequence[float], peak: int) -> Found:
        item, content = self._snapshot.items[row], self._snapshot.contents[row]
        return Found(
            rank=rank,
            id=item.id,
            token=token_of(item.id),
            score=score,
            best_time=content.times[peak],
            frame=peak,
            times=content.times,
            weights=tuple(weights[: len(content.times)]),
            split=item.split,
            captions=item.captions,
            source=Path(self._snapshot.meta["root"]) / item.source,
            modified=_seconds(item.mtime),
            library=self,
        )

    # changing it

    @staticmethod
    def build(
        path: str | Path,
        source: str | Path | None = None,
        retriever: Retriever | None = None,
        *,
        name: str | None = None,
        origin: str | None = None,
        frames: int | None = None,
        sampling: str | None = None,
        size: int | None = None,
        decoder: str = "auto",
        workers: int | None = None,
        time_limit: float = 60.0,
        drop: Sequence[str] = (),
        rebuild: bool = False,
        check: bool = False,
        progress: Progress | None = None,
    ) -> Updated:
        """Make a library, or bring one up to date: what is unchanged is neither decoded nor encoded again.

        source: a folder of videos and images, with all that is below it, or a cache; None takes the library's own. retriever: the model of
        a new adapter called ``name`` (default: its method, or its backbone); None keeps to the adapters that are there. origin: where it
        came from, for people to read. frames, sampling, size: what is taken of each file of a folder (default: 12, ``fps``, and the
        backbone's input); they are fixed when the library is made. decoder, workers, time_limit: as ``build_cache`` has them. drop: names
        of adapters to take out. rebuild: replace an adapter of this name that has other weights. check: read all of the library first,
        and make anew what is damaged. progress: called with (items done, items to do).

        Until it ends, readers see the library as it was, and a build that is killed goes on where it stopped. In a script, call it under
        ``if __name__ == "__main__":``, since decode processes import the script anew. Raises UsageError, DataError and CacheError as
        ``xmafast.index.update.update`` does.
        """
        from xmafast.index.building import build

        return build(
            Path(path), None if source is None else Path(source), retriever, name=name, origin=origin, frames=frames, sampling=sampling,
            size=size, decoder=decoder, workers=workers, time_limit=time_limit, drop=drop, rebuild=rebuild, check=check, progress=progress,
        )  # fmt: skip

    def update(self, **options: Any) -> Updated:
        """``Index.build`` of this library from its own source, and ``refresh``."""
        summary = Index.build(self.path, **options)
        self.refresh()
        return summary


class _Embeddings(Stored):
    """One adapter's embeddings in the order of the items."""

    RESIDENT = 2**27  # numbers of pooled vectors that are kept in float32

    def __init__(self, frames: np.ndarray, pooled: np.ndarray, frames_at: np.ndarray, pooled_at: np.ndarray, counts: np.ndarray) -> None:
        super().__init__(frames, frames_at, counts)
        self._pooled, self._pooled_at = tensor_of(pooled), torch.from_numpy(pooled_at.astype(np.int64))
        self._kept: Tensor | None = None

    def pooled(self, items: slice | Tensor) -> Tensor:
        """(m, D) float32 unit vectors."""
        if self._kept is None and len(self._pooled_at) * self._pooled.shape[1] <= self.RESIDENT:
            self._kept = self._unit(slice(None))
        return self._unit(items) if self._kept is None else self._kept[items]

    def _unit(self, items: slice | Tensor) -> Tensor:
        return normalize(self._pooled[self._pooled_at[items]].float(), dim=-1)

    def lengths_of(self, items: Tensor) -> Tensor:
        """(m, F) norms of frames, not zero."""
        lengths: Tensor = torch.linalg.vector_norm(self.gathered(items), dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        return lengths


def _seconds(nanoseconds: int) -> float:
    """As ``os.stat_result.st_mtime`` has it, to the bit."""
    return nanoseconds // 10**9 + 1e-9 * (nanoseconds % 10**9)
