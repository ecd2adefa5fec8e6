import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from support import demo_split

from xmafast.cache import FrameCache, Status, build_cache, open_splits
from xmafast.cache.decode import decode
from xmafast.datasets import load_split
from xmafast.datasets.base import Video
from xmafast.errors import CacheError

OPTIONS = {"frames": 4, "sampling": "uniform", "size": 64, "workers": 2}


def digest(path: Path) -> str:
    return hashlib.sha256(np.ascontiguousarray(FrameCache(path).frames)).hexdigest()


def test_a_row_holds_the_videos_frames(small_caches):
    cache = FrameCache(small_caches / "train.h5")
    video = demo_split("train", 24).videos[5]
    expected = decode(video.path, frames=4, sampling="uniform", size=96, decoder="decord")
    assert cache.ids[5] == video.id
    assert cache.captions[5] == video.captions
    assert np.array_equal(cache.frames[5], expected.frames)
    assert np.array_equal(cache.timestamps[5], expected.timestamps)
    assert cache.source_of(5) == video.path
    frames, mask = cache.read(np.array([5, 7]))
    assert frames.shape == (2, 4, 96, 96, 3)
    assert mask.all()


def test_a_clip_of_a_longer_file_decodes_its_span_alone(tmp_path):
    split = demo_split("train", 2)
    cut = [replace(split.videos[0], interval=(1.0, 2.0)), split.videos[1]]
    build_cache(replace(split, videos=cut), tmp_path / "train.h5", **OPTIONS)
    times = FrameCache(tmp_path / "train.h5").timestamps
    assert times[0].min() > 0.95
    assert times[0].max() < 2.0 < times[1].max()


def test_the_file_is_plain_contiguous_hdf5_with_its_settings(small_caches):
    with h5py.File(small_caches / "train.h5") as file:
        assert file["frames"].chunks is None
        assert file["frames"].dtype == np.uint8
        assert set(file) == {"frames", "status", "num_frames", "timestamps", "bytes", "checksum", "error", "source", "id", "captions"}
        wanted = {"schema", "sampling", "size", "frames", "decoder", "decoder_version", "source_sha256", "xmafast_version"}
        assert wanted <= set(file.attrs)


def test_a_second_build_decodes_nothing_and_changes_nothing(tmp_path):
    path = tmp_path / "train.h5"
    split = demo_split("train", 3)
    assert build_cache(split, path, **OPTIONS).done == 3
    before = path.read_bytes()
    again = build_cache(split, path, **OPTIONS)
    assert (again.done, again.present) == (0, 3)
    assert path.read_bytes() == before


def test_missing_and_broken_videos_are_rows_with_reasons_and_are_tried_again(clips, tmp_path):
    split = load_split("folder", clips, "train")
    names = [v.id for v in split.videos]
    good = [(clips / name).read_bytes() for name in names[:2]]
    (clips / names[0]).unlink()
    (clips / names[1]).write_bytes(b"")
    path = tmp_path / "train.h5"

    def build():
        return build_cache(load_split("folder", clips, "train"), path, **OPTIONS)

    first = build()
    assert (first.done, first.missing, first.failed) == (len(names) - 2, 1, 1)
    assert [(p[0], p[1]) for p in first.problems] == [(names[0], "missing"), (names[1], "failed")]
    assert "0 bytes" in first.problems[1][2]
    cache = FrameCache(path)
    assert cache.status[:2].tolist() == [Status.MISSING, Status.FAILED]
    assert not cache.frames[:2].any()
    assert b"0 bytes" in cache.error[1]

    for name, data in zip(names[:2], good, strict=True):
        (clips / name).write_bytes(data)
    second = build()
    assert (second.done, second.present, second.missing, second.failed) == (2, len(names) - 2, 0, 0)
    cache = FrameCache(path)
    assert cache.frames[0].any()
    assert cache.error[1] == b""
    assert cache.source_of(0) == clips / names[0]


def test_a_video_that_was_exchanged_is_decoded_again(clips, tmp_path):
    path = tmp_path / "train.h5"
    split = load_split("folder", clips, "train")
    build_cache(split, path, **OPTIONS)
    first, second = split.videos[:2]
    first.path.write_bytes(second.path.read_bytes())
    assert build_cache(split, path, **OPTIONS).done == 1
    cache = FrameCache(path)
    assert np.array_equal(cache.frames[0], cache.frames[1])


def test_a_cached_video_may_be_deleted(clips, tmp_path):
    path = tmp_path / "train.h5"
    split = load_split("folder", clips, "train")
    build_cache(split, path, **OPTIONS)
    split.videos[0].path.unlink()
    assert build_cache(split, path, **OPTIONS).present == len(split.videos)


def test_a_changed_list_keeps_the_rows_it_shares(tmp_path):
    path = tmp_path / "train.h5"
    build_cache(demo_split("train", 4), path, **OPTIONS)
    grown = build_cache(demo_split("train", 6), path, **OPTIONS)
    assert (grown.done, grown.present) == (2, 4)
    fresh = tmp_path / "fresh.h5"
    build_cache(demo_split("train", 6), fresh, **OPTIONS)
    assert digest(path) == digest(fresh)
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_a_video_that_moves_to_another_split_keeps_its_row(tmp_path):
    whole, half = tmp_path / "videos.h5", tmp_path / "train.h5"
    build_cache(demo_split("train", 4), whole, **OPTIONS)
    moved = build_cache(demo_split("train", 3), half, **OPTIONS)
    assert (moved.done, moved.present) == (0, 3)
    assert np.array_equal(FrameCache(half).frames, FrameCache(whole).frames[:3])


