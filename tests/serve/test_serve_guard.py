"""Around every answer: whom the server answers, its headers, and that it says nothing of its inside."""

import pytest
from serving import client_of

from xmafast.serve import engine
from xmafast.serve.guard import host_of


def everything(client):
    token = client.get("/api/clips?limit=1").json()["items"][0]["token"]
    for path in ("/", "/page/app.js", "/api/library", "/api/search?q=a", f"/api/clips/{token}/file", f"/api/clips/{token}/thumbnails/0"):
        yield client.get(path)
    yield client.get("/nothing")
    yield client.get("/api/search")
    yield client.post("/api/search/file", content=b"x")
    yield client.get("/", headers={"host": "evil.example"})
    yield client.get("/api/library", headers={"sec-fetch-site": "cross-site"})


def test_every_answer_has_the_security_headers(client):
    for answer in everything(client):
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert ("script-src" in policy) == (answer.request.url.path == "/")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "server" not in answer.headers


def test_a_name_that_is_not_the_servers_is_refused(index, client):
    for good in ("localhost", "localhost:8765", "127.0.0.1:1", "[::1]:8765", "LOCALHOST:80", "localhost.:80"):
        assert client.get("/api/library", headers={"host": good}).status_code == 200, good
    for bad in (
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:8765",
        "0.0.0.0",
        "192.168.0.7",
        "",
        "a@localhost",
        "[::1",
        "::2",
    ):
        answer = client.get("/api/library", headers={"host": bad})
        assert (answer.status_code, "clips" in answer.text) == (421, False) or bad == "[::1", bad
    outside = client_of(index, names=["videos.example"], addresses=True)
    for good in ("192.168.0.7:8765", "[fe80::1]:8765", "videos.example", "10.0.0.1"):
        assert outside.get("/api/library", headers={"host": good}).status_code == 200, good
    for bad in ("evil.example", "10.0.0.1.evil.example", "localhost"):
        assert outside.get("/api/library", headers={"host": bad}).status_code == 421, bad


def test_hosts_without_their_ports():
    assert [host_of(value) for value in ("A:1", "a", "[::1]:2", "[::1]", "::1", "a.:5", " a ")] == ["a", "a", "::1", "::1", "::1", "a", "a"]


def test_pages_of_other_sites_reach_nothing_but_the_page(client):
    for site in ("cross-site", "same-site"):
        fetched = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}
        assert client.get("/api/search?q=a", headers=fetched).status_code == 403
        assert client.post("/api/search/file", content=b"x", headers={**fetched, "content-type": "image/png"}).status_code == 403
        followed = {"sec-fetch-site": site, "sec-fetch-mode": "navigate"}
        assert client.get("/", headers=followed).status_code == 200
        assert client.get("/api/library", headers=followed).status_code == 403
    assert client.get("/api/library", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get("/api/library", headers={"origin": "null"}).status_code == 403
    assert client.get("/api/library", headers={"origin": "http://127.0.0.1:8765", "sec-fetch-site": "same-origin"}).status_code == 200


def test_nothing_is_sent_along_with_a_question(client):
    answer = client.request("GET", "/api/library", content=b"hello")
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert client.request("GET", "/api/library", content=iter([b"a", b"b"])).status_code == 413


def test_what_goes_wrong_inside_is_not_told(index, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("secret of the inside")

    client = client_of(index)
    monkeypatch.setattr(engine, "embed_texts", broken)
    answer = client.get("/api/search?q=never+asked+before")
    assert answer.status_code == 500
    assert answer.json() == {"error": "The server could not answer this; its terminal says why."}
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "secret of the inside" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_model_that_cannot_be_loaded_is_a_sentence(index, monkeypatch):
    from xmafast.errors import BackboneError

    def missing(*_):
        raise BackboneError("The weights are not there.")

    monkeypatch.setattr(type(index), "retriever", missing)
    answer = client_of(index).get("/api/search?q=never+asked+either")
    assert (answer.status_code, answer.json()) == (503, {"error": "The weights are not there."})


def test_a_websocket_is_closed(client):
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/api/library"):
        pass
