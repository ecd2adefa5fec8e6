"""Broken and hostile files in great numbers: a cache ends with a reason for each, a loader with a Split or one sentence.

Each plain test runs a few of what the slow one of the same name runs hundreds of; the seeds are fixed, so every run is the same.
"""

from __future__ import annotations

import multiprocessing
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import written_video

from xmafast.cache import FrameCache, Status, build_cache
from xmafast.cache.decode import torchcodec_fault
from xmafast.datasets import demo
from xmafast.datasets.base import Split, Video

Random = np.random.Generator
CLIPS = sorted((demo.ROOT / "clips").glob("*.mp4"))
LETTERS = "".join(chr(c) for c in range(32, 127))

# ---------------------------------------------------------------------------------------------------------------- videos


def flip(random: Random, content: bytes, few: int, many: int) -> bytes:
    mutant = bytearray(content)
    for at in random.integers(len(mutant), size=random.integers(few, many)):
        mutant[at] ^= 1 << int(random.integers(8))
    return bytes(mutant)


def cut(random: Random, content: bytes) -> bytes:
    a, b = sorted(random.integers(len(content), size=2).tolist())
    return (content[:b], content[a:], content[:a] + content[b:])[random.integers(3)]


def patch(random: Random, content: bytes, fields: list[tuple[bytes, int, str]], values: tuple[int, ...]) -> bytes:
    """Set fields of an mp4's boxes, each given as (kind, bytes after the kind, struct format), to one of ``values``."""
    mutant = bytearray(content)
    value = values[random.integers(len(values))]
    for kind, after, form in fields:
        for found in re.finditer(kind, content):
            struct.pack_into(form, mutant, found.end() + after, value % (1 << 8 * struct.calcsize(form)))
    return bytes(mutant)


SIZES = [(b"tkhd", 76, ">H"), (b"tkhd", 80, ">H"), (b"avc1", 24, ">H"), (b"avc1", 26, ">H")]
TIMES = [(box, after, ">I") for box in (b"mvhd", b"mdhd") for after in (12, 16)] + [(b"stts", 12, ">I")]
TABLES = [(b"stts", 4, ">I"), (b"stts", 8, ">I"), (b"stsz", 4, ">I"), (b"stsz", 8, ">I"), (b"stsc", 4, ">I"), (b"stco", 8, ">I")]
ABSURD = (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x10000)


def some(random: Random, fields: list[tuple[bytes, int, str]]) -> list[tuple[bytes, int, str]]:
    return [fields[i] for i in np.flatnonzero(random.integers(2, size=len(fields)))] or fields


def boxes(random: Random, content: bytes) -> bytes:
    """A box that says it is huge, or nothing."""
    kind = (b"moov", b"mdat", b"trak", b"stbl", b"ftyp", b"avcC")[random.integers(6)]
    return patch(random, content, [(kind, -8, ">I")], (0, 1, 7, 0x7FFFFFFF, 0xFFFFFFFF))


def gif(width: int, height: int) -> bytes:
    """Twelve frames on a canvas of this size: a small file that asks for much memory."""
    frame = b"\x21\xf9\x04\x00\x0a\x00\x00\x00\x2c" + struct.pack("<HHHH", 0, 0, 1, 1) + b"\x00\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\x00\x00\x00\x00\x00\xff\xff\xff" + 12 * frame + b"\x3b"


