"""A library: what an update does and does not do again, what a search finds, and what is refused."""

import os
import shutil
import sqlite3
import threading

import indexing
import numpy as np
import pytest
import torch
from indexing import Pictures, adapter, fill, made
from support import demo_split

from xmafast.cache.lock import locked
from xmafast.errors import CacheError, DataError, UsageError
from xmafast.index import Filters, Index
from xmafast.index.catalog import CATALOG, SCHEMA
from xmafast.index.snapshot import Snapshot
from xmafast.index.update import update
from xmafast.index.writer import Writer
from xmafast.kernels import similarity
from xmafast.retriever import Retriever


@pytest.fixture(scope="module")
def model(demo_backbone):
    return Retriever(demo_backbone, None)


@pytest.fixture(scope="module")
def other(demo_backbone):
    torch.manual_seed(1)
    model = Retriever(demo_backbone, "lora")
    for parameter in model.trained.values():
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


@pytest.fixture(scope="module")
def clips_index(model, tmp_path_factory):
    """(library, folder) of six real clips in two folders, an image, and three files that are none."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "sub").mkdir()
    for i, video in enumerate(demo_split("train", 6).videos):
        shutil.copy(video.path, folder / ("sub" if i % 2 else ".") / video.path.name)
    whole = (folder / "1f300.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("hello")
    (folder / "nothing.png").write_bytes(b"")
    library = folder.parent / f"{folder.name}.xma"
    summary = Index.build(library, folder, model, name="frozen", frames=4, workers=1)
    assert (summary.items, summary.added, summary.failed, summary.encoded) == (6, 6, 3, 6)
    return library, folder


# searching


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "lib.xma"
    fill(path, [f"{'even' if i % 2 == 0 else 'odd'}/{i:03}.mp4" for i in range(60)])
    return Index(path)


def oracle(index, query, header, kept=None):
    """(id -> score) in float64 from the formulas."""
    query, scores = query.double(), {}
    for name in index.ids:
        frames = torch.from_numpy(index.embeddings(name)).double()
        frames = frames if kept is None else frames[kept(torch.tensor(index.times(name)))]
        if not len(frames):
            continue
        unit = frames / frames.norm(dim=1, keepdim=True)
        if header == "frame":
            scores[name] = float((unit @ query).max() / query.norm())
            continue
        vector = unit.mean(0) if header == "mean" else (frames @ query / 5).softmax(0) @ frames
        scores[name] = float(vector @ query / vector.norm() / query.norm())
    return scores


@pytest.mark.parametrize("header", ["mean", "text-conditioned", "frame"])
@pytest.mark.parametrize("span", [None, (1.0, 3.0)])
def test_scores_and_order_are_those_of_the_formulas_in_float64(library, header, span):
    query = torch.randn(16, generator=torch.Generator().manual_seed(3))
    filters = Filters() if span is None else Filters(start=span[0], end=span[1])
    wanted = oracle(library, query, header, None if span is None else lambda times: (times >= span[0]) & (times < span[1]))
    hits = library.search_vector(query, topk=1000, header=header, filters=filters)
    assert len(hits) == len(wanted)
    assert [hit.id for hit in hits] == sorted(wanted, key=lambda name: -wanted[name])
    tolerance = 2e-3 if header == "mean" and span is None else 1e-5  # pooled vectors are kept in float16
    assert [hit.score for hit in hits] == pytest.approx([wanted[hit.id] for hit in hits], abs=tolerance)
    few = library.search_vector(query, topk=7, header=header, filters=filters)
    assert [hit.id for hit in few] == [hit.id for hit in hits[:7]]


def test_a_small_part_of_a_library_is_scored_as_all_of_it(library):
    query = torch.randn(16, generator=torch.Generator().manual_seed(4))
    every = {hit.id: hit.score for hit in library.search_vector(query, topk=100)}
    hits = library.search_vector(query, topk=100, filters=Filters(path="*/00[0-5].mp4"))
    assert len(hits) == 6
    assert [hit.score for hit in hits] == pytest.approx([every[hit.id] for hit in hits], abs=1e-6)


def test_equal_scores_come_in_the_order_of_ids_however_they_were_added(tmp_path):
    twins = adapter()
    with Writer(tmp_path / "lib.xma") as writer:
        items = [indexing.item(name) for name in ("c", "a", "b")]
        frames, pooled = made("x")
        for item in items:
            writer.add_content(item.hash, [0.0] * len(frames), [b"j"] * len(frames))
            writer.add_vectors(twins.model, item.hash, frames, pooled)
        writer.publish(items, {"made": twins}, {}, {"root": "r", "kind": "folder", **indexing.SETTINGS})
    for header in ("mean", "text-conditioned", "frame"):
        assert [hit.id for hit in Index(tmp_path / "lib.xma").search_vector(torch.ones(16), header=header)] == ["a", "b", "c"]


def test_a_pass_in_many_pieces_finds_the_same(library, monkeypatch):
    query = torch.randn(16, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr("xmafast.index.library._Embeddings.RESIDENT", 0)
    monkeypatch.setattr("xmafast.index.scoring.PIECE", 16 * 7)
    monkeypatch.setattr("xmafast.index.scoring.BLOCK", 16 * 11)
    fresh = Index(library.path)
    for header in ("mean", "text-conditioned", "frame"):
        for filters in (Filters(), Filters(start=1.0), Filters(path="odd/*")):
            wanted = library.search_vector(query, topk=4, header=header, filters=filters)
            found = fresh.search_vector(query, topk=4, header=header, filters=filters)
            assert [(hit.id, pytest.approx(hit.score, abs=1e-6)) for hit in wanted] == [(hit.id, hit.score) for hit in found]


def test_filters_by_path_and_time(clips_index):
    library, folder = clips_index
    index = Index(library)
    modified = {name: (folder / name).stat().st_mtime for name in index.ids}
    found = index.search_vector(torch.ones(192), topk=100, filters=Filters(path="sub/*.mp4"))
    assert sorted(hit.id for hit in found) == [name for name in index.ids if name.startswith("sub/")]
    middle = sorted(modified.values())[2]
    for filters, keep in ((Filters(since=middle), lambda t: t >= middle), (Filters(until=middle), lambda t: t <= middle)):
        found = index.search_vector(torch.ones(192), topk=100, filters=filters)
        assert sorted(hit.id for hit in found) == sorted(name for name, t in modified.items() if keep(t))
    for hit in index.search_vector(torch.ones(192), topk=100, filters=Filters(start=1.0, end=2.0)):
        assert 1 <= hit.best_time < 2
        assert {t for t, w in zip(hit.times, hit.weights, strict=True) if w} == {t for t in hit.times if 1 <= t < 2}
    with pytest.raises(UsageError, match="leave none of the 6 items"):
        index.search_vector(torch.ones(192), filters=Filters(path="nowhere/*"))


def test_a_text_scores_as_the_model_says(clips_index, model):
    library, _ = clips_index
    index = Index(library, {"frozen": model})
    hits = index.search("rainbow", topk=6)
    assert hits[0].id == "sub/1f308.mp4"
    assert hits[0].source.is_file()
    assert sum(hits[0].weights) == pytest.approx(1, abs=1e-5)
    assert hits[0].best_time == hits[0].times[int(np.argmax(hits[0].weights))]
    frames = torch.from_numpy(index.read(hits[0].source))[None]
    assert model(["rainbow"], frames, torch.ones(1, frames.shape[1])).item() == pytest.approx(hits[0].score, abs=1e-3)
    assert hits == Index(library).search("rainbow", topk=6)  # with the backbone that the library names


def test_a_clip_and_a_frame_of_it_find_it(clips_index):
    library, folder = clips_index
    index = Index(library)
    by_clip = index.search_clip(folder / "1f300.mp4")[0]
    assert (by_clip.id, by_clip.score) == ("1f300.mp4", pytest.approx(1, abs=1e-3))
    frames = index.read(folder / "1f300.mp4")
    by_image = index.search_image(frames[1])[0]
    assert (by_image.id, by_image.frame, by_image.score) == ("1f300.mp4", 1, pytest.approx(1, abs=1e-3))
    assert by_image.weights[1] == max(by_image.weights)


def test_pictures_paths_and_tokens_lead_to_items_alone(clips_index):
    library, folder = clips_index
    index = Index(library)
    hit = index.search("rainbow")[0]
    assert index.id_of(hit.token) == hit.id
    assert index.source(hit.id) == folder / hit.id
    assert all(picture[:2] == b"\xff\xd8" for picture in hit.pictures())
    assert len(hit.pictures()) == len(hit.times)
    for name in ("../1f300.mp4", "nowhere.mp4", "", "text.mp4"):
        with pytest.raises(DataError, match="holds no item"):
            index.source(name)
        with pytest.raises(DataError, match="holds no item"):
            index.id_of(name)
    with pytest.raises(DataError, match="no frame 99"):
        index.thumbnail(hit.id, 99)


def test_what_is_no_query_is_refused(library):
    vectors = torch.ones(16), torch.ones(3)
    for wrong in (
        lambda: library.search(" "),
        lambda: library.search_vector(vectors[1]),
        lambda: library.search_vector(vectors[0], topk=0),
    ):
        with pytest.raises(UsageError):
            wrong()
    with pytest.raises(UsageError, match="Did you mean 'made'"):
        library.search_vector(torch.ones(16), adapter="maid")
    with pytest.raises(UsageError, match="finite"):
        library.search_vector(torch.full((16,), torch.nan))


# updating


def test_only_what_is_new_or_changed_is_decoded(model, tmp_path):
    path, source = tmp_path / "lib.xma", Pictures(tmp_path, {"a": 1, "b": 2, "c": 3, "d": 4})
    update(path, source, add={"one": (model, "a test")})
    again = Pictures(tmp_path, source.seeds)
    summary = update(path, again)
    assert (again.asked, summary.unchanged) == ([], 4)
    changed = Pictures(tmp_path, {"a": 1, "b": 20, "e": 3, "f": 6})  # b changed, c renamed to e, d gone, f new
    summary = update(path, changed)
    assert changed.asked == ["b", "f"]
    counts = {key: getattr(summary, key) for key in ("items", "added", "changed", "moved", "deleted", "unchanged", "encoded")}
    assert counts == {"items": 4, "added": 1, "changed": 1, "moved": 1, "deleted": 1, "unchanged": 1, "encoded": 2}
    fresh = tmp_path / "fresh.xma"
    update(fresh, Pictures(tmp_path, changed.seeds), add={"one": (model, "a test")})
    assert_same(Index(path), Index(fresh))


def test_a_touched_file_is_hashed_and_not_decoded(clips_index, tmp_path, monkeypatch):
    library, folder = clips_index
    own, copy = shutil.copytree(folder, tmp_path / "clips"), shutil.copytree(library, tmp_path / "lib.xma")
    with sqlite3.connect(copy / CATALOG) as catalog:
        catalog.execute("UPDATE meta SET value = ? WHERE key = 'root'", (f'"{own}"',))
    for name in ("cut.mp4", "text.mp4", "nothing.png"):
        (own / name).unlink()
    os.utime(own / "1f300.mp4", (1, 1))
    monkeypatch.setattr("xmafast.index.sources.build_cache", lambda *a, **k: pytest.fail("it is decoded"))
    summary = Index.build(copy)
    assert (summary.unchanged, summary.failed) == (6, 0)
    assert Index(copy).search_vector(torch.ones(192), filters=Filters(until=2))[0].id == "1f300.mp4"


def assert_same(one, other):
    assert one.ids == other.ids
    for name in one.ids:
        assert one.times(name) == other.times(name)
        for i in range(len(one.times(name))):
            assert one.thumbnail(name, i) == other.thumbnail(name, i)
        assert all(np.array_equal(one.embeddings(name, each), other.embeddings(name, each)) for each in one.adapters)
    assert all(np.array_equal(one.pooled(each), other.pooled(each)) for each in one.adapters)


def rows_of(path):
    """The files of a compacted library by what they are called, without the number."""
    with Writer(path) as writer:
        writer.compact()
    return {file.name.rpartition("-")[0]: file.read_bytes() for file in path.glob("*.rows")}


@pytest.mark.parametrize("count", [16, pytest.param(10_000, marks=pytest.mark.slow)])
def test_files_added_one_by_one_or_at_once_give_the_same_index(tmp_path, count):
    names = [f"{i:05}.mp4" for i in range(count)]
    fill(tmp_path / "at-once.xma", names)
    order = np.random.default_rng(0).permutation(count)
    one, items = adapter(), {}
    meta = {"root": str(tmp_path / "videos"), "kind": "folder", **indexing.SETTINGS, "xmafast_version": "0"}
    lots = max(0, count - 200)  # of ten thousand the last 200 one by one, the others 500 at a time
    for group in [*np.split(order[:lots], range(500, lots, 500)), *order[lots:, None]]:
        with Writer(tmp_path / "one.xma") as writer:
            for i in group:
                new, (frames, pooled) = indexing.item(names[i]), made(names[i])
                items[new.id] = new
                writer.add_content(new.hash, np.arange(len(frames)), [f"{new.id}/{j}".encode() for j in range(len(frames))])
                writer.add_vectors(one.model, new.hash, frames, pooled)
            if len(group):
                writer.publish(items.values(), {"made": one}, {}, meta)
    one, at_once = Index(tmp_path / "one.xma"), Index(tmp_path / "at-once.xma")
    assert_same(one, at_once)
    query = torch.randn(16, generator=torch.Generator().manual_seed(0))
    for header in ("mean", "text-conditioned", "frame"):
        found = [[(hit.id, hit.score) for hit in index.search_vector(query, topk=20, header=header)] for index in (one, at_once)]
        assert found[0] == found[1]
    assert rows_of(tmp_path / "one.xma") == rows_of(tmp_path / "at-once.xma")


def test_a_model_gives_the_same_embeddings_one_by_one_or_at_once(model, tmp_path):
    seeds = {name: i for i, name in enumerate("abcd")}
    update(tmp_path / "at-once.xma", Pictures(tmp_path, seeds), add={"one": (model, "a test")})
    for i in range(1, 5):
        update(tmp_path / "one.xma", Pictures(tmp_path, dict(list(seeds.items())[-i:])), add={"one": (model, "a test")})
    assert_same(Index(tmp_path / "one.xma"), Index(tmp_path / "at-once.xma"))
    assert rows_of(tmp_path / "one.xma") == rows_of(tmp_path / "at-once.xma")


def test_a_second_adapter_shares_items_and_thumbnails_and_can_be_dropped(model, other, tmp_path):
    path, seeds = tmp_path / "lib.xma", {"a": 1, "b": 2}
    update(path, Pictures(tmp_path, seeds), add={"one": (model, "a test")})
    thumbs = (path / "thumbs-0.rows").read_bytes()
    update(path, Pictures(tmp_path, seeds), add={"two": (other, "runs/two")})
    assert (path / "thumbs-0.rows").read_bytes() == thumbs
    index = Index(path)
    assert list(index.adapters) == ["one", "two"]
    assert not np.array_equal(index.embeddings("a", "one"), index.embeddings("a", "two"))
    with pytest.raises(UsageError, match="several adapters; name one of: one, two"):
        index.search("x")
    assert index.search("x", adapter="one") != index.search("x", adapter="two")
    assert index.retriever("two").backbone is index.retriever("one").backbone
    assert index.retriever("two").method.name == "lora"  # from the library's own copy
    assert [hit.score for hit in index.search("x", adapter="two")] == [
        hit.score for hit in Index(path, {"two": other}).search("x", adapter="two")
    ]
    update(path, Pictures(tmp_path, seeds), drop=["one"])
    assert index.refresh()
    assert list(index.adapters) == ["two"]
    assert len(list(path.glob("*-frames-*.rows"))) == 1
    with pytest.raises(UsageError, match="no adapter left"):
        update(path, Pictures(tmp_path, seeds), drop=["two"])


def test_other_weights_under_a_name_are_refused_until_it_is_rebuilt(model, other, tmp_path):
    path, source = tmp_path / "lib.xma", Pictures(tmp_path, {"a": 1})
    update(path, source, add={"one": (model, "a test")})
    with pytest.raises(CacheError, match=r"other weights than runs/x holds now. Add --rebuild"):
        update(path, source, add={"one": (other, "runs/x")})
    with pytest.raises(CacheError, match="made with other weights"):
        Index(path, {"one": other}).search("x")
    before = Index(path)
    update(path, source, add={"one": (other, "runs/x")}, rebuild=True)
    after = Index(path)
    assert not np.array_equal(before.embeddings("a"), after.embeddings("a"))  # a reader keeps what it has opened
    assert after.adapters["one"]["method"] == "lora"


def test_failures_are_kept_with_their_reason_and_tried_again(clips_index):
    library, _ = clips_index
    failures = Index(library).failures
    assert sorted(failures) == ["cut.mp4", "nothing.png", "text.mp4"]
    assert failures["text.mp4"] == "it is text, not a video"
    assert "cut off" in failures["cut.mp4"]
    assert "0 bytes" in failures["nothing.png"]


def test_a_failure_is_mended_by_the_next_update(model, tmp_path):
    path, source = tmp_path / "lib.xma", Pictures(tmp_path, {"a": 1, "b": 2})
    source.failing = {"b": "it is damaged"}
    assert update(path, source, add={"one": (model, "x")}).problems == [("b", "it is damaged")]
    source.failing = {}
    assert update(path, source).added == 1
    assert Index(path).failures == {}


def test_a_source_of_which_nothing_can_be_read_changes_nothing(model, tmp_path):
    path, source = tmp_path / "lib.xma", Pictures(tmp_path, {"a": 1})
    source.failing = {"a": "it is damaged"}
    with pytest.raises(DataError, match=r"Nothing in .* can be indexed: a: it is damaged. Nothing was changed"):
        update(path, source, add={"one": (model, "x")})
    assert not path.exists()
    source.failing = {}
    update(path, source, add={"one": (model, "x")})
    changed = Pictures(tmp_path, {"a": 2})
    changed.failing = {"a": "it is damaged"}
    with pytest.raises(DataError):
        update(path, changed)
    assert Index(path).ids == ["a"]


def test_links_out_of_the_folder_are_failures(model, tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    video = demo_split("train", 1).videos[0].path
    shutil.copy(video, clips / "own.mp4")
    (clips / "link.mp4").symlink_to(video)
    Index.build(tmp_path / "lib.xma", clips, model, frames=2, workers=1)
    index = Index(tmp_path / "lib.xma")
    assert (index.ids, index.failures) == (["own.mp4"], {"link.mp4": "it is a link that leaves the folder"})


def test_a_cache_is_indexed_without_its_videos(model, small_caches, tmp_path):
    summary = Index.build(tmp_path / "lib.xma", small_caches / "test.h5", model)
    assert summary.items == 12
    index = Index(tmp_path / "lib.xma", {"demo": model})
    hit = index.search("thumbs up")[0]
    assert hit.split == "test"
    assert hit.id.startswith("test/")
    assert hit.captions
    assert Index.build(tmp_path / "lib.xma").unchanged == 12
    with pytest.raises(UsageError, match="is a cache, whose frames are decided"):
        Index.build(tmp_path / "lib.xma", frames=3)


def test_holes_are_closed_when_there_are_many(tmp_path):
    fill(tmp_path / "lib.xma", [f"{i}" for i in range(30)])
    before = Index(tmp_path / "lib.xma")
    fill(tmp_path / "lib.xma", ["3", "4"], keep=False)
    after = Index(tmp_path / "lib.xma")
    assert after.ids == ["3", "4"]
    assert np.array_equal(before.embeddings("3"), after.embeddings("3"))  # whose file has no name any more
    assert np.array_equal(after.embeddings("3"), made("3")[0])
    assert {file.name.rpartition("-")[2] for file in (tmp_path / "lib.xma").glob("*.rows")} == {"1.rows"}


# what is refused, and what is damaged


def test_a_second_writer_is_refused_in_one_sentence(model, tmp_path):
    with locked(tmp_path / "lib.xma"), pytest.raises(CacheError, match="is being written by process"):
        update(tmp_path / "lib.xma", Pictures(tmp_path, {"a": 1}), add={"one": (model, "x")})


def test_other_settings_and_other_folders_are_refused(model, tmp_path):
    (tmp_path / "a").mkdir()
    update(tmp_path / "lib.xma", Pictures(tmp_path / "a", {"a": 1}), add={"one": (model, "x")})
    with pytest.raises(UsageError, match="name another --out"):
        update(tmp_path / "lib.xma", Pictures(tmp_path, {"a": 1}))
    with pytest.raises(UsageError, match=r"indexed with frames 3, and now frames 5"):
        update(tmp_path / "lib.xma", Pictures(tmp_path / "a", {"a": 1}, {"frames": 5, "sampling": "fps", "size": 96}))
    (tmp_path / "a").rename(tmp_path / "b")  # moved as a whole: the same files elsewhere
    assert update(tmp_path / "lib.xma", Pictures(tmp_path / "b", {"a": 1})).unchanged == 1
    assert Index(tmp_path / "lib.xma").source("a") == tmp_path / "b" / "a"


def test_sources_that_are_not_there_change_nothing(model, tmp_path):
    (tmp_path / "clips").mkdir()
    with pytest.raises(DataError, match="holds no videos and no images"):
        Index.build(tmp_path / "lib.xma", tmp_path / "clips", model)
    with pytest.raises(DataError, match="does not exist"):
        Index.build(tmp_path / "lib.xma", tmp_path / "nowhere", model)
    with pytest.raises(UsageError, match="does not say yet what it is an index of"):
        Index.build(tmp_path / "lib.xma")
    assert not (tmp_path / "lib.xma").exists()
    (tmp_path / "mine.xma").mkdir()
    (tmp_path / "mine.xma" / "diary").write_text("x")
    with pytest.raises(CacheError, match="is no library"):
        update(tmp_path / "mine.xma", Pictures(tmp_path, {"a": 1}), add={"one": (model, "x")})
    assert (tmp_path / "mine.xma" / "diary").read_text() == "x"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda lib: shutil.rmtree(lib), "There is no library"),
        (lambda lib: (lib / CATALOG).unlink(), "holds no catalog.sqlite"),
        (lambda lib: (lib / CATALOG).write_bytes(b"hello" * 1000), "is damaged"),
        (lambda lib: os.truncate(lib / CATALOG, 3000), "is damaged"),
        (lambda lib: next(lib.glob("*-frames-0.rows")).unlink(), "frames-0.rows is missing"),
        (lambda lib: os.truncate(next(lib.glob("*-frames-0.rows")), 10), "frames-0.rows has 10 of"),
        (lambda lib: os.truncate(lib / "thumbs-0.rows", 0), "thumbs-0.rows has 0 of"),
        (lambda lib: change(lib, f"PRAGMA user_version = {SCHEMA + 1}"), f"index format {SCHEMA + 1}, and this version reads {SCHEMA}"),
        (lambda lib: change(lib, "PRAGMA application_id = 1"), "not a catalogue of xmafast"),
        (lambda lib: change(lib, "UPDATE vectors SET frames_at = 1000000"), "points past"),
        (lambda lib: change(lib, "DELETE FROM vectors"), "is damaged"),
        (lambda lib: change(lib, "DROP TABLE items"), "is damaged"),
        (lambda lib: change(lib, "UPDATE meta SET value = 'x'"), "is damaged"),
    ],
)
def test_what_is_no_sound_library_is_said_in_one_sentence(tmp_path, harm, message):
    fill(tmp_path / "lib.xma", ["a", "b"])
    harm(tmp_path / "lib.xma")
    with pytest.raises(CacheError, match=message) as caught:
        Index(tmp_path / "lib.xma")
    assert "\n" not in str(caught.value)


def change(library, statement):
    with sqlite3.connect(library / CATALOG) as catalog:
        catalog.execute(statement)


def test_a_damaged_row_is_found_and_made_anew(model, tmp_path):
    path, source = tmp_path / "lib.xma", Pictures(tmp_path, {"a": 1, "b": 2, "c": 3})
    update(path, source, add={"one": (model, "x")})
    sound = {name: Index(path).embeddings(name) for name in "abc"}
    frames = next(path.glob("*-frames-0.rows"))
    data = bytearray(frames.read_bytes())
    data[-1] ^= 1
    frames.write_bytes(bytes(data))
    index = Index(path)
    assert index.damaged() == ["c"]
    source.asked = []
    update(path, source, damaged=Snapshot(path).damaged())
    assert source.asked == ["c"]
    index.refresh()
    assert not Index(path).damaged()
    assert all(np.array_equal(Index(path).embeddings(name), frames) for name, frames in sound.items())


def test_a_search_sees_the_library_before_an_update_or_after_it(tmp_path):
    """Searches in threads, while another one takes over updates: what they find belongs together."""
    fill(tmp_path / "lib.xma", ["a", "b", "c"])
    index, stop, wrong = Index(tmp_path / "lib.xma"), threading.Event(), []
    states = [{"a", "b", "c"}, {"c", "d", "e", "f"}]

    def look():
        while not stop.is_set():
            hits = index.search_vector(torch.ones(16), topk=10)
            if {hit.id for hit in hits} not in states or not all(hit.pictures()[0] == f"{hit.id}/0".encode() for hit in hits):
                wrong.append(hits)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for names in [*states, *states]:
        fill(tmp_path / "lib.xma", sorted(names), keep=False)
        index.refresh()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert set(index.ids) == states[1]


def test_preparing_loads_what_the_first_query_would(clips_index):
    index = Index(clips_index[0])
    index.prepare()
    assert {"gram", "lengths"} <= vars(next(iter(index._stored.values()))).keys()


def test_an_update_of_nothing_leaves_readers_alone(model, tmp_path):
    path, source = tmp_path / "lib.xma", Pictures(tmp_path, {"a": 1})
    update(path, source, add={"one": (model, "x")})
    index = Index(path)
    update(path, source)
    assert not index.refresh()


def test_scores_are_those_of_the_kernels(library):
    """The library's own pass over float16 rows against the header's kernel on the same numbers."""
    query = torch.randn(1, 16, generator=torch.Generator().manual_seed(9))
    names = [name for name in library.ids if len(library.times(name)) == 3]
    frames = torch.stack([torch.from_numpy(library.embeddings(name)).float() for name in names])
    for header, tolerance in (("text-conditioned", 1e-5), ("mean", 2e-3)):
        wanted = similarity(query, frames, torch.ones(frames.shape[:2]), header=header)[0]
        found = {hit.id: hit.score for hit in library.search_vector(query[0], topk=100, header=header)}
        assert [found[name] for name in names] == pytest.approx(wanted.tolist(), abs=tolerance)
