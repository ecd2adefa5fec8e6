"""The jpeg codec: the same frames but for compression, in a fraction of the bytes, under the rules of the raw cache."""

import pickle

import numpy as np
import pytest
from support import demo_split

from xmafast.cache import FrameCache, Status, build_cache, repair, verify
from xmafast.errors import CacheError, UsageError

OPTIONS = {"frames": 3, "sampling": "uniform", "size": 96, "workers": 1}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec")
    for codec in ("raw", "jpeg"):
        build_cache(demo_split("train", 6), folder / f"{codec}.h5", codec=codec, **OPTIONS)
    return FrameCache(folder / "raw.h5"), FrameCache(folder / "jpeg.h5")


def test_the_frames_are_those_of_the_raw_cache_but_for_compression(pair):
    raw, jpeg = pair
    rows = np.array([4, 0, 5])
    (a, mask), (b, other) = raw.read(rows), jpeg.read(rows)
    assert b.shape == a.shape
    assert (mask == other).all()
    error = (a.float() - b.float()).square().mean()
    assert 0 < error < 255**2 / 10**4  # 40 dB
    assert np.array_equal(jpeg.frames_of(4), b[0].numpy()[: jpeg.num_frames[4]])
    assert np.array_equal(raw.timestamps, jpeg.timestamps)


def test_it_takes_a_fraction_of_the_disk_and_holds_no_hole(pair):
    raw, jpeg = pair
    assert jpeg.path.stat().st_size < raw.path.stat().st_size / 3
    assert jpeg.lengths.sum() == len(jpeg.data)
    assert not list(jpeg.path.parent.glob("*.p*"))


def test_it_crosses_process_borders_and_has_no_array_of_frames(pair):
    again = pickle.loads(pickle.dumps(pair[1]))
    assert np.array_equal(again.frames_of(1), pair[1].frames_of(1))
    with pytest.raises(CacheError, match="holds jpeg images"):
        _ = again.frames


def test_more_videos_and_damaged_ones_are_written_into_a_packed_file(tmp_path):
    path = tmp_path / "train.h5"
    split = demo_split("train", 8)
    build_cache(split, path, codec="jpeg", limit=3, **OPTIONS)
    first = FrameCache(path).frames_of(2)
    summary = build_cache(split, path, codec="jpeg", **OPTIONS)
    assert (summary.done, summary.present) == (5, 3)
    cache = FrameCache(path, writable=True)
    assert np.array_equal(cache.frames_of(2), first)
    cache.data[int(cache.start[4]) + 700] ^= 255
    cache.flush()
    found = verify(path)
    assert found.damaged == [cache.ids[4]]
    assert repair(path, found, workers=1).done == 1
    assert verify(path).intact == 8
    assert build_cache(split, path, codec="jpeg", **OPTIONS).present == 8
    assert build_cache(split, path, codec="jpeg", limit=2, **OPTIONS).present == 2
    assert len(FrameCache(path).rows) == 8


def test_a_row_that_is_no_image_any_more_says_how_to_mend_it(tmp_path):
    path = tmp_path / "train.h5"
    build_cache(demo_split("train", 2), path, codec="jpeg", **OPTIONS)
    cache = FrameCache(path, writable=True)
    cache.data[: int(cache.lengths[0, 0])] = 0
    with pytest.raises(CacheError, match="damaged; mend it with: xmafast verify"):
        cache.read(np.array([0]))


def test_a_failed_video_of_a_jpeg_cache_is_a_row_with_its_reason(tmp_path, clips):
    from xmafast.datasets import load_split

    sorted(clips.glob("*.mp4"))[1].write_bytes(b"\0" * 999)
    path = tmp_path / "all.h5"
    summary = build_cache(load_split("folder", clips, "train"), path, codec="jpeg", **OPTIONS)
    assert (summary.done, summary.failed) == (5, 1)
    cache = FrameCache(path)
    (row,) = np.flatnonzero(cache.status == Status.FAILED)
    assert cache.lengths[row].sum() == 0
    assert cache.frames_of(row).shape == (0, 96, 96, 3)
    assert b"damaged" in cache.error[row]


def test_an_unknown_codec_and_a_change_of_codec_are_refused(tmp_path):
    path = tmp_path / "train.h5"
    build_cache(demo_split("train", 2), path, codec="jpeg", **OPTIONS)
    with pytest.raises(CacheError, match="codec jpeg"):
        build_cache(demo_split("train", 2), path, **OPTIONS)
    with pytest.raises(UsageError, match="Did you mean 'jpeg'"):
        build_cache(demo_split("train", 2), tmp_path / "x.h5", codec="jpg", **OPTIONS)
