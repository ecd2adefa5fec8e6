"""The API: what it answers, what it refuses, and that its description is true."""

import asyncio
import io
import threading

import pytest
from PIL import Image
from serving import client_of
from starlette.routing import Route

from xmafast.errors import UsageError
from xmafast.index import Filters, Index
from xmafast.serve import Limits, engine
from xmafast.serve.app import create_app
from xmafast.serve.engine import Engine
from xmafast.serve.openapi import document


def found(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["hits"]


def sentence(answer, status):
    assert answer.status_code == status, answer.text
    said = answer.json()
    assert list(said) == ["error"]
    return said["error"]


def test_a_text_finds_what_the_library_finds(client, index):
    for name in ("frozen", "other"):
        wanted = index.search("rainbow", topk=4, adapter=name)
        hits = found(client.get("/api/search", params={"q": " rainbow ", "topk": 4, "adapter": name}))
        assert [(h["id"], h["score"], h["best_time"], h["frame"]) for h in hits] == [(h.id, h.score, h.best_time, h.frame) for h in wanted]
        assert [h["weights"] for h in hits] == [list(h.weights) for h in wanted]
    assert found(client.get("/api/search?q=rainbow"))[0]["id"] == "sub/1f308.mp4"


def test_filters_choose_among_clips_and_may_leave_none(client, index):
    hits = found(client.get("/api/search", params={"q": "rainbow", "path": "sub/*"}))
    assert {h["id"] for h in hits} == {name for name in index.ids if name.startswith("sub/")}
    assert found(client.get("/api/search?q=rainbow&path=nowhere/*")) == []
    late = found(client.get("/api/search?q=rainbow&start=1"))
    assert late
    assert all(h["best_time"] >= 1 for h in late)
    assert found(client.get("/api/search?q=rainbow&since=99999999999")) == []


def test_a_clip_and_an_image_find_what_they_are(client, made):
    _, folder = made
    for kind in ("video/mp4", "application/octet-stream"):
        answer = client.post("/api/search/file", content=(folder / "sub/1f308.mp4").read_bytes(), headers={"content-type": kind})
        assert answer.json()["by"] == "clip"
        assert found(answer)[0]["id"] == "sub/1f308.mp4"
        assert found(answer)[0]["score"] == pytest.approx(1, abs=1e-3)
    answer = client.post(
        "/api/search/file?adapter=other", content=(folder / "fractal.png").read_bytes(), headers={"content-type": "image/png"}
    )
    assert (answer.json()["by"], answer.json()["adapter"]) == ("image", "other")
    assert found(answer)[0]["id"] == "fractal.png"


def test_a_file_is_decoded_once_whatever_adapter_is_asked(client, made, monkeypatch):
    body = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(body, "JPEG")
    first = client.post("/api/search/file", content=body.getvalue(), headers={"content-type": "image/jpeg"})
    monkeypatch.setattr(Index, "read", None)
    again = client.post("/api/search/file?adapter=other", content=body.getvalue(), headers={"content-type": "image/jpeg"})
    assert found(first)[0]["score"] != found(again)[0]["score"]


def test_what_is_no_image_and_no_video_is_said_so(client, made):
    _, folder = made
    for body in (b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"#!/bin/sh\n" * 100, b"\0" * 5000):
        assert "neither an image nor a video" in sentence(
            client.post("/api/search/file", content=body, headers={"content-type": "image/png"}), 415
        )
    cut = (folder / "1f300.mp4").read_bytes()[:900]
    said = sentence(client.post("/api/search/file", content=cut, headers={"content-type": "video/mp4"}), 422)
    assert said.startswith("This file cannot be searched by")
    assert "/tmp" not in said
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "", "image", "video/../text"):
        answer = client.post("/api/search/file", content=cut, headers={"content-type": kind})
        assert answer.status_code == (422 if kind.startswith("video/") else 415), kind  # what forms of other sites can send


