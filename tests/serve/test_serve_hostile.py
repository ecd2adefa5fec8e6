"""A server on a socket and clients that mean harm: slow, huge, malformed, and after other files than those of the library."""

import http.client
import json
import random
import socket
import sqlite3
import time
from contextlib import closing, contextmanager, suppress

import pytest
from serving import CANARY, served

from xmafast.index import Index
from xmafast.index.catalog import token_of
from xmafast.serve import Limits
from xmafast.serve.app import create_app

LIMITS = Limits(upload_bytes=200_000, upload_seconds=1.0, header_seconds=0.8, connections=40, stall_seconds=1.0)
NAME = "sub/1f308.mp4"


@pytest.fixture(scope="module")
def address(index):
    with served(index, LIMITS) as address:
        yield address


@contextmanager
def connected(address):
    with closing(socket.create_connection(address, timeout=20)) as one:
        yield one


def reply(one):
    """All that comes until the server closes, or until it says nothing more."""
    parts = []
    try:
        while piece := one.recv(65536):
            parts.append(piece)
            if b"\r\n\r\n" in (data := b"".join(parts)) and (length := length_of(data)) is not None and len(data) >= length:
                break
    except OSError:  # reset: what came before counts
        pass
    return b"".join(parts)


def length_of(data):
    head, _, _ = data.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(head) + 4 + int(line.partition(b":")[2])
    return None


def sent(address, data):
    with connected(address) as one:
        with suppress(OSError):
            one.sendall(data)
        return reply(one)


def get(address, path, method="GET", body=None, **headers):
    connection = http.client.HTTPConnection(*address, timeout=20)
    try:
        connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def is_up(address):
    status, body = get(address, "/api/library")
    return status == 200 and json.loads(body)["clips"] == 7


def clean(data):
    return CANARY[:6] not in data and b"Traceback" not in data and b'File "' not in data and b"site-packages" not in data


PATHS = (
    "../secret.mp4",
    "../../secret.mp4",
    "..%2fsecret.mp4",
    "..%2f..%2fsecret.mp4",
    "%2e%2e/secret.mp4",
    "..%252fsecret.mp4",
    "..%5csecret.mp4",
    "....//secret.mp4",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "file:///etc/passwd",
    "sub/../../secret.mp4",
    "%00",
    "secret.mp4%00.mp4",
    "%ff%fe",
    "%c0%ae%c0%ae/",
    "\\..\\secret.mp4",
    "~",
    "*",
    "'; DROP TABLE items; --",
    "{{7*7}}",
    "${jndi:ldap://x}",
    "<script>alert(1)</script>",
    "A" * 3000,
)


def hostile(seed):
    """One request, as bytes."""
    chance = random.Random(seed)
    path = chance.choice(PATHS).replace(" ", "%20")
    token = chance.choice([token_of(NAME), path, "0" * 20, token_of("../secret.mp4")])
    place = chance.choice(
        (
            f"/{path}",
            f"/page/{path}",
            f"/api/clips/{path}",
            f"/api/clips/{path}/file",
            f"/api/clips/{token}/{path}",
            f"/api/clips/{token}/thumbnails/{path}",
            f"/api/clips/{token}/file?v={path}",
            f"/api/clips/{token}/file?path={path}",
            f"/api/search?q={path}",
            f"/api/search?q=a&adapter={path}",
            f"/api/search?q=a&path={path}",
            f"/api/search?q=a&topk={path}",
            f"/api/search?q=a&start={path}",
            f"/api/clips?offset={path}",
            f"/api/clips?limit={path}&{path}={path}",
            f"/openapi.json?{path}",
        )
    )
    method = chance.choice(("GET", "GET", "GET", "GET", "HEAD", "POST", "PUT", "OPTIONS", "TRACE", "GE\tT", "get"))
    target = chance.choice((place, place, place, place, f"http://evil.example{place}", "*", "//" + place, place + "#x"))
    host = chance.choice(("127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.1", "evil.example", "127.0.0.1\r\nHost: localhost"))
    version = chance.choice(("HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/9.9", ""))
    more = chance.choice(
        (
            "",
            "",
            "",
            "Range: bytes=0-18446744073709551616\r\n",
            "Range: " + "bytes=" + "0-1," * 500 + "\r\n",
            "Content-Length: 99999999999\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n",
            "X: " + "y" * 20_000 + "\r\n",
            "No colon here\r\n",
            "Cookie: a=\x01\x02\r\n",
            "X-Forwarded-For: 127.0.0.1\r\nX-Original-URL: /../secret.mp4\r\nX-Forwarded-Host: evil.example\r\n",
            "Expect: 100-continue\r\nContent-Length: 10\r\n",
        )
    )
    body = chance.choice(("", "", '{"q": ', "[" * 5000, "ffffff\r\nabc", "\0" * 100))
    line = f"{method} {target} {version}\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n{body}"
    return line.encode("latin-1", "replace")


