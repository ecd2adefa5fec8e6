"""xmafast index, and xmafast search over a library."""

import json
import shutil

import pytest
from PIL import Image

from xmafast.index import Index
from xmafast.retriever import Retriever


@pytest.fixture(scope="module")
def made(demo_backbone, small_caches, tmp_path_factory):
    """A library of twelve clips of a cache."""
    library = tmp_path_factory.mktemp("made") / "lib.xma"
    Index.build(library, small_caches / "test.h5", Retriever(demo_backbone, None), name="demo")
    return library


@pytest.fixture
def library(made, tmp_path):
    return shutil.copytree(made, tmp_path / "lib.xma")


def test_a_folder_is_indexed_searched_and_indexed_again(call, clips, tmp_path):
    (clips / "text.mp4").write_text("hello")
    code, out, err = call("index", "clips", "--backbone", "demo", "--frames", "3", "--workers", "1", "--json")
    assert code == 0, err
    made = json.loads(out)
    assert (made["path"], made["items"], made["added"], made["failed"]) == ("lib.xma", 6, 6, 1)
    assert made["problems"] == [{"id": "text.mp4", "reason": "it is text, not a video"}]
    assert "failed: text.mp4: it is text, not a video" in err

    code, out, err = call("search", "rainbow", "lib.xma", "--json", "--topk", "2")
    assert code == 0, err
    hits = json.loads(out)
    assert [hit["rank"] for hit in hits] == [1, 2]
    assert hits[0]["id"] == "1f308.mp4"
    assert hits[0]["source"] == str(clips / "1f308.mp4")

    (clips / "text.mp4").unlink()
    (clips / "1f308.mp4").unlink()
    code, out, _ = call("index", "lib.xma")
    assert code == 0
    assert "Next: xmafast search" in out
    counts = json.loads(call("index", "lib.xma", "--json")[1])
    assert (counts["items"], counts["unchanged"], counts["deleted"], counts["failed"]) == (5, 5, 0, 0)


def test_paths_alone_are_for_pipes(call, library):
    code, out, _ = call("search", "a face", "lib.xma", "--paths", "--topk", "3")
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 3)
    assert call("search", "a face", "lib.xma", "--paths", "-0", "--topk", "3")[1] == "".join(f"{line}\0" for line in lines)
    assert [hit["source"] for hit in json.loads(call("search", "a face", "lib.xma", "--json", "--topk", "3")[1])] == lines


def test_a_page_shows_the_frames_of_what_was_found(call, library, tmp_path):
    code, out, _ = call("search", "a face", "lib.xma", "--html", "page.html", "--topk", "2")
    page = (tmp_path / "page.html").read_text()
    assert (code, page.count("class=best")) == (0, 2)
    assert page.count("data:image/jpeg;base64,") == sum(len(hit.times) for hit in Index(library).search("a face", topk=2))
    assert '"a face" in 12 clips' in out


def test_an_image_finds_its_clip(call, library, tmp_path):
    index = Index(library)
    name = index.ids[3]
    (tmp_path / "frame.jpg").write_bytes(index.thumbnail(name, 1))
    code, out, err = call("search", "--image", "frame.jpg", "lib.xma", "--json", "--topk", "1")
    assert code == 0, err
    assert json.loads(out)[0]["id"] == name


def test_filters_narrow_what_is_found(call, library):
    ids = [hit["id"] for hit in json.loads(call("search", "x", "lib.xma", "--path", "test/*1*", "--topk", "100", "--json")[1])]
    assert ids
    assert all("1" in name.partition("/")[2] for name in ids)
    hits = json.loads(call("search", "x", "lib.xma", "--from", "1", "--to", "0:02", "--topk", "100", "--json")[1])
    assert hits
    assert all(1 <= hit["best_time"] < 2 for hit in hits)


def test_a_second_adapter_is_added_and_chosen(call, library):
    code, out, err = call("index", "lib.xma", "--backbone", "demo", "--name", "twin", "--json")
    assert code == 0, err
    assert json.loads(out)["adapters"] == ["demo", "twin"]
    assert json.loads(out)["encoded"] == 0  # the same weights: nothing to encode
    code, _, err = call("search", "x", "lib.xma")
    assert (code, "several adapters; name one of: demo, twin" in err) == (2, True)
    one, two = (call("search", "x", "lib.xma", "--adapter", name, "--json")[1] for name in ("demo", "twin"))
    assert one == two
    assert json.loads(call("index", "lib.xma", "--drop", "twin", "--json")[1])["adapters"] == ["demo"]