def test_a_file_that_is_too_large_is_refused_with_and_without_its_length(index):
    client = client_of(index, limits=Limits(upload_bytes=1000))
    image = {"content-type": "image/jpeg"}
    assert "1000 bytes" in sentence(client.post("/api/search/file", content=b"\xff\xd8\xff" * 400, headers=image), 413)

    def pieces():
        for _ in range(100):
            yield b"\xff\xd8\xff" * 100

    assert "larger" in sentence(client.post("/api/search/file", content=pieces(), headers=image), 413)
    assert "larger" in sentence(client.post("/api/search/file", content=b"x", headers={**image, "content-length": "9" * 30}), 413)


def test_more_files_than_are_worked_on_are_sent_away(index, made):
    async def crowd():
        limited = Engine(index, limits=Limits(uploads=1))
        hold = threading.Event()
        limited._by_file = lambda *_: hold.wait(20) and []
        ask = (made[1] / "fractal.png", "image", "frozen", 1, Filters())
        waiting = [asyncio.create_task(limited.by_file(*ask)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(engine.Refused, match="as many files as it can"):
            await limited.by_file(*ask)
        hold.set()
        assert await asyncio.gather(*waiting) == [[], []]
        limited.close()

    asyncio.run(crowd())


def test_the_same_question_is_answered_once(index, monkeypatch):
    asked = []
    embed = engine.embed_texts
    monkeypatch.setattr(engine, "embed_texts", lambda model, texts: asked.append(texts) or embed(model, texts))

    async def crowd():
        one = Engine(index)
        everything = [one.by_text(text, "frozen", k, Filters()) for text in ("a  kite", " a kite") for k in (3, 3, 5)]
        answers = await asyncio.gather(*everything)
        assert [len(hits) for hits in answers] == [3, 3, 5, 3, 3, 5]
        await one.by_text("a kite", "frozen", 3, Filters())
        one.close()

    asyncio.run(crowd())
    assert 1 <= len(asked) <= 2  # two at most: the same words for two numbers of clips, at the same time


def test_too_many_searches_wait_for_nobody(index, monkeypatch):
    hold, embed = threading.Event(), engine.embed_texts
    monkeypatch.setattr(engine, "embed_texts", lambda model, texts: hold.wait(20) and embed(model, texts))

    async def crowd():
        limited = Engine(index, limits=Limits(searches=2))
        waiting = [asyncio.create_task(limited.by_text(f"query {i}", "frozen", 1, Filters())) for i in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(engine.Refused, match="more searches waiting"):
            await limited.by_text("another", "frozen", 1, Filters())
        hold.set()
        assert [len(hits) for hits in await asyncio.gather(*waiting)] == [1, 1]
        await asyncio.sleep(0.05)
        assert limited._waiting == len(limited._asked) == 0
        limited.close()

    asyncio.run(crowd())


def test_texts_that_wait_are_searched_together_and_find_the_same(index, monkeypatch):
    together, hold = [], threading.Event()
    search, embed = Index.search_vectors, engine.embed_texts
    monkeypatch.setattr(Index, "search_vectors", lambda self, v, **options: together.append(len(v)) or search(self, v, **options))
    monkeypatch.setattr(engine, "embed_texts", lambda model, texts: hold.wait(20) and embed(model, texts))
    texts = [f"a {thing}" for thing in ("rainbow", "cloud", "house", "car", "tree", "clock", "star", "fish", "hand", "face")]

    async def crowd():
        one = Engine(index)
        asked = [asyncio.create_task(one.by_text(text, name, 3, Filters())) for text in texts for name in ("frozen", "other")]
        await asyncio.sleep(0.2)
        hold.set()
        answers = await asyncio.gather(*asked)
        one.close()
        return answers

    answers = iter(asyncio.run(crowd()))
    for text in texts:
        for name in ("frozen", "other"):
            hits, wanted = next(answers), index.search(text, topk=3, adapter=name)
            assert [hit["id"] for hit in hits] == [hit.id for hit in wanted]
            assert [hit["score"] for hit in hits] == pytest.approx([hit.score for hit in wanted], abs=1e-6)
    assert sum(together) == 20
    assert 1 < max(together) <= engine.TOGETHER


def test_an_error_in_one_turn_reaches_all_who_waited_and_nobody_else(index, monkeypatch):
    embed = engine.embed_texts

    async def crowd():
        one = Engine(index)
        monkeypatch.setattr(engine, "embed_texts", lambda *_: 1 / 0)
        failed = await asyncio.gather(*(one.by_text(f"text {i}", "frozen", 1, Filters()) for i in range(5)), return_exceptions=True)
        assert [type(error) for error in failed] == [ZeroDivisionError] * 5
        monkeypatch.setattr(engine, "embed_texts", embed)
        assert len(await one.by_text("text 1", "frozen", 1, Filters())) == 1
        one.close()

    asyncio.run(crowd())


def test_similar_clips_begin_with_the_clip_itself(client, index):
    for hit in found(client.get("/api/search?q=rainbow&topk=7")):
        answer = client.get(f"/api/clips/{hit['token']}/similar?topk=2")
        assert found(answer)[0]["id"] == hit["id"]


def test_clips_are_listed_with_the_newest_first(client, index):
    answer = client.get("/api/clips?limit=200").json()
    assert answer["clips"] == len(answer["items"]) == 7
    times = [clip["modified"] for clip in answer["items"]]
    assert times == sorted(times, reverse=True)
    assert client.get("/api/clips?offset=2&limit=2").json()["items"] == answer["items"][2:4]
    assert client.get("/api/clips?offset=99").json()["items"] == []
    for clip in answer["items"]:
        assert client.get(f"/api/clips/{clip['token']}").json() == clip


def test_thumbnails_are_the_librarys_and_may_be_kept_where_their_address_names_the_content(client, index):
    hit = found(client.get("/api/search?q=rainbow&topk=1"))[0]
    for frame in range(len(hit["times"])):
        answer = client.get(f"/api/clips/{hit['token']}/thumbnails/{frame}")
        assert (answer.content, answer.headers["content-type"]) == (index.thumbnail(hit["id"], frame), "image/jpeg")
        assert answer.headers["cache-control"] == "no-cache"
    assert "immutable" in client.get(hit["thumbnail"]).headers["cache-control"]
    for frame in ("99", "-1", "1.0", "x", "²", "9" * 20):
        assert client.get(f"/api/clips/{hit['token']}/thumbnails/{frame}").status_code == 404


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("", "query is empty"),
        ("q=", "query is empty"),
        ("q=%20%0a", "query is empty"),
        ("q=a&topk=0", "topk is a whole number from 1 to 200"),
        ("q=a&topk=201", "topk"),
        ("q=a&topk=1e2", "topk"),
        ("q=a&topk=²", "topk"),
        ("q=a&adapter=nobody", "Unknown adapter 'nobody'. Known: frozen, other."),
        ("q=a&start=nan", "start is a number of seconds"),
        ("q=a&end=inf", "end is a number"),
        ("q=a&since=yesterday", "since is a number"),
        ("q=a&q=b", "there twice"),
        ("q=a&file=/etc/passwd", "no parameter 'file'"),
        ("q=" + "a" * 1001, "1001 characters"),
        ("q=a%00b", "NUL"),
        ("q=a&path=" + "*" * 501, "501 characters"),
    ],
)
def test_a_parameter_that_is_wrong_is_named(client, asked, why):
    assert why in sentence(client.get(f"/api/search?{asked}"), 400)


def test_what_is_not_there_is_said_to_be_so(client):
    for path in ("/nothing", "/api", "/page/", "/page/nothing.js", "/api/clips/", "/api/clips/" + "0" * 20, "/api/clips/x/file", "/docs"):
        assert sentence(client.get(path), 404)
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
        assert sentence(client.request(method, "/api/library"), 405)
    assert sentence(client.get("/api/search/file"), 405)


def test_the_description_lists_every_route_and_no_other(index):
    routes = {
        (route.path, method)
        for route in create_app(index).routes
        if isinstance(route, Route) and (route.path.startswith("/api") or route.path.endswith(".json"))
        for method in route.methods - {"HEAD"}
    }
    told = document(Limits())
    assert {(path, method.upper()) for path, methods in told["paths"].items() for method in methods} == routes
    for path, methods in told["paths"].items():
        for operation in methods.values():
            inside = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert inside == {part[1:-1] for part in path.split("/") if part.startswith("{")}


def fits(value, schema, schemas):
    """Raise where a value is not as its schema says."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    if "enum" in schema:
        assert value in schema["enum"]
        return
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    types = {"string": str, "number": (int, float), "integer": int, "boolean": bool, "object": dict, "array": list, "null": type(None)}
    assert any(isinstance(value, types[kind]) and (kind == "boolean" or not isinstance(value, bool)) for kind in kinds), (value, schema)
    if isinstance(value, dict) and "properties" in schema:
        assert set(value) == set(schema["required"]) == set(schema["properties"])
        for key, item in value.items():
            fits(item, schema["properties"][key], schemas)
    if isinstance(value, list):
        for item in value:
            fits(item, schema["items"], schemas)


def test_answers_are_what_the_description_says(client, made):
    told = client.get("/openapi.json").json()
    assert told["openapi"].startswith("3.1")
    schemas = told["components"]["schemas"]
    token = found(client.get("/api/search?q=a"))[0]["token"]
    fill = {"{token}": token, "{frame}": "0"}
    image = (made[1] / "fractal.png").read_bytes()
    for path, methods in told["paths"].items():
        place = path
        for part, value in fill.items():
            place = place.replace(part, value)
        for method, operation in methods.items():
            body = {"content": image, "headers": {"content-type": "image/png"}} if method == "post" else {}
            answer = client.request(method, place, params={"q": "a"} if path == "/api/search" else {}, **body)
            [(kind, content)] = operation["responses"]["200"]["content"].items()
            assert answer.status_code == 200
            if kind == "application/json":
                fits(answer.json(), content["schema"], schemas)
            for parameter in operation["parameters"]:  # none is described that the server does not know
                if parameter["in"] == "query" and parameter["name"] != "q":
                    value = str(parameter["schema"].get("default", {"adapter": "other", "path": "*", "v": "x"}.get(parameter["name"], 1)))
                    given = {"q": "a", parameter["name"]: value} if path == "/api/search" else {parameter["name"]: value}
                    assert client.request(method, place, params=given, **body).status_code == 200, (path, parameter["name"])
            wrong = client.request(method, place, params={"nonsense": 1}, **body)
            assert wrong.status_code == 200 or str(wrong.status_code) in operation["responses"]
            if wrong.status_code != 200:
                fits(wrong.json(), {"$ref": "Error"}, schemas)


def test_an_update_is_taken_over_while_the_server_runs(own):
    library, folder, index = own
    one = Engine(index)
    client = client_of(index)
    before = client.get("/api/library").json()
    gone = found(client.get("/api/search?q=rainbow&topk=1"))[0]
    (folder / gone["id"]).unlink()
    Index.build(library, drop=["other"])
    assert client.get("/api/library").json() == before
    one.look()
    after = client.get("/api/library").json()
    assert (after["clips"], after["adapters"], after["revision"]) == (6, ["frozen"], before["revision"] + 1)
    assert client.get(f"/api/clips/{gone['token']}").status_code == 404
    assert gone["id"] not in [hit["id"] for hit in found(client.get("/api/search?q=rainbow&topk=99"))]
    (library / "catalog.sqlite").rename(library / "away")
    one.look()
    assert "holds no catalog" in one.trouble
    assert found(client.get("/api/search?q=snow"))
    one.close()


def test_a_model_is_loaded_once_for_all_revisions(made):
    index = Index(made[0])
    model = index.retriever("frozen")
    index._snapshot.meta["revision"] = -1
    assert index.refresh()
    assert index.retriever("frozen") is model
    assert index.retriever("other").backbone is model.backbone


def test_the_adapter_of_the_server_has_to_be_there(index):
    with pytest.raises(UsageError, match="Unknown adapter 'nobody'"):
        create_app(index, adapter="nobody")
    with client_of(index, adapter="other") as client:
        assert client.get("/api/library").json()["adapter"] == "other"
        assert client.get("/api/search?q=a").json()["adapter"] == "other"
