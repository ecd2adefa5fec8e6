import json

import pytest

from xmafast.datasets import demo, load_split, usable_splits
from xmafast.errors import DataError, UsageError


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def msrvtt(tmp_path):
    write(
        tmp_path / "MSRVTT_JSFUSION_test.csv",
        'key,vid_key,video_id,sentence\nret0,msr1,video1,a woman sings\nret1,msr2,video2,"two, men"\n',
    )
    write(tmp_path / "MSRVTT_train.9k.csv", "video_id\nvideo5\nvideo6\n")
    sentences = [{"video_id": f"video{v}", "caption": f"caption {i} of {v}", "sen_id": i} for v in (5, 6, 7) for i in range(3)]
    write(tmp_path / "MSRVTT_data.json", json.dumps({"sentences": sentences, "videos": []}))
    write(tmp_path / "videos" / "all" / "video5.mp4", "x")
    write(tmp_path / "videos" / "video2.webm", "x")
    return tmp_path


def test_demo_has_450_and_150_clips_with_the_label_as_test_query():
    train, test = (load_split("demo", demo.ROOT, name) for name in ("train", "test"))
    assert (len(train.videos), len(test.videos)) == (450, 150)
    assert all(v.path and v.path.is_file() for v in train.videos + test.videos)
    assert {len(v.captions) for v in test.videos} == {1}
    assert sum(len(v.captions) for v in train.videos) > 3 * 440
    assert not {v.id for v in train.videos} & {v.id for v in test.videos}


def test_msrvtt_reads_the_published_files_and_finds_videos_anywhere(msrvtt):
    test, train = load_split("msrvtt", msrvtt, "test"), load_split("msrvtt", msrvtt, "train")
    assert [(v.id, v.captions) for v in test.videos] == [("video1", ("a woman sings",)), ("video2", ("two, men",))]
    assert [v.path and v.path.name for v in test.videos] == [None, "video2.webm"]
    assert [len(v.captions) for v in train.videos] == [3, 3]
    assert train.videos[0].path.name == "video5.mp4"


def test_msrvtt_names_the_missing_file_and_where_it_goes(msrvtt):
    (msrvtt / "MSRVTT_data.json").unlink()
    assert usable_splits("msrvtt", msrvtt)[0] == ["test"]
    with pytest.raises(DataError, match=rf"needs MSRVTT_data\.json, .* put it at {msrvtt}/MSRVTT_data\.json"):
        load_split("msrvtt", msrvtt, "train")
    with pytest.raises(UsageError, match="has no val split; it has: train, test"):
        load_split("msrvtt", msrvtt, "val")


def test_msrvtts_malformed_files_name_the_line_or_the_field(msrvtt):
    write(msrvtt / "MSRVTT_JSFUSION_test.csv", "video_id,sentence\nvideo1,fine\nvideo2\n")
    with pytest.raises(DataError, match="line 3: column 'sentence' is empty"):
        load_split("msrvtt", msrvtt, "test")
    write(msrvtt / "MSRVTT_JSFUSION_test.csv", "")
    with pytest.raises(DataError, match="holds no rows"):
        load_split("msrvtt", msrvtt, "test")
    write(msrvtt / "MSRVTT_data.json", "[]")
    with pytest.raises(DataError, match="not MSR-VTT's annotation file"):
        load_split("msrvtt", msrvtt, "train")


def test_the_real_1k_a_file_has_a_thousand_pairs_and_five_videos(test_data):
    split = load_split("msrvtt", test_data / "msrvtt-sample", "test")
    assert len(split.videos) == sum(len(v.captions) for v in split.videos) == 1000
    assert sum(v.path is not None for v in split.videos) == 5


def test_unknown_data_sets_and_absent_folders(tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'msrvtt'"):
        load_split("msrvt", tmp_path, "test")
    with pytest.raises(DataError, match=r"There is no folder .*absent"):
        load_split("msrvtt", tmp_path / "absent", "test")


def test_a_folder_with_a_csv_a_split_column_and_sub_folders(tmp_path):
    write(tmp_path / "a" / "x.mp4", "x")
    write(tmp_path / "captions.csv", "video,caption,split\na/x.mp4,one,train\na/x.mp4,two,train\ny.mp4,three,test\n")
    train, test = load_split("folder", tmp_path, "train"), load_split("folder", tmp_path, "test")
    assert [(v.id, v.captions, v.path is not None) for v in train.videos] == [("a/x.mp4", ("one", "two"), True)]
    assert [(v.id, v.path) for v in test.videos] == [("y.mp4", None)]


def test_a_folder_with_json_lines_or_text_files_is_split_by_hash(tmp_path):
    for i in range(40):
        write(tmp_path / f"{i}.mp4", "x")
        write(tmp_path / f"{i}.txt", f"caption {i}\n\nsecond {i}\n")
    splits, _ = usable_splits("folder", tmp_path)
    assert splits == ["train", "test"]
    by_text = {name: [(v.id, v.captions) for v in load_split("folder", tmp_path, name).videos] for name in splits}
    assert 2 <= len(by_text["test"]) <= 16
    assert by_text["train"][0][1][1].startswith("second")
    rows = [{"video": i, "captions": list(c)} for name in splits for i, c in by_text[name]]
    write(tmp_path / "captions.jsonl", "\n".join(map(json.dumps, rows)))
    assert {name: [(v.id, v.captions) for v in load_split("folder", tmp_path, name).videos] for name in splits} == by_text


def test_a_folder_without_captions_can_only_be_searched(tmp_path):
    write(tmp_path / "x.mp4", "x")
    assert usable_splits("folder", tmp_path)[0] == ["videos"]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("captions.csv", "", "holds no captions"),
        ("captions.csv", "video,caption\n", "holds no captions"),
        ("captions.csv", "file,text\na,b\n", "no column 'caption'"),
        ("captions.csv", "video,caption\na.mp4,\n", "line 2: the caption is empty"),
        ("captions.csv", "video,caption,split\na.mp4,b,dev\n", "split 'dev' is none of"),
        ("captions.csv", "video,caption,split\na.mp4,b,train\na.mp4,c,test\n", "line 3: a.mp4 is in 'test' here"),
        ("captions.jsonl", "", "holds no captions"),
        ("captions.jsonl", "{\n", "line 1: expected"),
        ("captions.jsonl", '{"video": "a.mp4", "caption": 3}', "line 1: expected"),
        ("captions.jsonl", '{"video": "a.mp4"}', "line 1: expected"),
    ],
)
def test_captions_that_cannot_be_used_name_the_line(tmp_path, name, text, reason):
    write(tmp_path / "a.mp4", "x")
    write(tmp_path / name, text)
    with pytest.raises(DataError, match=reason):
        usable_splits("folder", tmp_path)


def test_a_folder_without_videos(tmp_path):
    with pytest.raises(DataError, match="holds no videos"):
        usable_splits("folder", tmp_path)


def test_captions_that_are_not_utf_8(tmp_path):
    (tmp_path / "captions.csv").write_bytes("video,caption\na.mp4,café\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        usable_splits("folder", tmp_path)
