"""``run``: the application on a socket, with what uvicorn leaves to others: clients that are slow, or too many."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from xmafast.errors import UsageError
from xmafast.index import Index
from xmafast.serve.app import create_app
from xmafast.serve.guard import LOOPBACK
from xmafast.serve.limits import Limits

HEAD_BYTES = 2**14


def protocol_of(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol, which waits for ever for the rest of a request's head, with a time limit; when there are too many connections,
    the one that has waited longest for a request goes."""
    waiting: OrderedDict[Any, None] = OrderedDict()

    class Patient(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_head()
            if len(self.connections) > limits.connections:
                oldest = next(iter(waiting))
                oldest.transport.abort()
                oldest._settled()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.transport.is_closing():
                return
            if self.conn.their_state is h11.IDLE:
                self._await_head()
            else:
                self._settled()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
                waiting[self] = None  # between two requests uvicorn's own limit holds

        def connection_lost(self, exc: Exception | None) -> None:
            self._settled()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            waiting.setdefault(self, None)
            if self._deadline is None:
                self._deadline = self.loop.call_later(limits.header_seconds, self.transport.abort)

        def _settled(self) -> None:
            waiting.pop(self, None)
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return Patient


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UsageError where the address is taken or none of this machine's."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=512)
    except OverflowError:
        raise UsageError(f"--port {port} is no port; ports go up to 65535.") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"{host}:{port} cannot be listened on ({reason}); choose another with --host or --port.") from error


def is_loopback(host: str) -> bool:
    return host in LOOPBACK or host.startswith("127.")


def run(
    library: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    adapter: str | None = None,
    names: Iterable[str] = (),
    limits: Limits | None = None,
    ready: Callable[[str], object] | None = None,
    debug: bool = False,
) -> None:
    """Serve a library until a signal ends it.

    port: 0 takes a free one. names: what else than its address the server may be called, of a proxy in front of it. ready: called with
    the server's address when it answers. Raises CacheError, BackboneError and UsageError for a library, a model or an address that
    cannot be had.
    """
    limits = limits or Limits()
    index = Index(library)
    own = {*names, host, *(LOOPBACK if is_loopback(host) else (*LOOPBACK, socket.gethostname()))}
    app = create_app(index, adapter=adapter, limits=limits, names=own, addresses=not is_loopback(host))
    app.state.engine.prepare()  # what is wrong with the model is said before anything listens
    logging.getLogger("uvicorn.error").setLevel(logging.DEBUG if debug else logging.CRITICAL)  # what hostile clients send is no news
    logging.getLogger("xmafast.serve").setLevel(logging.DEBUG if debug else logging.WARNING)
    with listen(host, port) as listener:
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listener.getsockname()[1]}/"
        server = server_of(app, limits)
        if ready is not None:
            server.ready = lambda: ready(address)
        server.run(sockets=[listener])


class Server(uvicorn.Server):
    """ready: called when the server answers."""

    ready: Callable[[], object] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self.ready is not None:
            self.ready()


def server_of(app: Any, limits: Limits) -> Server:
    """uvicorn for ``create_app``'s application; ``run(sockets=[...])`` serves until ``should_exit`` or a signal."""
    config = uvicorn.Config(
        app,
        http=protocol_of(limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=HEAD_BYTES,
    )
    return Server(config)
