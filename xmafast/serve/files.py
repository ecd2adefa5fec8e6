"""Files of a library by the token of an item: opened so that nothing but what was indexed can be read, and sent in ranges."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import stat
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from xmafast.index import Index
from xmafast.serve.answers import Refused, unavailable
from xmafast.serve.limits import Limits

PIECE = 2**18
TYPES = {
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".bmp": "image/bmp", ".gif": "image/gif",
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime", ".webm": "video/webm", ".ogv": "video/ogg",
    ".mkv": "video/x-matroska", ".avi": "video/x-msvideo", ".mpg": "video/mpeg", ".mpeg": "video/mpeg", ".3gp": "video/3gpp",
    ".3g2": "video/3gpp2", ".flv": "video/x-flv", ".wmv": "video/x-ms-wmv", ".mts": "video/mp2t", ".m2ts": "video/mp2t",
}  # fmt: skip


@dataclass
class Opened:
    """An open file, what it is sent as, and a name of its content."""

    descriptor: int
    size: int
    type: str
    etag: str


def open_item(index: Index, name: str) -> Opened:
    """Open the file of an item. Raises Refused where it is gone, is another file than the one that was indexed, or leaves the library.

    A path never comes from a client. Every folder on the way is opened below the one before it, and no link is followed, so that
    nothing can be exchanged between the check and the reading; links are resolved before, and have to stay in the library's folder.
    """
    item, settings = index.item(name), index.settings
    gone = Refused(
        410, f"{name} has changed or gone since it was indexed; bring the library up to date with: xmafast index {index.path.name}"
    )
    real = Path(os.path.realpath(index.source(name)))
    root = Path(os.path.realpath(settings["root"]))
    if settings["kind"] == "folder" and not real.is_relative_to(root):
        raise gone
    try:
        descriptor = _open_below(root, real.relative_to(root)) if real.is_relative_to(root) else _open_below(Path(real.anchor), real)
    except (OSError, ValueError):
        raise gone from None
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or (about.st_size, about.st_mtime_ns) != (item.size, item.mtime):
        os.close(descriptor)
        raise gone
    kind = TYPES.get(Path(item.source).suffix.lower(), "application/octet-stream")
    return Opened(descriptor, about.st_size, kind, f'"{item.hash[:16]}-{item.mtime:x}"')


def _open_below(root: Path, path: Path) -> int:
    """Open ``path`` below ``root`` without following a link."""
    plain = (
        os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    if os.open not in os.supports_dir_fd:
        return os.open(root / path, plain)
    parts = [part for part in path.parts if part != path.anchor]
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = below
        return os.open(parts[-1], plain, dir_fd=folder) if parts else os.open(root, plain)
    finally:
        os.close(folder)


def span_of(value: str | None, size: int) -> tuple[int, int] | None:
    """The bytes [start, end) that a Range header asks for; None for all: without a header, and for forms that may be left unheeded.

    Raises Refused (416) for a range that is not there.
    """
    found = re.fullmatch(r"\s*bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", value or "", re.ASCII)
    if found is None or found.group(1) == found.group(2) == "":
        return None
    first, last = found.groups()
    if first and last and int(last) < int(first):
        return None
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= end:
        raise Refused(416, f"The file has {size} bytes.", content_range=f"bytes */{size}")
    return start, end


class Streams:
    """Sends files, so many at a time, to clients who take what they are sent."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.now = limits, 0
        self.threads = ThreadPoolExecutor(4, "file")

    def response(self, index: Index, name: str, headers: Headers, *, head: bool) -> Sent:
        return Sent(self, index, name, headers, head)

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)


class Sent(Response):
    """A file or a part of it, as an ASGI response."""

    def __init__(self, streams: Streams, index: Index, name: str, headers: Headers, head: bool) -> None:
        self.streams, self.index, self.item, self.asked, self.head = streams, index, name, headers, head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        streams = self.streams
        if streams.now >= streams.limits.streams:
            raise unavailable("The server is sending as many files as it can; try again in a moment.")
        streams.now += 1
        try:
            opened = await streams.in_thread(open_item, self.index, self.item)
            try:
                await self._send(opened, send)
            finally:
                os.close(opened.descriptor)
        finally:
            streams.now -= 1

    async def _send(self, opened: Opened, send: Send) -> None:
        headers = {"accept-ranges": "bytes", "etag": opened.etag, "cache-control": "private, max-age=0, must-revalidate"}
        if opened.etag in [tag.strip().removeprefix("W/") for tag in self.asked.get("if-none-match", "").split(",")]:
            await self._begin(send, 304, headers)
            return
        same = self.asked.get("if-range", opened.etag) == opened.etag
        span = span_of(self.asked.get("range"), opened.size) if same else None
        start, end = span or (0, opened.size)
        headers |= {"content-type": opened.type, "content-length": str(end - start)}
        if span is not None:
            headers["content-range"] = f"bytes {start}-{end - 1}/{opened.size}"
        if self.head:
            await self._begin(send, 206 if span else 200, headers)
            return
        await send(_start(206 if span else 200, headers))
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):  # a client that takes nothing is left
            async for piece, more in self._pieces(opened, start, end):
                message = {"type": "http.response.body", "body": piece, "more_body": more}
                await asyncio.wait_for(send(message), self.streams.limits.stall_seconds)

    async def _pieces(self, opened: Opened, start: int, end: int) -> AsyncIterator[tuple[bytes, bool]]:
        while start < end:
            piece = await self.streams.in_thread(_read_at, opened.descriptor, min(PIECE, end - start), start)
            if not piece:  # it was cut short meanwhile: the connection is, too
                return
            start += len(piece)
            yield piece, start < end
        if end == 0:
            yield b"", False

    async def _begin(self, send: Send, status: int, headers: dict[str, str]) -> None:
        await send(_start(status, headers))
        await send({"type": "http.response.body", "body": b""})


def _start(status: int, headers: dict[str, str]) -> dict[str, Any]:
    raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": raw}


def _read_at(descriptor: int, count: int, start: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, start)
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.read(descriptor, count)
