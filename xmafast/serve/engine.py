"""Searches of a server: in threads, each question once, with what was asked lately at hand."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from xmafast.embeddings import embed_texts
from xmafast.errors import DataError, UsageError, XmafastError, unknown
from xmafast.files import IMAGES
from xmafast.index import Filters, Found, Index
from xmafast.index.catalog import token_of
from xmafast.kernels import pool
from xmafast.serve.answers import Refused, unavailable
from xmafast.serve.limits import Limits

T = TypeVar("T")
Begin = Callable[[Hashable, Index], "asyncio.Future[list[dict[str, Any]]]"]
TOGETHER = 8  # texts that are searched together
LOOK = 2.0  # seconds between two looks at whether the library has been updated


class Recent(Generic[T]):
    """The values that were used last, for several threads."""

    def __init__(self, count: int) -> None:
        self.count, self._lock = count, threading.Lock()
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable) -> T | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: Hashable, value: T) -> T:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self.count:
                self._values.popitem(last=False)
        return value


@dataclass(eq=False)
class _Text:
    """A text that waits for its turn, and its answer to come."""

    key: Hashable
    index: Index
    query: str
    adapter: str
    topk: int
    answer: Future[list[dict[str, Any]]] = field(default_factory=Future)

    def goes_with(self, other: _Text) -> bool:
        return (self.index.revision, self.adapter, self.topk) == (other.index.revision, other.adapter, other.topk)


class Engine:
    """One library and its models. adapter: which one is asked where a client names none.

    A search takes one core, and several run at a time: on two cores this answers twice as many as two threads a search would, and where
    the machine is busy with other work, threads that wait for each other are far slower than one.
    """

    def __init__(self, index: Index, adapter: str | None = None, limits: Limits | None = None) -> None:
        self.index, self.limits = index, limits or Limits()
        self._named = None if adapter is None else self.adapter_of(adapter)
        workers = max(1, min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))
        self._searching = ThreadPoolExecutor(workers, "search")
        self._uploading = ThreadPoolExecutor(self.limits.uploads, "upload")
        self._looking = ThreadPoolExecutor(1, "library")
        self._answers: Recent[list[dict[str, Any]]] = Recent(512)
        self._vectors: Recent[Tensor] = Recent(2048)
        self._frames: Recent[tuple[str, np.ndarray]] = Recent(16)
        self._asked: dict[Hashable, asyncio.Future[list[dict[str, Any]]]] = {}
        self._texts: deque[_Text] = deque()
        self._turn = threading.Lock()
        self._waiting = self._uploads = 0
        self.trouble = ""  # why the library as it is now cannot be read

    def prepare(self) -> None:
        """Load the model that is asked first, so that a server that cannot search does not start."""
        torch.set_num_threads(1)
        self.index.prepare(self.adapter_of(None))

    def close(self) -> None:
        for threads in (self._searching, self._uploading, self._looking):
            threads.shutdown(wait=False, cancel_futures=True)

    async def keep_up(self) -> None:
        """Prepare the other adapters, and take over what ``xmafast index`` changes, for as long as the server runs."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._looking, self._prepare_others)
        while True:
            await asyncio.sleep(LOOK)
            await loop.run_in_executor(self._looking, self.look)

    def look(self) -> None:
        try:
            if self.index.refresh():
                self._prepare_others()
            self.trouble = ""
        except (XmafastError, OSError) as error:  # what is in memory goes on being served
            self.trouble = str(error)

    def _prepare_others(self) -> None:
        torch.set_num_threads(1)
        for name in self.index.adapters:
            try:
                self.index.prepare(name)
            except XmafastError:  # said to whom asks for it
                continue

    def adapter_of(self, name: str | None) -> str:
        """The adapter that a client means. Raises UsageError for one that is not there."""
        adapters = self.index.adapters
        if name is None:  # an update may have taken out the one that the server was started with
            return self._named if self._named is not None and self._named in adapters else next(iter(adapters))
        if name not in adapters:
            raise unknown("adapter", name[:80], adapters)
        return name

    # searching

    async def by_text(self, query: str, adapter: str, topk: int, filters: Filters) -> list[dict[str, Any]]:
        query = " ".join(query.split())
        question = ("text", query, adapter, topk, filters)
        if filters == Filters():
            return await self._once(question, lambda key, index: self._in_turn(_Text(key, index, query, adapter, topk)))

        def find(index: Index) -> list[Found]:
            return index.search_vector(self._vector(index, adapter, query), topk=topk, adapter=adapter, filters=filters)

        return await self._once(question, self._in_thread(find, filters))

    def _vector(self, index: Index, adapter: str, query: str) -> Tensor:
        key = (index.revision, adapter, query)
        vector = self._vectors.get(key)
        return self._vectors.put(key, embed_texts(index.retriever(adapter), [query])[0].cpu()) if vector is None else vector

    def _in_turn(self, text: _Text) -> asyncio.Future[list[dict[str, Any]]]:
        """Texts that wait are taken together: the embeddings, which are most of the work, are then read once for all of them."""
        with self._turn:
            self._texts.append(text)
        self._searching.submit(self._drain)
        return asyncio.wrap_future(text.answer)

    def _drain(self) -> None:
        torch.set_num_threads(1)
        with self._turn:
            if not self._texts:
                return  # another thread has taken them along
            first = self._texts[0]
            mine = [text for text in self._texts if text.goes_with(first)][:TOGETHER]
            for text in mine:
                self._texts.remove(text)
        try:
            index = first.index
            vectors = torch.stack([self._vector(index, text.adapter, text.query) for text in mine])
            for text, found in zip(mine, index.search_vectors(vectors, topk=first.topk, adapter=first.adapter), strict=True):
                text.answer.set_result(self._answers.put(text.key, [hit_record(hit, index) for hit in found]))
        except BaseException as error:
            for text in mine:
                if not text.answer.done():
                    text.answer.set_exception(error)

    async def by_clip(self, name: str, adapter: str, topk: int, filters: Filters) -> list[dict[str, Any]]:
        """What is most like a clip of the library."""

        def find(index: Index) -> list[Found]:
            frames = torch.from_numpy(index.embeddings(name, adapter)).float()
            mean = pool(frames[None], torch.ones(1, len(frames), dtype=torch.bool))[0] * frames.norm(dim=1).mean()
            return index.search_vector(mean, topk=topk, adapter=adapter, filters=filters, header="mean")

        return await self._once(("clip", name, adapter, topk, filters), self._in_thread(find, filters))

    async def by_file(self, path: Path, kind: str, adapter: str, topk: int, filters: Filters) -> list[dict[str, Any]]:
        """What is most like a file that a client sent; kind: ``image`` or ``clip``, which decides how it is compared."""
        if self._uploads >= 2 * self.limits.uploads:
            raise unavailable("The server is reading as many files as it can; try again in a moment.")
        self._uploads += 1
        try:
            work = asyncio.get_running_loop().run_in_executor(self._uploading, self._by_file, path, kind, adapter, topk, filters)
            work.add_done_callback(lambda done: done.cancelled() or done.exception())  # where nobody waits for it any more
            return await asyncio.wait_for(asyncio.shield(work), 3 * self.limits.decode_seconds + 10)
        except (TimeoutError, asyncio.TimeoutError):
            raise Refused(422, "Reading this file takes too long; try a shorter one.") from None
        finally:
            self._uploads -= 1

    def _by_file(self, path: Path, kind: str, adapter: str, topk: int, filters: Filters) -> list[dict[str, Any]]:
        torch.set_num_threads(1)
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while piece := file.read(2**20):
                digest.update(piece)
        index, key = self.index.now(), digest.hexdigest()
        known = self._frames.get(key)
        if known is None:
            try:
                known = self._frames.put(key, (kind, index.read(path, time_limit=self.limits.decode_seconds)))
            except DataError as error:
                raise Refused(422, str(error).replace(str(path), "This file")) from error
        options: dict[str, Any] = {"topk": topk, "adapter": adapter, "filters": filters}
        find = (
            (lambda: index.search_image(known[1][0], **options)) if kind == "image" else (lambda: index.search_frames(known[1], **options))
        )
        return _filtered(find, filters, index)

    async def _once(self, question: tuple[Any, ...], begin: Begin) -> list[dict[str, Any]]:
        """An answer from memory, from whoever is working on the same question, or from a thread."""
        index = self.index.now()
        key = (index.revision, *question)
        if (known := self._answers.get(key)) is not None:
            return known
        if key not in self._asked:
            if self._waiting >= self.limits.searches:
                raise unavailable("The server has more searches waiting than it can answer; try again in a moment.")
            work = begin(key, index)
            self._waiting += 1
            self._asked[key] = work
            work.add_done_callback(lambda done: self._done(key, done))
        return await asyncio.shield(self._asked[key])

    def _in_thread(self, find: Callable[[Index], list[Found]], filters: Filters) -> Begin:
        return lambda key, index: asyncio.get_running_loop().run_in_executor(self._searching, self._find, key, index, find, filters)

    def _done(self, key: Hashable, work: asyncio.Future[list[dict[str, Any]]]) -> None:
        self._waiting -= 1
        self._asked.pop(key, None)
        if not work.cancelled():
            work.exception()  # whoever asked may have gone

    def _find(self, key: Hashable, index: Index, find: Callable[[Index], list[Found]], filters: Filters) -> list[dict[str, Any]]:
        torch.set_num_threads(1)
        return self._answers.put(key, _filtered(lambda: find(index), filters, index))


