"""The application: which address leads to what."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import time
from collections.abc import AsyncIterator, Iterable
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from xmafast import __version__
from xmafast.errors import DataError, UsageError, XmafastError
from xmafast.index import Filters, Index
from xmafast.serve.answers import Refused, answer, refusal
from xmafast.serve.engine import Engine, clip_record, seconds_since
from xmafast.serve.files import Streams
from xmafast.serve.guard import LOOPBACK, Guard
from xmafast.serve.limits import Limits
from xmafast.serve.openapi import document
from xmafast.serve.uploads import received

PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/page/card.js": ("card.js", "text/javascript; charset=utf-8"),
    "/page/viewer.js": ("viewer.js", "text/javascript; charset=utf-8"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
TOPK = 24


def create_app(
    index: Index,
    *,
    adapter: str | None = None,
    limits: Limits | None = None,
    names: Iterable[str] = LOOPBACK,
    addresses: bool = False,
) -> Starlette:
    """An ASGI application over a library: the page at ``/``, the API that it calls below ``/api``, and ``/openapi.json``.

    adapter: the one that is searched where a client names none (default: the first). names, addresses: what the server may be called, as
    ``Guard`` has it. Its models are loaded when it starts. Raises UsageError for an adapter that is not there.
    """
    api = Api(Engine(index, adapter, limits))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await asyncio.get_running_loop().run_in_executor(None, api.engine.prepare)
        keeping = asyncio.create_task(api.engine.keep_up())
        try:
            yield
        finally:
            keeping.cancel()
            api.engine.close()
            api.streams.threads.shutdown(wait=False, cancel_futures=True)

    routes = [Route(path, api.page) for path in PAGE]
    routes += [Route(path, getattr(api, method), methods=[verb]) for path, verb, method in API]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Guard, names=names, addresses=addresses)],
        exception_handlers={HTTPException: _not_there, Refused: _refused, XmafastError: _sentence},
    )
    app.router.redirect_slashes = False
    app.state.engine, app.state.streams = api.engine, api.streams
    return app


API = (
    ("/api/library", "GET", "library"),
    ("/api/adapters", "GET", "adapters"),
    ("/api/search", "GET", "search"),
    ("/api/search/file", "POST", "search_file"),
    ("/api/clips", "GET", "clips"),
    ("/api/clips/{token}", "GET", "clip"),
    ("/api/clips/{token}/similar", "GET", "similar"),
    ("/api/clips/{token}/thumbnails/{frame}", "GET", "thumbnail"),
    ("/api/clips/{token}/file", "GET", "file"),
    ("/openapi.json", "GET", "openapi"),
)


class Api:
    """The endpoints. What a client sends is read here, and nowhere else."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.limits, self.streams = engine, engine.limits, Streams(engine.limits)
        folder = resources.files("xmafast.serve") / "page"
        self.pages = {path: (folder.joinpath(name).read_bytes(), kind) for path, (name, kind) in PAGE.items()}

    async def page(self, request: Request) -> Response:
        body, kind = self.pages[request.url.path]
        etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        headers = {"etag": etag, "cache-control": "no-cache", "content-type": kind}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers)

    async def openapi(self, request: Request) -> Response:
        return answer(document(self.limits))

    async def library(self, request: Request) -> Response:
        index = self.engine.index.now()
        return answer(
            {
                "name": index.path.name.removesuffix(".xma"),
                "clips": len(index),
                "failures": len(index.failures),
                "revision": index.revision,
                "adapter": self.engine.adapter_of(None),
                "adapters": list(index.adapters),
                "upload_bytes": self.limits.upload_bytes,
                "version": __version__,
                "trouble": bool(self.engine.trouble),
            }
        )

    async def adapters(self, request: Request) -> Response:
        shown = ("backbone", "pretrained", "method", "header", "dim", "words")
        index = self.engine.index.now()
        return answer([{"name": name, **{key: about[key] for key in shown}} for name, about in index.adapters.items()])

    async def search(self, request: Request) -> Response:
        asked = Asked(request, "q", "adapter", "topk", "path", "since", "until", "start", "end")
        query = asked.text("q", self.limits.query_chars)
        if not query or not query.strip():
            raise UsageError("The query is empty; search for something, as /api/search?q=red+heart")
        begun, adapter = time.perf_counter(), self.engine.adapter_of(asked.text("adapter"))
        hits = await self.engine.by_text(query, adapter, asked.topk(self.limits), asked.filters())
        return self._found("text", adapter, hits, begun)

    async def search_file(self, request: Request) -> Response:
        asked = Asked(request, "adapter", "topk", "path", "since", "until", "start", "end")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not kind.startswith(("image/", "video/")) and kind != "application/octet-stream":
            # a page of another site can send text and forms without asking first, and cannot send these
            raise Refused(415, "Send the file itself as the body, as image/* or video/* or application/octet-stream.", connection="close")
        begun, adapter = time.perf_counter(), self.engine.adapter_of(asked.text("adapter"))
        topk, filters = asked.topk(self.limits), asked.filters()
        async with received(request, self.limits) as (path, kind):
            hits = await self.engine.by_file(path, kind, adapter, topk, filters)
        return self._found(kind, adapter, hits, begun)

    async def similar(self, request: Request) -> Response:
        asked = Asked(request, "adapter", "topk", "path", "since", "until", "start", "end")
        name = self._item(request, self.engine.index.now())
        begun, adapter = time.perf_counter(), self.engine.adapter_of(asked.text("adapter"))
        hits = await self.engine.by_clip(name, adapter, asked.topk(self.limits), asked.filters())
        return self._found("clip", adapter, hits, begun)

    def _found(self, by: str, adapter: str, hits: list[dict[str, Any]], begun: float) -> Response:
        clips = len(self.engine.index)
        return answer({"by": by, "adapter": adapter, "clips": clips, "seconds": seconds_since(begun), "hits": hits})

    async def clips(self, request: Request) -> Response:
        """The clips, those that changed last first."""
        asked = Asked(request, "offset", "limit")
        offset, limit = asked.whole("offset", 0, 0, 10**9), asked.whole("limit", TOPK, 1, self.limits.topk)
        index = self.engine.index.now()
        names = index.newest[offset : offset + limit]
        return answer({"clips": len(index), "items": [clip_record(index, name) for name in names]})

    async def clip(self, request: Request) -> Response:
        Asked(request)
        index = self.engine.index.now()
        return answer(clip_record(index, self._item(request, index)))

    async def thumbnail(self, request: Request) -> Response:
        Asked(request, "v")
        index = self.engine.index.now()
        name, number = self._item(request, index), request.path_params["frame"]
        if not (number.isascii() and number.isdigit() and len(number) < 8):
            raise Refused(404, f"There is no frame {number[:40]!r}; frames are numbered from 0.")
        picture = index.thumbnail(name, int(number))
        return Response(picture, 200, {"cache-control": _kept(request, index, name)}, "image/jpeg")

    async def file(self, request: Request) -> Response:
        Asked(request, "v")
        index = self.engine.index.now()
        return self.streams.response(index, self._item(request, index), request.headers, head=request.method == "HEAD")

    def _item(self, request: Request, index: Index) -> str:
        token = request.path_params["token"]
        try:
            return index.id_of(token)
        except DataError:
            raise Refused(404, "There is no such clip; search again, it may have been taken out.") from None