def png(random: Random) -> bytes:
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.fromarray(random.integers(1, 256, (24, 32, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def mutants(folder: Path, count: int, seed: int, written: dict[str, bytes]) -> list[Path]:
    """Write ``count`` broken files, and name them."""
    random = np.random.default_rng(seed)
    sources = {".mp4": [path.read_bytes() for path in CLIPS[:4]], **{suffix: [content] for suffix, content in written.items()}}
    suffixes = list(sources)
    paths = []

    def one(suffix: str = "") -> tuple[str, bytes]:
        suffix = suffix or suffixes[random.integers(len(suffixes))]
        return suffix, sources[suffix][random.integers(len(sources[suffix]))]

    def mp4(change: Callable[[bytes], bytes]) -> tuple[str, bytes]:
        return ".mp4", change(one(".mp4")[1])

    def changed(change: Callable[[bytes], bytes]) -> tuple[str, bytes]:
        suffix, content = one()
        return suffix, change(content)

    def swapped() -> tuple[str, bytes]:
        others = (".mp4", ".webm", ".avi", ".jpg", ".png", ".gif", ".mts", ".wmv")
        return others[random.integers(len(others))], (one()[1], png(random))[random.integers(2)]

    def image() -> tuple[str, bytes]:
        content = png(random)
        return (".png", ".jpg", ".webp")[random.integers(3)], (flip(random, content, 1, 9), cut(random, content))[random.integers(2)]

    def huge() -> tuple[str, bytes]:
        shape = ((65535, 65535), (30000, 8000), (65535, 1), (0, 0), (1, 1))[random.integers(5)]
        return (".mp4", ".gif", ".jpg")[random.integers(3)], gif(*shape)

    def nothing() -> tuple[str, bytes]:
        outside = str(CLIPS[0]).encode()
        playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile:" + outside + b"\n#EXT-X-ENDLIST\n"
        contents = (b"", b"x", b"text\n" * 99, random.bytes(3000), b"\0" * 3000, playlist, b"ffconcat version 1.0\nfile " + outside + b"\n")
        return (".mp4", ".avi", ".jpg")[random.integers(3)], contents[random.integers(len(contents))]

    kinds: list[Callable[[], tuple[str, bytes]]] = [
        lambda: changed(lambda content: flip(random, content, 1, 9)),
        lambda: changed(lambda content: flip(random, content, 50, 2000)),
        lambda: mp4(lambda content: content[:64] + flip(random, content[64:], 1, 99)),
        lambda: changed(lambda content: cut(random, content)),
        lambda: mp4(lambda content: patch(random, content, some(random, SIZES), (0, 1, 65535))),
        lambda: mp4(lambda content: patch(random, content, some(random, TIMES), ABSURD)),
        lambda: mp4(lambda content: patch(random, content, some(random, TABLES), ABSURD)),
        lambda: mp4(lambda content: boxes(random, content)),
        swapped,
        image,
        huge,
        nothing,
    ]
    for i in range(count):
        name = f"{i:03d}" + ("", "", "", " with spaces", "\nline", "日本語 ü", "%s{0}'\"", "x" * 200)[random.integers(8)]
        suffix, content = kinds[i % len(kinds)]()
        paths.append(folder / (name + suffix))
        paths[-1].write_bytes(content)
    (folder / "folder.mp4").mkdir()
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    return [*paths, folder / "folder.mp4", folder / "loop.mp4"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Short videos in other containers: {suffix: content}."""
    folder = tmp_path_factory.mktemp("written")
    codecs = {".webm": "libvpx", ".avi": "mpeg4", ".mkv": "libx264", ".gif": "gif", ".mpg": "mpeg2video"}
    return {suffix: written_video(folder / f"v{suffix}", 12, codec=codec).read_bytes() for suffix, codec in codecs.items()}


def survives(tmp_path: Path, decoder: str, count: int, seed: int, written: dict[str, bytes]) -> None:
    options: dict[str, Any] = {"frames": 4, "sampling": "uniform", "size": 32, "workers": 2, "decoder": decoder, "time_limit": 10.0}
    good = [Video(f"good{i}", path, ("x",)) for i, path in enumerate(CLIPS[:3])]
    build_cache(Split("folder", "good", tmp_path, good), tmp_path / "good.h5", **options)
    folder = tmp_path / "broken"
    folder.mkdir()
    broken = [Video(f"bad{i}", path, ("x",)) for i, path in enumerate(mutants(folder, count, seed, written))]
    half = len(broken) // 2
    split = Split("folder", "broken", tmp_path, [good[0], *broken[:half], good[1], *broken[half:], good[2]])
    summary = build_cache(split, tmp_path / "broken.h5", **options)

    cache, alone = FrameCache(tmp_path / "broken.h5"), FrameCache(tmp_path / "good.h5")
    reasons = {video: reason for video, _, reason in summary.problems}
    assert len(summary.problems) == summary.failed + summary.missing
    for row, video in enumerate(split.videos):
        assert video.path
        if cache.status[row] == Status.DONE:
            n = int(cache.num_frames[row])
            assert 1 <= n <= 4
            assert cache.intact(row)
            assert cache.frames[row, :n].reshape(n, -1).any(1).all() or video.path.read_bytes()[:3] == b"GIF", video.path
            assert not cache.frames[row, n:].any()
            assert np.isfinite(cache.timestamps[row]).all()
        else:
            assert cache.status[row] == (Status.FAILED if video.path.is_file() else Status.MISSING)
            assert not cache.frames[row].any()
            assert reasons[video.id].isprintable(), reasons[video.id]
            assert reasons[video.id].strip()
            assert cache.error[row] or cache.status[row] == Status.MISSING
    for row, video in enumerate(good):
        where = split.videos.index(video)
        assert cache.status[where] == Status.DONE
        assert cache.frames[where].tobytes() == alone.frames[row].tobytes()
    assert not multiprocessing.active_children()


def skip_without(decoder: str) -> None:
    pytest.importorskip("decord" if decoder == "decord" else "av")
    if decoder == "torchcodec":
        pytest.importorskip("torchcodec")
        if fault := torchcodec_fault():
            pytest.skip(fault)


@pytest.mark.parametrize(("decoder", "seed"), [("decord", 1), ("pyav", 2)])
def test_broken_videos_each_get_a_reason_and_cost_no_neighbour(decoder, seed, tmp_path, written):
    skip_without(decoder)
    survives(tmp_path, decoder, 12, seed, written)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["decord", "pyav", "torchcodec"])
def test_many_broken_videos_each_get_a_reason_and_cost_no_neighbour(decoder, tmp_path, written):
    skip_without(decoder)
    survives(tmp_path, decoder, 360, 3, written)