def test_five_hundred_hostile_requests_read_nothing_and_leave_the_server_up(address, made):
    statuses = {}
    for seed in range(500):
        data = sent_hastily(address, hostile(seed))
        assert clean(data), (hostile(seed), data[:2000])
        status = data[9:12].decode() if data else "none"
        statuses[status] = statuses.get(status, 0) + 1
        if status == "200":
            assert b"frame-ancestors" in data
        assert status != "500", (hostile(seed), data[:2000])
    assert statuses.get("400", 0) > 50
    assert statuses.get("404", 0) > 20
    assert statuses.get("421", 0) > 10
    assert statuses.get("200", 0) > 5, "some of them are harmless, and answered"
    assert is_up(address)


def sent_hastily(address, data):
    """Send, say that there is nothing more to come, and take what there is."""
    with connected(address) as one:
        with suppress(OSError):
            one.sendall(data)
            one.shutdown(socket.SHUT_WR)
        return reply(one)


def test_every_parameter_of_every_address_refuses_what_climbs(address):
    """None finds anything, whatever the address makes of it; the file that the canary is in lies beside the library's folder."""
    token = token_of(NAME)
    for path in PATHS:
        value = (
            path.replace(" ", "%20").replace("<", "%3C").replace(">", "%3E").replace("\\", "%5C").replace("{", "%7B").replace("}", "%7D")
        )
        for place in (
            f"/{value}",
            f"/page/{value}",
            f"/api/clips/{value}",
            f"/api/clips/{value}/file",
            f"/api/clips/{value}/similar",
            f"/api/clips/{value}/thumbnails/0",
            f"/api/clips/{token}/thumbnails/{value}",
        ):
            status, body = get(address, place)
            assert status in (400, 404), (place, status)
            assert clean(body)
    assert is_up(address)


def test_slow_heads_are_left_and_do_not_keep_others_out(address):
    slow = [socket.create_connection(address, timeout=20) for _ in range(60)]  # more than the server keeps
    try:
        for one in slow:
            one.sendall(b"GET /api/library HTTP/1.1\r\nHost: 127")
        assert is_up(address)
        ended = 0
        for one in slow:
            try:
                ended += one.recv(100) == b""
            except ConnectionResetError:
                ended += 1
        assert ended == 60
    finally:
        for one in slow:
            one.close()
    assert is_up(address)


def test_a_head_that_drips_ends_however_often_a_byte_comes(address):
    with connected(address) as one:
        one.sendall(b"GET /api/library HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert reply(one).startswith(b"HTTP/1.1 200")
        dripped = 0
        with suppress(OSError):  # the same connection, and a second request that never gets to its end
            for byte in b"GET /api/library HTTP/1.1\r\nX: " + b"y" * 400:
                one.sendall(bytes([byte]))
                dripped += 1
                time.sleep(0.02)
        assert dripped < 400
    assert is_up(address)


def test_slow_and_endless_bodies_are_left(address):
    head = b"POST /api/search/file HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: video/mp4\r\n"
    with connected(address) as one:
        one.sendall(head + b"Content-Length: 1000\r\n\r\n\xff\xd8\xff")
        assert reply(one).startswith(b"HTTP/1.1 408")
    assert sent(address, head + b"Content-Length: 100000000\r\n\r\n" + b"\xff\xd8\xff" * 100).startswith(b"HTTP/1.1 413")
    with connected(address) as one:
        one.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(400):
                one.sendall(b"2710\r\n" + b"\xff\xd8\xff\0" * 2500 + b"\r\n")
        except OSError:
            pass
        data = reply(one)
        assert not data or data.startswith(b"HTTP/1.1 413")
    with connected(address) as one:  # a body where none belongs
        one.sendall(b"GET /api/library HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000000\r\n\r\n")
        assert reply(one).startswith(b"HTTP/1.1 413")
    with connected(address) as one:  # a client that goes away in the middle
        one.sendall(head + b"Content-Length: 1000\r\n\r\n\xff\xd8\xff")
    assert is_up(address)


def test_a_client_that_takes_nothing_is_left(own):
    library, folder, index = own
    with (folder / NAME).open("ab") as file:
        file.write(b"\0" * 60_000_000)  # more than sockets hold; the catalogue is told
    about = (folder / NAME).stat()
    with sqlite3.connect(library / "catalog.sqlite") as catalog:
        catalog.execute("UPDATE items SET size = ?, mtime = ? WHERE id = ?", (about.st_size, about.st_mtime_ns, NAME))
    app = create_app(Index(library, {name: index.retriever(name) for name in index.adapters}), limits=LIMITS)
    with served(None, LIMITS, app) as address:
        with connected(address) as one:
            one.sendall(f"GET /api/clips/{token_of(NAME)}/file HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            assert one.recv(1000).startswith(b"HTTP/1.1 200")
            end = time.monotonic() + 20
            while app.state.streams.now and time.monotonic() < end:
                time.sleep(0.05)
            assert app.state.streams.now == 0
        status, body = get(address, f"/api/clips/{token_of(NAME)}/file")  # one who takes it gets all of it
        assert (status, len(body)) == (200, about.st_size)


def test_many_requests_at_once_on_one_connection_are_answered_in_order(address):
    asked = (
        b"GET /api/clips?limit=1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 50
        + b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    )
    with connected(address) as one:
        one.sendall(asked)
        data = b""
        while piece := one.recv(65536):
            data += piece
    assert data.count(b"HTTP/1.1 200 OK") == 51
    assert is_up(address)
