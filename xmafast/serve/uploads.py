"""A file that a client searches by: told by its first bytes, received under limits, and deleted when it has been answered."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.requests import ClientDisconnect, Request

from xmafast.serve.answers import Refused
from xmafast.serve.limits import MIB, Limits

HEAD = 64  # bytes that tell what a file is


def told(head: bytes) -> str | None:
    """The ending that goes with a file's first bytes, which decides how it is decoded; None for what is no image and no video."""
    if head[:3] == b"\xff\xd8\xff":
        return ".jpg"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return ".png"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return ".gif"
    if head[:4] == b"RIFF":
        return {b"WEBP": ".webp", b"AVI ": ".avi"}.get(head[8:12])
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return ".bmp"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return None if head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1") else ".mp4"
    if head[:4] == b"\x1aE\xdf\xa3":
        return ".mkv"  # and webm
    if head[:4] == b"OggS":
        return ".ogv"
    if head[:3] == b"FLV":
        return ".flv"
    if head[:4] in (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3"):
        return ".mpg"
    if head[:8] == bytes.fromhex("3026b2758e66cf11"):
        return ".wmv"
    return None


@contextlib.asynccontextmanager
async def received(request: Request, limits: Limits) -> AsyncIterator[tuple[Path, str]]:
    """The body of a request as a file of its own, and ``image`` or ``clip``. Raises Refused for what is too large, too slow or neither."""
    most = f"{limits.upload_bytes // MIB} MiB" if limits.upload_bytes >= MIB else f"{limits.upload_bytes} bytes"
    large = Refused(
        413, f"The file is larger than the {most} that can be searched by; take a shorter clip or a smaller image.", connection="close"
    )
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or int(length) > limits.upload_bytes:
        raise large
    with tempfile.TemporaryDirectory(prefix="xmafast-") as folder:
        part = Path(folder) / "upload"
        try:
            head = await asyncio.wait_for(_fill(request, part, limits, large), limits.upload_seconds)
        except (asyncio.TimeoutError, TimeoutError):
            raise Refused(408, "The file came too slowly; try again.", connection="close") from None
        except ClientDisconnect:
            raise Refused(400, "The file did not come to its end.", connection="close") from None
        ending = told(head)
        if ending is None:
            raise Refused(415, "This is neither an image nor a video that can be searched by; drop a JPEG, PNG, WebP or GIF, or a video.")
        path = part.rename(part.with_suffix(ending))
        yield path, "image" if ending in (".jpg", ".png", ".gif", ".webp", ".bmp") else "clip"


async def _fill(request: Request, path: Path, limits: Limits, large: Refused) -> bytes:
    """Write the body to a file; its first bytes. What is neither is read to its end, before which a browser hears nothing, and not kept."""
    head, count = b"", 0
    with path.open("wb") as file:
        async for piece in request.stream():
            count += len(piece)
            if count > limits.upload_bytes:
                raise large
            if len(head) < HEAD:
                head += piece[: HEAD - len(head)]
            if len(head) < HEAD or told(head) is not None:
                file.write(piece)
    return head
