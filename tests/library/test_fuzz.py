"""Broken and hostile files in great numbers: a cache ends with a reason for each, a loader with a Split or one sentence.

Each plain test runs a few of what the slow one of the same name runs hundreds of; the seeds are fixed, so every run is the same.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published import PUBLISHED, msvd, put, vatex
from support import need_decoder
from written import written_video

from xmafast.cache import FrameCache, Status, build_cache
from xmafast.datasets import demo, load_split, usable_splits
from xmafast.datasets.base import Split, Video
from xmafast.errors import XmafastError

Random = np.random.Generator
CLIPS = sorted((demo.ROOT / "clips").glob("*.mp4"))

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


@pytest.mark.parametrize(("decoder", "seed"), [("decord", 1), ("pyav", 2)])
def test_broken_videos_each_get_a_reason_and_cost_no_neighbour(decoder, seed, tmp_path, written):
    need_decoder(decoder)
    survives(tmp_path, decoder, 12, seed, written)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["decord", "pyav", "torchcodec"])
def test_many_broken_videos_each_get_a_reason_and_cost_no_neighbour(decoder, tmp_path, written):
    need_decoder(decoder)
    survives(tmp_path, decoder, 800, 6, written)


# ----------------------------------------------------------------------------------------------------------- annotations

BAD_IDS = ("../../x", "/etc/passwd", "C:\\x", "a\0b", "a\nb", "", " ", ".", "..", "x" * 300_000, "\ud800", "日本語")
BAD_JSON: tuple[Any, ...] = (
    None,
    True,
    3,
    -1,
    1e308,
    float("nan"),
    10**400,
    "",
    " ",
    "x" * 200_000,
    [],
    {},
    [[]],
    [None],
    {"a": None},
    BAD_IDS,
)


def folder_of_files(root: Path, form: str) -> dict[str, Any]:
    names = ["a.mp4", "sub/b.mp4", "c.mp4"]
    if form == "captions.csv":
        put(root, {form: "video,caption,split\n" + "".join(f'{name},"a dog, running",test\n' for name in names)}, names)
    elif form == "captions.jsonl":
        put(root, {form: "".join(json.dumps({"video": name, "captions": ["a dog", "runs"]}) + "\n" for name in names)}, names)
    else:
        put(root, {name.replace(".mp4", ".txt"): "a dog\nruns\n" for name in names}, names)
    return {}


def msvd_pickled(root: Path) -> None:
    msvd(root)
    captions = json.loads((root / "captions_msvd.json").read_text())
    (root / "captions_msvd.json").unlink()
    (root / "raw-captions.pkl").write_bytes(pickle.dumps({i: [text.split() for text in texts] for i, texts in captions.items()}, 2))


def msvd_text(root: Path) -> None:
    msvd(root)
    captions = json.loads((root / "captions_msvd.json").read_text())
    (root / "captions_msvd.json").unlink()
    (root / "AllVideoDescriptions.txt").write_text(
        "# notice\n" + "".join(f"{i} {text}\n" for i, texts in captions.items() for text in texts)
    )


def vatex_arrays(root: Path) -> None:
    expected = vatex(root)
    for split, name in (("val", "val_names.npy"), ("test", "tst_names.npy")):
        (root / f"{split}_list.txt").unlink()
        np.save(root / name, np.array(list(expected[split])))


LAYOUTS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    **{name: (name, write) for name, write in PUBLISHED.items()},
    "msrvtt-full": ("msrvtt-full", PUBLISHED["msrvtt"]),
    "msvd pickle": ("msvd", msvd_pickled),
    "msvd text": ("msvd", msvd_text),
    "vatex arrays": ("vatex", vatex_arrays),
    **{f"folder {form}": ("folder", functools.partial(folder_of_files, form=form)) for form in ("captions.csv", "captions.jsonl", "txt")},
}


def somewhere(random: Random, value: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a JSON value in which one place, at any depth, is changed."""
    if not isinstance(value, (dict, list)) or not value or random.integers(4) == 0:
        return change(value)
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[random.integers(len(keys))]
    result = value.copy()
    if isinstance(value, dict) and random.integers(5) == 0:
        del result[key]
    elif isinstance(value, dict) and random.integers(5) == 0:
        result[BAD_IDS[random.integers(len(BAD_IDS))]] = result.pop(key)
    else:
        result[key] = somewhere(random, value[key], change)
    return result


