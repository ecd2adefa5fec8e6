"""Every data set from the files that its authors and the field distribute: real ones where they are, tiny ones everywhere."""

import contextlib
import json
import pickle
import shutil

import numpy as np
import pytest
from published import PUBLISHED, activitynet, lsmdc, msrvtt, msvd, put, vatex

from xmafast.datasets import DATASETS, load_split, usable_splits
from xmafast.datasets.base import Finder
from xmafast.errors import DataError, UsageError
from xmafast.files import IMAGES, VIDEOS

MISSING = "no file of it is there"


def loaded(name, root, split):
    return {video.id: video.captions for video in load_split(name, root, split).videos}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_layout_gives_ids_files_and_captions(name, tmp_path):
    expected = PUBLISHED[name](tmp_path)
    assert usable_splits(name, tmp_path) == (list(expected), [])
    for split, videos in expected.items():
        assert loaded(name, tmp_path, split) == videos
        paths = [video.path for video in load_split(name, tmp_path, split).videos]
        assert all(path is not None and path.is_file() for path in paths), paths
        assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_missing_file_shows_the_tree_with_ticks_and_crosses(name, tmp_path):
    PUBLISHED[name](tmp_path)
    for split, needed in DATASETS[name].FILES.items():
        for names in needed:
            aside = tmp_path / "aside"
            (tmp_path / names[0]).rename(aside)
            with pytest.raises(DataError, match=f"needs {names[0]}") as error:
                load_split(name, tmp_path, split)
            sentence, _, tree = str(error.value).partition("\n")
            assert f"✗ {names[0]}" in tree
            assert str(tmp_path / names[0]) in sentence
            assert tree.count("✗") == 1
            aside.rename(tmp_path / names[0])


