"""Around every request: whom the server answers, the security headers, and that no traceback leaves it."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xmafast.serve.answers import Refused, refusal

log = logging.getLogger("xmafast.serve")

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"  # of what is no page of ours, a library's own files among it
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",  # for browsers that do not know frame-ancestors
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), browsing-topics=()",
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Guard:
    """names: hosts by which the server may be called. A page of another site can give its own name this machine's address (DNS rebinding)
    and would then read the library as its own: the name in the Host header gives it away. addresses: any address, too, is a name of
    this machine, where it does not listen on loopback alone; an address cannot be rebound.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str] = LOOPBACK, addresses: bool = False) -> None:
        self.app, self.names, self.addresses = app, {name.lower().rstrip(".") for name in names}, addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        begun = False

        async def guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers["content-security-policy"] = PAGE_POLICY if scope["path"] == "/" else DATA_POLICY
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, receive, guarded)
        except Refused as error:
            if not begun:
                await refusal(error)(scope, receive, guarded)
        except Exception as error:  # whatever it is: a client is told that it is not its fault, and nothing else
            log.error("%s %s: %s: %s", scope["method"], scope["path"][:200], type(error).__name__, error, exc_info=log.isEnabledFor(10))
            if not begun:
                await refusal(Refused(500, "The server could not answer this; its terminal says why."))(scope, receive, guarded)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if scope["method"] != "POST" and (headers.get("content-length", "0") != "0" or "transfer-encoding" in headers):
            raise Refused(413, "Nothing is sent along with this request.", connection="close")
        if len(hosts := headers.getlist("host")) != 1 or not self._known(hosts[0]):
            name = brief(host_of(hosts[0]) if hosts else "")
            raise Refused(421, f"This server does not answer as {name!r}; a name of its own is added with --allow-host NAME.")
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "")
        visit = scope["method"] == "GET" and scope["path"] == "/" and mode == "navigate"
        if site not in ("none", "same-origin") and not visit:
            raise Refused(403, "This server answers its own page only, and no other site's.")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != hosts[0].lower():
            raise Refused(403, "This server answers its own page only, and no other site's.")

    def _known(self, value: str) -> bool:
        name = host_of(value)
        return name in self.names or (self.addresses and _is_address(name))


def host_of(value: str) -> str:
    """``Name:8765`` -> ``name``, ``[::1]:8765`` -> ``::1``."""
    value = value.strip().lower()
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.rpartition(":")[0].rstrip(".") if value.count(":") == 1 else value.rstrip(".")


def brief(text: str) -> str:
    """What a client sent, to stand in a sentence."""
    return "".join(c if c.isprintable() else "?" for c in text[:80])


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