def broken_json(random: Random, content: bytes) -> bytes:
    choices = BAD_JSON + BAD_IDS
    bad = choices[random.integers(len(choices))]
    value = somewhere(random, json.loads(content), lambda _: bad)
    return json.dumps(value, ensure_ascii=bool(random.integers(2))).encode("utf-8", "surrogatepass")


def broken_table(random: Random, content: bytes) -> bytes:
    """Lines with a field less, a field more, an open quote, a very long field, an id that is none."""
    lines = content.decode().split("\n")
    comma = "\t" if "\t" in lines[0] else "," if "," in lines[0] else " "
    i = int(random.integers(len(lines)))
    fields = lines[i].split(comma)
    j = int(random.integers(len(fields)))
    fields[j : j + 1] = (
        [],
        [fields[j], "more"],
        ['"' + fields[j]],
        ["x" * 200_000],
        [BAD_IDS[random.integers(len(BAD_IDS))]],
    )[random.integers(5)]
    lines[i] = comma.join(fields)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def broken_text(random: Random, content: bytes) -> bytes:
    at = int(random.integers(len(content)))
    kinds: list[Callable[[], bytes]] = [
        lambda: flip(random, content, 1, 2),
        lambda: flip(random, content, 2, 99),
        lambda: cut(random, content),
        lambda: content[:at] + random.bytes(int(random.integers(1, 9))) + content[at:],
        lambda: content[:at] + "é".encode("latin-1") + content[at:],
        lambda: content.decode("latin-1").encode("utf-16"),
        lambda: content.decode("latin-1").encode("utf-16-le"),
        lambda: b"\xef\xbb\xbf" + content,
        lambda: content[:at] + b"\0" + content[at:],
        lambda: content.replace(b"\n", b"\r\n"),
        lambda: content.replace(b"\n", b"\r"),
        lambda: b"[" * 10_000 + content,
        lambda: b'{"a":' * 10_000 + content,
        lambda: re.sub(rb"\d+", b"9" * 5000, content, count=1),
        lambda: (b"", b" ", b"\n\n\n", b"\0", b"null", b"{", b'"', b"NaN", b'{"a": 1, "a": 2}')[random.integers(9)],
        lambda: content + content,
    ]
    return kinds[random.integers(len(kinds))]()


def mutated(random: Random, path: Path, content: bytes) -> bytes:
    own = {".json": broken_json, ".csv": broken_table, ".txt": broken_table}.get(path.suffix)
    return own(random, content) if own and random.integers(2) else broken_text(random, content)


def loads_or_says_why(name: str, root: Path) -> None:
    """Load every split; what is raised must be one of ours, on one line that names a file of the folder."""

    def attempt(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except XmafastError as error:
            problem = error
        line = str(problem).partition("\n")[0]
        assert line.isprintable(), line[:300]
        assert str(root) in line, line[:300]
        assert len(line) < 1000, line[:300]
        return None

    usable = attempt(lambda: usable_splits(name, root))
    for split in usable[0] if usable and name == "folder" else ("train", "val", "test") if name != "folder" else ():
        if name.startswith(("msrvtt", "activitynet")) and split == "val" and name != "msrvtt-full":
            continue
        loaded = attempt(functools.partial(load_split, name, root, split))
        for video in loaded.videos if loaded else ():
            assert isinstance(video.id, str)
            assert video.id
            assert not any(c < " " or "\ud800" <= c <= "\udfff" for c in video.id)
            assert isinstance(video.captions, tuple)
            assert all(isinstance(text, str) and text.strip() for text in video.captions)
            json.dumps([video.id, *video.captions], ensure_ascii=False).encode("utf-8")  # as a cache stores them
            assert video.path is None or Path(os.path.realpath(video.path)).is_relative_to(os.path.realpath(root))


def survive_annotations(layout: str, root: Path, count: int, seed: int) -> None:
    name, write = LAYOUTS[layout]
    write(root)
    random = np.random.default_rng([seed, *layout.encode()])
    files = sorted(path for path in root.rglob("*") if path.suffix in {".json", ".jsonl", ".csv", ".txt", ".pkl", ".npy"})
    loads_or_says_why(name, root)
    for _ in range(count):
        path = files[random.integers(len(files))]
        good = path.read_bytes()
        path.write_bytes(mutated(random, path, good))
        loads_or_says_why(name, root)
        path.write_bytes(good)
    for path in files:
        good = path.read_bytes()
        path.unlink()
        path.mkdir()
        loads_or_says_why(name, root)
        path.rmdir()
        path.symlink_to(path)
        loads_or_says_why(name, root)
        path.unlink()
        path.write_bytes(good)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_broken_annotations_load_or_give_one_sentence(layout, tmp_path):
    survive_annotations(layout, tmp_path, 3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_broken_annotations_load_or_give_one_sentence(layout, tmp_path):
    survive_annotations(layout, tmp_path, 300, 2)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "msrvtt-full"])