def test_a_limit_never_takes_rows_away(tmp_path):
    path = tmp_path / "train.h5"
    assert build_cache(demo_split("train", 5), path, **OPTIONS, limit=2).done == 2
    assert len(FrameCache(path)) == 2
    grown = build_cache(demo_split("train", 5), path, **OPTIONS)
    assert (grown.done, grown.present) == (3, 2)
    assert build_cache(demo_split("train", 5), path, **OPTIONS, limit=2).present == 2
    assert len(FrameCache(path).rows) == 5


def test_other_settings_are_refused(tmp_path):
    path = tmp_path / "train.h5"
    build_cache(demo_split("train", 2), path, **OPTIONS)
    with pytest.raises(CacheError, match=r"was cached with size 64, and now frames 4, sampling uniform, size 96"):
        build_cache(demo_split("train", 2), path, **{**OPTIONS, "size": 96})


def test_a_disk_that_is_too_small_is_refused_before_the_first_frame(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(CacheError, match=r"2 videos need 0\.0 GB in .*make room"):
        build_cache(demo_split("train", 2), tmp_path / "train.h5", **OPTIONS)


def test_the_cache_of_another_folder_is_not_overwritten(clips, tmp_path):
    path = tmp_path / "train.h5"
    build_cache(load_split("folder", clips, "train"), path, **OPTIONS)
    before = path.read_bytes()
    with pytest.raises(CacheError, match=rf"was cached from {clips}, and now .* name another --out"):
        build_cache(demo_split("train", 2), path, **OPTIONS)
    assert path.read_bytes() == before


def test_an_id_that_is_listed_twice_is_refused(tmp_path):
    split = demo_split("train", 2)
    split = replace(split, videos=[split.videos[0], split.videos[0]])
    with pytest.raises(CacheError, match="more than once"):
        build_cache(split, tmp_path / "a.h5", **OPTIONS)


def test_a_decoder_that_crashes_or_hangs_costs_one_row(tmp_path):
    script = tmp_path / "crash.py"
    script.write_text(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from xmafast.cache import pool, frames\n"
        "def hurt(path, **options):\n"
        "    if path.name == 'kill':\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    if path.name == 'hang':\n"
        "        import time; time.sleep(600)\n"
        "    raise pool.DecodeError('fine')\n"
        "pool.decode = hurt\n"
        "if __name__ == '__main__':\n"
        "    file = Path(sys.argv[1])\n"
        "    frames.create(file, list('abcd'), [()] * 4, {'frames': 1, 'size': 8})\n"
        "    cache = frames.FrameCache(file, writable=True)\n"
        "    target = pool.Target(file, cache.offset, cache.capacity, 'raw', {})\n"
        "    jobs = [pool.Job(i, Path(n)) for i, n in enumerate(['ok', 'hang', 'kill', 'ok'])]\n"
        "    for d in sorted(pool.decode_all(jobs, target, workers=1, time_limit=1.0)):\n"
        "        print(d.row, d.error)\n"
    )
    run = subprocess.run([sys.executable, str(script), str(tmp_path / "x.h5")], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert run.stdout.splitlines() == [
        "0 fine",
        "1 not decoded within the time limit of 1 s",
        "2 the decoder crashed (SIGSEGV)",
        "3 fine",
    ], run.stderr


def test_files_that_are_no_cache_say_so(tmp_path, small_caches):
    with pytest.raises(CacheError, match="There is no cache"):
        FrameCache(tmp_path / "absent.h5")
    text = tmp_path / "text.h5"
    text.write_text("hello")
    with pytest.raises(CacheError, match="not an HDF5 file"):
        FrameCache(text)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(CacheError, match="not a cache of xmafast"):
        FrameCache(tmp_path / "other.h5")
    cut = tmp_path / "cut.h5"
    cut.write_bytes((small_caches / "test.h5").read_bytes()[:100_000])
    with pytest.raises(CacheError, match=r"damaged|cut off"):
        FrameCache(cut)
    with pytest.raises(CacheError, match="holds no cache"):
        open_splits(tmp_path / "nowhere")


def test_a_partial_that_was_killed_while_laid_out_is_made_anew(tmp_path):
    path = tmp_path / "train.h5"
    (tmp_path / "train.h5.partial").write_bytes(b"half a header")
    assert build_cache(demo_split("train", 2), path, **OPTIONS).done == 2


def test_a_split_without_any_file_is_a_cache_of_missing_rows(tmp_path):
    split = demo_split("train", 3)
    split = replace(split, videos=[Video(v.id, None, v.captions) for v in split.videos])
    summary = build_cache(split, tmp_path / "train.h5", **OPTIONS)
    assert (summary.done, summary.missing) == (0, 3)
    assert not len(FrameCache(tmp_path / "train.h5").rows)
