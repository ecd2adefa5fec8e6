"""Any folder of videos or images, with captions in one of three forms, or without.

    ROOT/captions.csv     columns video, caption and, if you like, split (train, val or test); one row per caption
    ROOT/captions.jsonl   the same as JSON lines; "captions" may hold a list
    ROOT/**/NAME.txt      beside ROOT/**/NAME.mp4: one caption a line

``video`` is a path relative to ROOT. Without a split column every fifth video, by a hash of its path, is for testing. Without
any captions there is one split, ``videos``, to search in.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

from xmafast.datasets.base import (
    BEST_CAPTION,
    SPLITS,
    Files,
    Protocol,
    Split,
    Video,
    brief,
    find_files,
    inside,
    need_folder,
    own_file,
    read_lines,
    read_text,
    sentences,
)
from xmafast.errors import DataError

SAMPLING = "fps"
FILES: Files = {}  # any folder of videos will do
PROTOCOL = Protocol(title="A folder of your own", paper="none", home="", licence="yours", queries="each of its captions", v2t=BEST_CAPTION)


def splits(root: Path) -> dict[str, list[str]]:
    need_folder(root, "your videos and captions")
    return {split: [] for split in _read(root)}


def load(root: Path, split: str) -> Split:
    return Split("folder", split, root, _read(root)[split])


def _read(root: Path) -> dict[str, list[Video]]:
    files = find_files(root)
    captions: dict[str, list[str]] = {}
    split_of: dict[str, str] = {}
    table = next((root / name for name in ("captions.csv", "captions.jsonl") if (root / name).is_file()), None)
    if table is not None:
        for number, name, texts, split in _rows(table):
            video = inside(name, root, f"{table}, line {number}")
            if split and split not in SPLITS:
                raise DataError(f"{table}, line {number}: split {brief(repr(split))} is none of {', '.join(SPLITS)}.")
            if split_of.setdefault(video, split) != split:
                raise DataError(f"{table}, line {number}: {brief(video)} is in {split!r} here and in {split_of[video]!r} above.")
            captions.setdefault(video, []).extend(texts)
        if not captions:
            raise DataError(f"{table} holds no captions; expected rows of video and caption, as: clip1.mp4,a dog runs on grass")
    else:
        for path in files:
            side = path.with_suffix(".txt")
            if side.is_file() and (texts := [line.strip() for _, line in read_lines(side)]):
                captions[_id(own_file(path, root, root), root)] = texts
        if not files:
            raise DataError(f"{root} holds no videos and no images; name the folder that does with --root DIR.")
        if not captions:
            return {"videos": [Video(_id(path, root), own_file(path, root, root)) for path in files]}
    known = {_id(path, root): path for path in files}
    if table is not None:
        for video in captions:
            if video in known:
                own_file(known[video], root, table)
    result: dict[str, list[Video]] = {}
    for video, texts in sorted(captions.items()):
        split = split_of.get(video) or ("test" if hashlib.sha256(video.encode("utf-8")).digest()[0] % 5 == 0 else "train")
        result.setdefault(split, []).append(Video(video, known.get(video), tuple(texts)))
    return {split: result[split] for split in SPLITS if split in result}


def _id(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _rows(table: Path) -> Iterator[tuple[int, str, list[str], str]]:
    """(line, video, captions, split) of a captions file."""
    if table.suffix == ".csv":
        text = read_text(table)
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)  # a caption in quotes may go on over lines
        try:
            missing = {"video", "caption"} - set(reader.fieldnames or ())
            if text.strip() and missing:
                raise DataError(f"{table}, line 1: no column {min(missing)!r}; the header must name video and caption.")
            for row in reader:
                video, caption = (row["video"] or "").strip(), (row["caption"] or "").strip()
                if not video or not caption:
                    raise DataError(f"{table}, line {reader.line_num}: the {'caption' if video else 'video'} is empty.")
                yield reader.line_num, video, [caption], (row.get("split") or "").strip()
        except csv.Error as error:
            raise DataError(f"{table}, line {reader.line_num}: it is not csv ({brief(error)}).") from error
        return
    for number, line in read_lines(table):
        try:
            row = json.loads(line)
            texts = row["captions"] if "captions" in row else row["caption"]
            count = 1 if isinstance(texts, str) else len(texts)
            texts = list(sentences(texts))
            if not isinstance(row["video"], str) or len(texts) < count:
                raise ValueError("video and captions must be text")
            if not isinstance(row.get("split") or "", str):
                raise ValueError("split must be text")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f'{table}, line {number}: expected {{"video": "clip1.mp4", "caption": "..."}} ({brief(error)}).') from error
        yield number, row["video"], texts, row.get("split") or ""
