"""Servers for tests: as an ASGI application, and on a socket."""

import socket
import threading
from contextlib import contextmanager

from starlette.testclient import TestClient

from xmafast.serve import Limits
from xmafast.serve.app import create_app
from xmafast.serve.run import server_of

CANARY = b"CANARY-7f3d: nobody may read this"


def client_of(index, **options):
    return TestClient(create_app(index, **options), base_url="http://127.0.0.1:8765")


@contextmanager
def served(index, limits=None, app=None, port=0):
    """A server on a socket of its own, in a thread: its (host, port)."""
    limits = limits or Limits()
    with socket.create_server(("127.0.0.1", port), backlog=512) as listener:
        server = server_of(app or create_app(index, limits=limits), limits)
        ready = threading.Event()
        server.ready = ready.set
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        assert ready.wait(120)
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join(30)