def _filtered(find: Callable[[], list[Found]], filters: Filters, index: Index) -> list[dict[str, Any]]:
    """The hits as JSON has them; none where the filters leave nothing, which is no error of a page."""
    try:
        found = find()
    except UsageError as error:
        if filters != Filters() and "leave none" in str(error):
            return []
        raise
    return [hit_record(hit, index) for hit in found]


def hit_record(hit: Found, index: Index) -> dict[str, Any]:
    scored = {key: getattr(hit, key) for key in ("rank", "score", "best_time", "frame")}
    return {**scored, **clip_record(index, hit.id), "weights": list(hit.weights), "thumbnail": _thumbnail(index, hit.id, hit.frame)}


def clip_record(index: Index, name: str) -> dict[str, Any]:
    """A clip without a search: what it is called, what is known of it, and where its pictures and its file are."""
    item = index.item(name)
    return {
        "id": name,
        "token": token_of(name),
        "kind": kind_of(item.source),
        "split": item.split,
        "captions": list(item.captions),
        "modified": item.mtime / 1e9,
        "times": list(index.times(name)),
        "thumbnail": _thumbnail(index, name, 0),
        "file": f"/api/clips/{token_of(name)}/file?v={item.hash[:12]}",
    }


def _thumbnail(index: Index, name: str, frame: int) -> str:
    return f"/api/clips/{token_of(name)}/thumbnails/{frame}?v={index.item(name).hash[:12]}"


def kind_of(source: str) -> str:
    return "image" if Path(source).suffix.lower() in IMAGES else "video"


def seconds_since(start: float) -> float:
    return round(time.perf_counter() - start, 6)
