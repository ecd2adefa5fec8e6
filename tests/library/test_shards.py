"""A split in several files: each made on its own, read as one, joined into one."""

import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
from support import demo_split

from xmafast.cache import FrameCache, Shard, Status, build_cache, merge, open_splits, repair, verify
from xmafast.cache.torch_dataset import FrameDataset
from xmafast.errors import CacheError, UsageError

OPTIONS = {"frames": 2, "sampling": "uniform", "size": 32, "workers": 1}
COUNT = 3


def split_of_seven():
    split = demo_split("train", 7)
    lost = replace(split.videos[4], path=split.root / "clips" / "absent.mp4")
    return replace(split, videos=[*split.videos[:4], lost, *split.videos[5:]])


@pytest.fixture(scope="module", params=["raw", "jpeg"])
def made(request, tmp_path_factory):
    """(folder with three shards, the same split in one file)."""
    folder = tmp_path_factory.mktemp("shards")
    (folder / "shards").mkdir()
    for i in range(1, COUNT + 1):
        build_cache(split_of_seven(), folder / "shards" / "train.h5", shard=Shard(i, COUNT), codec=request.param, **OPTIONS)
    build_cache(split_of_seven(), folder / "whole.h5", codec=request.param, **OPTIONS)
    return folder / "shards", FrameCache(folder / "whole.h5")


@pytest.fixture
def shards(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "shards")


def same(cache, whole):
    assert cache.ids == whole.ids
    assert cache.captions == whole.captions
    for name in ("status", "num_frames", "timestamps", "bytes", "checksum", "source"):
        assert np.array_equal(getattr(cache, name), getattr(whole, name)), name
    (frames, mask), (expected, real) = cache.read(whole.rows), whole.read(whole.rows)
    assert (frames == expected).all()
    assert (mask == real).all()


def test_a_set_of_shards_reads_as_one_cache(made):
    shards, whole = made
    assert sorted(p.name for p in shards.glob("*.h5")) == [f"train.shard-0{i}-of-03.h5" for i in (1, 2, 3)]
    cache = open_splits(shards)["train"]
    same(cache, whole)
    assert not {"shard", "list_videos"} & set(cache.attributes)
    same(pickle.loads(pickle.dumps(cache)), whole)
    item, expected = FrameDataset(cache)[3], FrameDataset(whole)[3]
    assert (item["frames"] == expected["frames"]).all()
    assert item["id"] == expected["id"]
    same(open_splits(shards / "train.h5")["train"], whole)


def test_merging_gives_the_file_that_one_run_would_have_made(made, shards):
    merged = merge(shards / "train.h5")
    assert (merged.rows, merged.done, merged.shards) == (7, 6, 3)
    assert [p.name for p in shards.iterdir()] == ["train.h5"]
    cache = FrameCache(shards / "train.h5")
    same(cache, made[1])
    assert np.array_equal(cache.data, made[1].data)
    assert "shard" not in cache.attributes
    again = build_cache(split_of_seven(), shards / "train.h5", codec=cache.codec, **OPTIONS)
    assert (again.done, again.present, again.missing) == (0, 6, 1)


def test_shards_may_be_kept_and_merging_again_does_nothing(made, shards):
    for _ in range(2):
        merge(shards / "train.h5", keep=True)
        assert len(list(shards.iterdir())) == 4
    same(open_splits(shards)["train"], made[1])


def test_an_incomplete_set_is_named(shards):
    (shards / "train.shard-02-of-03.h5").unlink()
    for use in (lambda: open_splits(shards), lambda: merge(shards / "train.h5")):
        with pytest.raises(CacheError, match=r"2 of 3 shards of train; repeat .* --shard 2/3\."):
            use()
    with pytest.raises(CacheError, match="no shards"):
        merge(shards / "test.h5")


def test_a_damaged_row_is_not_merged_and_can_be_mended(shards):
    path = shards / "train.shard-02-of-03.h5"
    cache = FrameCache(path, writable=True)
    cache.data.reshape(-1)[7] ^= 1
    cache.flush()
    with pytest.raises(CacheError, match=r"is damaged; mend it with: xmafast verify .*02-of-03\.h5 --repair"):
        merge(shards / "train.h5")
    found = verify(path)
    assert len(found.damaged) == 1
    repair(path, found, workers=1)
    assert merge(shards / "train.h5").done == 7  # the video that was missing lies there by its real name


def test_shards_of_other_settings_or_counts_are_not_joined(shards, tmp_path):
    build_cache(split_of_seven(), tmp_path / "x" / "train.h5", shard=Shard(2, 3), **{**OPTIONS, "sampling": "fps"})
    shutil.copy(tmp_path / "x" / "train.shard-02-of-03.h5", shards)
    with pytest.raises(CacheError, match="differ in"):
        merge(shards / "train.h5")
    build_cache(split_of_seven(), tmp_path / "y" / "train.h5", shard=Shard(1, 2), **OPTIONS)
    shutil.copy(tmp_path / "y" / "train.shard-01-of-02.h5", shards)
    with pytest.raises(CacheError, match="shards of 2 and of 3"):
        merge(shards / "train.h5")


def test_what_was_missing_in_a_shard_can_appear_later(shards, made):
    split = demo_split("train", 7)  # the fifth video is there now
    summary = build_cache(split, shards / "train.h5", shard=Shard(2, 3), codec=made[1].codec, **OPTIONS)
    assert (summary.done, summary.present) == (1, 1)
    assert (FrameCache(shards / "train.shard-02-of-03.h5").status == Status.DONE).all()


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_a_shard_is_i_of_n_counted_from_one(text):
    with pytest.raises(UsageError, match="I/N"):
        Shard.parse(text)
    assert Shard.parse(" 3/16 ") == Shard(3, 16)