def test_exporting_says_where_to(call, library):
    pytest.importorskip("faiss", reason="pip install faiss-cpu")
    code, out, _ = call("index", "lib.xma", "--export", "faiss", "--to", "lib.faiss", "--json")
    assert (code, json.loads(out)) == (0, {"export": "faiss", "path": "lib.faiss", "items": 12})


def prepared(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.mp4").write_text("hello")
    Image.new("RGB", (8, 8)).save(tmp_path / "ok.png")
    (tmp_path / "broken.xma").mkdir()
    (tmp_path / "broken.xma" / "catalog.sqlite").write_bytes(b"x" * 9000)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["index", "nowhere", "--backbone", "demo"], 1, "nowhere does not exist; name a folder"),
        (["index", "empty", "--backbone", "demo"], 1, "empty holds no videos and no images"),
        (
            ["index", "texts", "--backbone", "demo", "--workers", "1", "--out", "new.xma"],
            1,
            "a.mp4: it is text, not a video. Nothing was changed",
        ),
        (["index", "texts", "--backbone", "demo"], 2, "is an index of"),
        (["index", "ok.png", "--backbone", "demo"], 1, "ok.png is a file, not a folder"),
        (["index", "empty", "--bakbone", "demo"], 2, "No such option"),
        (["index", "lib.xma", "--drop", "dmo"], 2, "Did you mean 'demo'"),
        (["index", "lib.xma", "--export", "faiss"], 2, "--export KIND and --to PATH go together"),
        (["index", "empty", "--export", "faiss", "--to", "x"], 2, "--export reads a library"),
        (["index", "gone.xma"], 1, "There is no library gone.xma"),
        (["index", "broken.xma"], 1, "is damaged"),
        (["index", "lib.xma", "--name", "x"], 2, "is no adapter of lib.xma yet"),
        (["search", "x", "gone.xma"], 1, "There is no library gone.xma; make one with: xmafast index"),
        (["search", "x", "broken.xma"], 1, "is damaged"),
        (["search"], 2, "What is to be found?"),
        (["search", "  ", "lib.xma"], 2, "The query is empty"),
        (["search", "--image", "ok.png"], 2, "name one, as: xmafast search --image"),
        (["search", "--image", "ok.png", "empty"], 2, "search a library, which empty is not"),
        (["search", "--image", "no.png", "lib.xma"], 1, "There is no file no.png"),
        (["search", "--image", "texts/a.mp4", "lib.xma"], 1, "cannot be searched by: it is text, not a video"),
        (["search", "x", "lib.xma", "--path", "nothing*"], 2, "leave none of the 12 items"),
        (["search", "x", "lib.xma", "--since", "yesterday"], 2, "--since 'yesterday' is no time"),
        (["search", "x", "lib.xma", "--since", "2026-02-01", "--until", "2026-01-01"], 2, "exchange them"),
        (["search", "x", "lib.xma", "--from", "1:99"], 2, "is no moment of a video"),
        (["search", "x", "lib.xma", "--adapter", "dmo"], 2, "Did you mean 'demo'"),
        (["search", "x", "lib.xma", "--backbone", "demo"], 2, "a library is searched with its own"),
        (["search", "x", "--path", "a*"], 2, "--path goes with a library"),
        (["search", "x", "lib.xma", "-0"], 2, "--null goes with --paths"),
        (["search", "x", "lib.xma", "--paths", "--json"], 2, "choose one"),
    ],
)
def test_wrong_input_is_one_sentence_and_changes_nothing(call, library, tmp_path, arguments, code, message):
    prepared(tmp_path)
    before = {file: file.read_bytes() for file in library.rglob("*") if file.is_file()}
    got, _, err = call(*arguments)
    assert (got, message in err) == (code, True), err
    assert "Traceback" not in err
    assert {file: file.read_bytes() for file in library.rglob("*") if file.is_file()} == before
    assert sorted(path.name for path in tmp_path.glob("*.xma")) == ["broken.xma", "lib.xma"]