@pytest.mark.parametrize("name", PUBLISHED)
def test_broken_annotation_files_get_one_sentence(name, tmp_path):
    PUBLISHED[name](tmp_path)
    for names in {names for needed in DATASETS[name].FILES.values() for names in needed}:
        path = tmp_path / names[0]
        good = path.read_bytes()
        users = [split for split, needed in DATASETS[name].FILES.items() if names in needed]
        for content in (b"", b"{}", b"[]", b'"text"', b"3", b"[3]", b'{"a": 3}', b"[" * 100_000, good[: len(good) // 2]):
            path.write_bytes(content)
            empty_or_text = path.suffix != ".json" or content in (b"{}", b"[]")  # which some loaders can take
            for split in users:
                with contextlib.suppress(DataError) if empty_or_text else pytest.raises(DataError) as error:
                    load_split(name, tmp_path, split)
                assert empty_or_text or "\n" not in str(error.value)
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DataError, match=f"{names[0]}.*UTF-8"):
            load_split(name, tmp_path, users[0])
        path.write_bytes(good)


@pytest.mark.parametrize("name", PUBLISHED)
def test_mutated_annotation_files_load_or_give_one_sentence(name, tmp_path):
    expected = PUBLISHED[name](tmp_path)
    random = np.random.default_rng(sum(name.encode()))
    files = sorted(path for path in tmp_path.iterdir() if path.is_file())
    for _ in range(40):
        path = files[random.integers(len(files))]
        good = path.read_bytes()
        content = bytearray(good)
        for _ in range(random.integers(1, 6)):
            where = int(random.integers(len(content)))
            kind = random.integers(4)
            if kind == 0:
                content[where] ^= 1 << int(random.integers(8))
            elif kind == 1:
                del content[where : where + int(random.integers(1, 20))]
            elif kind == 2:
                content[where:where] = random.bytes(3)
            else:
                content[where:where] = content[: int(random.integers(1, 40))]
        path.write_bytes(content)
        for split in expected:
            with contextlib.suppress(DataError):
                assert all(isinstance(text, str) and text for video in load_split(name, tmp_path, split).videos for text in video.captions)
        path.write_bytes(good)


OUTSIDE = ("../../etc/passwd", "/etc/passwd", "videos/../../x", "..\\x", "C:\\x")


@pytest.mark.parametrize("bad", OUTSIDE)
@pytest.mark.parametrize("name", PUBLISHED)
def test_an_id_that_leaves_the_root_is_refused(name, bad, tmp_path):
    inside = tmp_path / "root"
    expected = PUBLISHED[name](inside)
    first = next(iter(expected["test"]))
    quoted = json.dumps(bad)[1:-1]
    for path in inside.iterdir():
        if path.is_file():
            text = path.read_text()
            path.write_text(text.replace(first, quoted if path.suffix == ".json" else bad))
    with pytest.raises(DataError, match="leaves the data set's folder") as error:
        load_split(name, inside, "test")
    assert repr(bad) in str(error.value)


def test_a_link_that_leaves_the_root_is_refused(tmp_path):
    root = tmp_path / "root"
    msvd(root)
    secret = tmp_path / "secret.avi"
    secret.write_text("x")
    clip = next((root / "YouTubeClips").glob("-4wsuPCjDBc_0_*"))
    clip.unlink()
    clip.symlink_to(secret)
    with pytest.raises(DataError, match=r"is a link that leaves the data set's folder"):
        load_split("msvd", root, "train")
    clip.unlink()
    clip.symlink_to(next((root / "YouTubeClips").glob("-4wsuPCjDBc_1_*")))
    assert load_split("msvd", root, "train").videos[0].path == clip


def test_msrvtts_variants_share_the_folder(tmp_path):
    expected = msrvtt(tmp_path)
    assert list(loaded("msrvtt-7k", tmp_path, "train")) == ["video0", "video1", "video2", "video3"]
    assert loaded("msrvtt-7k", tmp_path, "test") == expected["test"]
    assert len(loaded("msrvtt-full", tmp_path, "train")) == 8
    assert loaded("msrvtt-full", tmp_path, "val") == {"video6513": ("val 0", "val 1")}
    assert loaded("msrvtt-full", tmp_path, "test") == {"video9999": ("last",)}
    assert load_split("msrvtt-7k", tmp_path, "train").dataset == "msrvtt-7k"
    (tmp_path / "MSRVTT_data.json").rename(tmp_path / "MSRVTT_Videodatainfo.json")
    assert loaded("msrvtt", tmp_path, "train") == expected["train"]
    with pytest.raises(UsageError, match="has no val split"):
        load_split("msrvtt", tmp_path, "val")


def test_msvds_captions_as_a_pickle_and_as_text(tmp_path):
    expected = msvd(tmp_path)
    captions = json.loads((tmp_path / "captions_msvd.json").read_text())
    (tmp_path / "captions_msvd.json").unlink()
    words = {i: [sentence.split() for sentence in sentences] for i, sentences in captions.items()}
    for version in range(6):
        (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(words, version))
        assert loaded("msvd", tmp_path, "test") == expected["test"]
    (tmp_path / "raw-captions.pkl").unlink()
    lines = ["# notice", *(f"{i} {sentence}" for i, sentences in captions.items() for sentence in sentences)]
    (tmp_path / "AllVideoDescriptions.txt").write_text("\n".join(lines))
    assert loaded("msvd", tmp_path, "test") == expected["test"]
    (tmp_path / "AllVideoDescriptions.txt").write_text("id_without_sentence\n")
    with pytest.raises(DataError, match="line 1: expected an id"):
        load_split("msvd", tmp_path, "test")


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_with_a_class_in_it_is_not_run(tmp_path):
    msvd(tmp_path)
    (tmp_path / "captions_msvd.json").unlink()
    path, mark = tmp_path / "raw-captions.pkl", tmp_path / "mark"
    for version in range(6):
        path.write_bytes(pickle.dumps({"a": [[_Evil(mark)]]}, version))
        with pytest.raises(DataError, match="holds more than dicts, lists and strings"):
            load_split("msvd", tmp_path, "test")
    good = pickle.dumps({"a": [["b"]]}, 4)
    for content in (
        b"",
        b"\x80",
        good[:-3],
        b"}r\xff\xff\xff\x7f.",
        b"}p-5\n.",
        b"0.",
        b"(i",
        pickle.dumps([1]),
        pickle.dumps({"a": [[{}]]}),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"raw-captions\.pkl"):
            load_split("msvd", tmp_path, "test")
    assert not mark.exists()


def test_vatex_in_hgrs_files(tmp_path):
    expected = vatex(tmp_path)
    captions = {i: list(texts) for videos in expected.values() for i, texts in videos.items()}
    for path in tmp_path.glob("*.*"):
        path.unlink()
    put(tmp_path, {"ref_captions.json": captions})
    assert usable_splits("vatex", tmp_path)[0] == []
    for split, name in (("train", "trn"), ("val", "val"), ("test", "tst")):
        np.save(tmp_path / f"{name}_names.npy", np.array(list(expected[split])))
        assert loaded("vatex", tmp_path, split) == expected[split]
    np.save(tmp_path / "tst_names.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"not a plain \.npy array of ids"):
        load_split("vatex", tmp_path, "test")
    for ids in (np.array(["a"]).view("u4") * 0 + 0x7FFFFFFF, np.array(["a"]), np.array([b"\xff"]), np.array([], "U1"), np.array([1])):
        np.save(tmp_path / "tst_names.npy", ids.view("U1") if ids.dtype == np.uint32 else ids)
        with pytest.raises(DataError):
            load_split("vatex", tmp_path, "test")


def test_activitynet_says_how_many_have_no_annotation(tmp_path):
    activitynet(tmp_path)
    assert load_split("activitynet", tmp_path, "test").remarks == (
        "1 of the 4 videos in val_ids.json have no annotation in val_1.json and are left out.",
    )
    put(tmp_path, {"val_ids.json": ["v_other"]})
    with pytest.raises(DataError, match="none of its 1 ids has a caption"):
        load_split("activitynet", tmp_path, "test")


@pytest.mark.parametrize(
    ("name", "file", "text", "reason"),
    [
        ("lsmdc", "LSMDC16_annos_val.csv", "a\tb\tc\n", "line 1: 3 tab-separated fields, not 6"),
        ("lsmdc", "LSMDC16_annos_val.csv", lsmdc(("a", "b"), ("c", " ")), "line 2: the sentence is empty"),
        ("lsmdc", "LSMDC16_annos_val.csv", lsmdc(("a", "b"), ("../c", "d")), r"line 2: '../c' leaves"),
        ("msvd", "val_list.txt", "a\n\n/b\n", "line 3: '/b' leaves"),
        ("msvd", "val_list.txt", "\n", "lists no video"),
        ("msvd", "captions_msvd.json", '{"a": ["b"],\n "c"', "line 2: it is not JSON"),
        ("msvd", "captions_msvd.json", '{"a": ["\\ud800"]}', "MSVD's captions"),
        ("didemo", "val_data.json", '[{"video": "a"}]', "there is no 'description'"),
        ("vatex", "vatex_validation_v1.0.json", '[{"videoID": "a", "enCap": 3}]', "captions must be text"),
        ("coco", "dataset_coco.json", '{"images": []}', "holds no image of the val split"),
        ("flickr30k", "dataset_flickr30k.json", '{"images": [{"split": "val"}]}', "there is no 'filename'"),
    ],
)
def test_malformed_files_name_the_line_or_the_field(name, file, text, reason, tmp_path):
    PUBLISHED[name](tmp_path)
    put(tmp_path, {file: text})
    with pytest.raises(DataError, match=reason) as error:
        load_split(name, tmp_path, "val")
    assert str(tmp_path / file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("id", "file"),
    [
        ("x", "x.mp4"),
        ("x", "a/b/x.WEBM"),
        ("x.mov", "x.mov"),
        ("x.mov", "x.mp4"),
        ("x.avi", "x.avi.mp4"),
        ("x.", "x."),
        ("x.", "x"),
        ("x.", "x.mp4"),
        ("x.m2ts", "x.M2TS"),
        ("x_00.23.28.886", "x_00.23.28.886.avi"),
        ("a/x.mp4", "a/x.mp4"),
        ("x", MISSING),
    ],
)
def test_videos_are_found_by_id(id, file, tmp_path):
    put(tmp_path, {"x.json": "{}", "y.mp4": "", "X.mp4": "", "x.jpg": ""})
    if file is not MISSING:
        put(tmp_path, {file: ""})
    found = Finder(tmp_path, VIDEOS).find(id, "list.txt")
    assert found == (None if file is MISSING else tmp_path / file)
    assert Finder(tmp_path, IMAGES).find("x", "list.txt") is not None


def test_a_name_in_two_folders_is_taken_from_the_one_that_was_named(tmp_path):
    put(tmp_path, {"train/1.mp4": "", "val/1.mp4": ""})
    assert Finder(tmp_path).find("val/1.mp4", "x") == tmp_path / "val" / "1.mp4"


def test_every_protocol_says_where_the_data_come_from():
    for name, module in DATASETS.items():
        protocol = module.PROTOCOL
        assert protocol.title
        assert protocol.licence
        assert module.SAMPLING in ("fps", "uniform")
        if name != "folder":
            assert protocol.home.startswith("https://")
            assert set(protocol.videos) <= set(module.FILES)
            assert "test" in protocol.videos
    assert {name for name, module in DATASETS.items() if (module.PROTOCOL.frames, module.PROTOCOL.words) == (64, 64)} == {
        "activitynet",
        "didemo",
    }


REAL = [
    ("msrvtt", "msrvtt-sample", "test", 1000, 1000),
    ("msvd", "annotations/msvd", "train", 1200, 48_774),
    ("msvd", "annotations/msvd", "val", 100, 4290),
    ("msvd", "annotations/msvd", "test", 670, 27_763),
    ("didemo", "annotations/didemo", "val", 1065, 1065),
    ("didemo", "annotations/didemo", "test", 1004, 1004),
    ("lsmdc", "annotations/lsmdc", "test", 1000, 1000),
    ("activitynet", "annotations/activitynet", "test", 4917, 4917),
]


@pytest.mark.parametrize(("name", "folder", "split", "videos", "captions"), REAL)
def test_the_real_files_give_the_published_counts(name, folder, split, videos, captions, test_data):
    found = load_split(name, test_data / folder, split)
    assert len(found.videos) == len({video.id for video in found.videos}) == videos
    assert sum(len(video.captions) for video in found.videos) == captions
    protocol = DATASETS[name].PROTOCOL
    assert (protocol.videos[split], protocol.captions[split]) == (videos, captions)
    assert all(video.captions for video in found.videos)


def test_the_real_9k_list(test_data, tmp_path):
    shutil.copy(test_data / "msrvtt-sample" / "MSRVTT_train.9k.csv", tmp_path)
    put(tmp_path, {"MSRVTT_data.json": {"sentences": [{"video_id": "video0", "caption": "x"}]}})
    assert len(load_split("msrvtt", tmp_path, "train").videos) == 9000


@pytest.mark.parametrize("bad", OUTSIDE)
@pytest.mark.parametrize("form", ["captions.csv", "captions.jsonl"])
def test_a_folders_captions_may_not_leave_it(form, bad, tmp_path):
    put(tmp_path, {"a.mp4": "", form: f"video,caption\n{bad},x\n" if form.endswith("csv") else json.dumps({"video": bad, "caption": "x"})})
    with pytest.raises(DataError, match=r"line [12]: .* leaves the data set's folder"):
        usable_splits("folder", tmp_path)


def test_a_folders_captions_over_lines_in_images_and_behind_links(tmp_path):
    root = tmp_path / "root"
    put(root, {"captions.csv": 'video,caption,split\n./a.jpg,"two\nlines \u2028 here",test\n', "a.jpg": ""})
    assert loaded("folder", root, "test") == {"a.jpg": ("two\nlines \u2028 here",)}
    put(tmp_path, {"b.jpg": ""})
    (root / "a.jpg").unlink()
    (root / "a.jpg").symlink_to(tmp_path / "b.jpg")
    with pytest.raises(DataError, match="is a link that leaves"):
        load_split("folder", root, "test")
    for text, reason in (('{"video": "a.jpg", "caption": "x", "split": 3}', "split must be text"), ("[" * 100_000, "line 1: expected")):
        put(root, {"captions.jsonl": text})
        (root / "captions.csv").unlink(missing_ok=True)
        with pytest.raises(DataError, match=reason):
            usable_splits("folder", root)