def test_links_out_of_the_root_are_refused_and_those_in_a_circle_harmless(layout, tmp_path):
    root = tmp_path / "root"
    name, write = LAYOUTS[layout]
    write(root)
    outside = tmp_path / "outside"
    outside.write_bytes(b"x")
    for path in sorted(path for path in root.rglob("*") if path.suffix in {".mp4", ".avi", ".jpg", "."}):
        for target in (outside, path, path.with_name("absent")):
            path.rename(tmp_path / "aside")
            path.symlink_to(target)
            loads_or_says_why(name, root)
            path.unlink()
            (tmp_path / "aside").rename(path)


@pytest.mark.parametrize("layout", ["folder captions.jsonl", "folder txt", "msvd"])
def test_file_names_that_are_no_text_are_named(layout, tmp_path):
    name, write = LAYOUTS[layout]
    write(tmp_path)
    for odd in ("\udcff.mp4", "new\nline.mp4"):
        path = tmp_path / odd
        shutil.copy(CLIPS[0], path)
        path.with_suffix(".txt").write_text("a caption")
        loads_or_says_why(name, tmp_path)
        path.unlink()
        path.with_suffix(".txt").unlink()
    for path in tmp_path.glob("*.[jt]*"):  # without captions
        path.unlink()
    if name == "folder":
        shutil.copy(CLIPS[0], tmp_path / "\udcff.mp4")
        loads_or_says_why(name, tmp_path)


def test_a_quote_that_is_never_closed_is_an_error_and_swallows_no_rows(tmp_path):
    put(tmp_path / "folder", {"captions.csv": 'video,caption\na.mp4,"a dog\nb.mp4,a cat\n'}, ["a.mp4", "b.mp4"])
    put(tmp_path / "msrvtt", {"MSRVTT_JSFUSION_test.csv": 'video_id,sentence\nvideo1,"a dog\nvideo2,a cat\n'})
    for name in ("folder", "msrvtt"):
        with pytest.raises(XmafastError, match=r"csv .*unexpected end of data"):
            load_split(name, tmp_path / name, "test")


def test_a_byte_order_mark_is_no_part_of_a_csv_files_header(tmp_path):
    put(tmp_path, {"MSRVTT_JSFUSION_test.csv": "\ufeffvideo_id,sentence\nvideo1,a dog\n"})
    assert [video.captions for video in load_split("msrvtt", tmp_path, "test").videos] == [("a dog",)]


class _Calls:
    def __init__(self, function: Callable[..., Any], *arguments: str) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_hostile_pickles_are_refused_and_nothing_in_them_runs(tmp_path):
    msvd_pickled(tmp_path)
    path, mark = tmp_path / "raw-captions.pkl", tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w')"
    hostile = [_Calls(os.system, f"touch '{mark}'"), _Calls(eval, code), _Calls(exec, code), _Calls(open, str(mark), "w")]
    contents = [pickle.dumps(wrap, version) for version in range(6) for h in hostile for wrap in (h, {"a": [[h]]}, [h])]
    contents += [
        f"cos\nsystem\n(S'touch {mark}'\ntR.".encode(),
        f"(S'touch {mark}'\nios\nsystem\n.".encode(),
        f"(cos\nsystem\nS'touch {mark}'\no.".encode(),
        b"Pid\n.",
        b"}(X\x01\x00\x00\x00a](]q\x00h\x00ee" + b"u.",
    ]
    shared = ["w" * 100_000] * 1000  # a few kilobytes that would be joined into 100 GB
    contents.append(pickle.dumps({str(i): sentences for i, sentences in enumerate([[shared] * 1000] * 1000)}))
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(XmafastError, match=r"raw-captions\.pkl") as error:
            load_split("msvd", tmp_path, "train")
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 1000
    assert not mark.exists()