def _kept(request: Request, index: Index, name: str) -> str:
    """A picture whose address names its content never changes."""
    fixed = request.query_params.get("v") == index.item(name).hash[:12]
    return "private, max-age=31536000, immutable" if fixed else "no-cache"


class Asked:
    """The parameters of a request. Raises UsageError for one that is unknown, repeated, or no value of its kind."""

    def __init__(self, request: Request, *known: str) -> None:
        self.values = dict(request.query_params)
        for name, _ in request.query_params.multi_items():
            if name not in known:
                more = f"; known: {', '.join(known)}" if known else ""
                raise UsageError(f"There is no parameter {name[:40]!r}{more}.")
        if len(self.values) < len(request.query_params.multi_items()):
            raise UsageError("A parameter is there twice; name each once.")

    def text(self, name: str, most: int = 1000) -> str | None:
        value = self.values.get(name)
        if value is not None and len(value) > most:
            raise UsageError(f"{name} has {len(value)} characters, and may have {most}.")
        if value is not None and "\0" in value:
            raise UsageError(f"{name} holds a NUL character.")
        return value

    def whole(self, name: str, default: int, least: int, most: int) -> int:
        value = self.values.get(name)
        if value is None:
            return default
        if not (value.isascii() and value.isdigit() and len(value) < 12 and least <= int(value) <= most):
            raise UsageError(f"{name} is a whole number from {least} to {most}, not {value[:40]!r}.")
        return int(value)

    def topk(self, limits: Limits) -> int:
        return self.whole("topk", min(TOPK, limits.topk), 1, limits.topk)

    def number(self, name: str) -> float | None:
        value = self.values.get(name)
        try:
            found = None if value is None else float(value[:40])
        except ValueError:
            found = math.nan
        if found is not None and not math.isfinite(found):
            raise UsageError(f"{name} is a number of seconds, not {str(value)[:40]!r}.")
        return found

    def filters(self) -> Filters:
        numbers = {name: self.number(name) for name in ("since", "until", "start", "end")}
        return Filters(self.text("path", 500) or None, **numbers)


async def _not_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {404: "There is nothing at this address; /openapi.json lists what there is.", 405: "This address does not take such a request."}
    return refusal(_with(Refused(error.status_code, said.get(error.status_code, error.detail)), error.headers or {}))


def _with(refused: Refused, headers: Any) -> Refused:
    refused.headers |= dict(headers)
    return refused


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refusal(error)


async def _sentence(request: Request, error: Exception) -> Response:
    """UsageError: what the client asked is wrong; DataError: what it asked for is not there; others: the library or its weights."""
    status = 400 if isinstance(error, UsageError) else 404 if isinstance(error, DataError) else 503
    return refusal(Refused(status, str(error)))
