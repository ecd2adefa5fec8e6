"""What a data set is to xmafast: videos with captions, in splits, the protocol that goes with them, and reading their files."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from xmafast.errors import DataError
from xmafast.files import IMAGES, VIDEOS

SPLITS = ("train", "val", "test")
Files = Mapping[str, Sequence[tuple[str, ...]]]  # split -> the files it needs, each as its published name and the common variants


@dataclass(frozen=True)
class Protocol:
    """How the field uses a data set: what its numbers must be read with.

    videos, captions: the published counts of a split, where they are known. frames, words: the published recipe's.
    queries: what a caption is. v2t: how a video with several captions is a query.
    """

    title: str
    paper: str
    home: str
    licence: str
    videos: Mapping[str, int] = field(default_factory=dict)
    captions: Mapping[str, int] = field(default_factory=dict)
    queries: str = "each sentence"
    frames: int = 12
    words: int = 32
    v2t: str = "its one caption"


BEST_CAPTION = "the best of a video's captions"


@dataclass(frozen=True)
class Video:
    """One video or image: its id, its file (None where it is missing), its captions (none: it can only be searched).

    interval: the seconds [start, end) of the file that belong to it; None: all of it.
    """

    id: str
    path: Path | None
    captions: tuple[str, ...] = ()
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Split:
    """A split of a data set, and the protocol's choices that a cache remembers.

    captions_per_epoch: ``all`` (every pair of video and caption once) or ``one`` (every video once, with one caption drawn).
    epochs, batch_size, train_frames: the training defaults for this data. lr: peak learning rates by method, where some were tuned on it.
    remarks: what a reader of the counts must know, a sentence each.
    """

    dataset: str
    name: str
    root: Path
    videos: list[Video] = field(repr=False)
    captions_per_epoch: str = "all"
    epochs: int = 5
    batch_size: int = 128
    train_frames: int = 0
    lr: Mapping[str, float] = field(default_factory=dict)
    default_backbone: str = "ViT-B-32"
    default_pretrained: str = "openai"
    remarks: tuple[str, ...] = ()


def find_files(root: Path, suffixes: set[str] = VIDEOS | IMAGES) -> list[Path]:
    """Every file under ``root`` with one of these endings, sorted; links to folders are not followed."""
    return [path for path in _walk(root) if path.suffix.lower() in suffixes]


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders.sort()
        yield from (Path(folder) / name for name in sorted(files))


class Finder:
    """Files by id, in any folder under ``root``, with any of ``suffixes``, none, a bare dot, or two of them."""

    def __init__(self, root: Path, suffixes: set[str] = VIDEOS) -> None:
        self.root, self.suffixes = root, suffixes
        self.by_path: dict[str, Path] = {}
        self.by_name: dict[str, Path] = {}
        self.by_stem: dict[str, Path] = {}
        for path in _walk(root):
            if path.suffix.lower() in {"", ".", *suffixes}:
                self.by_path[path.relative_to(root).as_posix()] = path
                self.by_name.setdefault(path.name, path)
                self.by_stem.setdefault(self._stem(path.name), path)
        # a clip id may end in what looks like an extension ("…-00.23.28.886"), so that only known endings are taken off

    def _stem(self, name: str) -> str:
        while (stem := name.rstrip(".")) and (suffix := PurePosixPath(stem).suffix).lower() in self.suffixes and suffix:
            name = stem[: -len(suffix)]
        return stem

    def find(self, name: str, source: str | Path) -> Path | None:
        """The file of an id or of a path relative to the root. Raises DataError where it leaves the root; ``source`` names the place."""
        name = inside(name, self.root, source)
        last = PurePosixPath(name).name
        path = self.by_path.get(name) or self.by_name.get(last) or self.by_stem.get(self._stem(last))
        return path and own_file(path, self.root, source)


def inside(name: str, root: Path, source: str | Path) -> str:
    """``name`` as a plain relative path. Raises DataError for an absolute one, one with ``..`` and one that no file can have."""
    if not name.strip() or _no_text(name):
        raise DataError(f"{source}: {brief(repr(name))} is no usable id or file name; correct it or take it out.")
    if not any(sign in name for sign in ("/", "\\", ":", "..")):  # nearly every id; the rest is slow
        return name
    windows = PureWindowsPath(name)
    if windows.drive or windows.root or ".." in windows.parts:
        raise DataError(f"{source}: {brief(repr(name))} leaves the data set's folder {root}; only files below it are read.")
    return PurePosixPath(name).as_posix()


def own_file(path: Path, root: Path, source: str | Path) -> Path:
    """``path`` again. Raises DataError where it is a link to a file outside ``root``, and where its name is no text."""
    if _no_text(name := str(path.relative_to(root))):
        raise DataError(f"{source}: the file {brief(repr(name))} has a name that no cache can hold; rename it.")
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):  # resolve() may raise for a circle
        raise DataError(f"{source}: {path} is a link that leaves the data set's folder {root}; put the file itself there.")
    return path


def _no_text(name: str) -> bool:
    """Whether it holds a control character or a byte that is not UTF-8, which Python reads as half a surrogate pair."""
    return any(c < " " or "\ud800" <= c <= "\udfff" for c in name)


def brief(text: object) -> str:
    """What may be long and hold anything, to stand in a sentence: the first line's first characters."""
    line = (str(text).splitlines() or [""])[0]
    return "".join(c if c.isprintable() else "?" for c in line[:160])


def gather(
    root: Path,
    ids: Iterable[str],
    captions: Mapping[str, Iterable[str]],
    source: Path,
    *,
    suffixes: set[str] = VIDEOS,
    names: Callable[[str], tuple[str, ...]] = lambda i: (i,),
) -> list[Video]:
    """A video for each id, once, in order, with its file and captions; ``names`` gives the file names that an id may have.

    Raises DataError where no id has a caption: the files are of different data sets or splits.
    """
    ids = list(dict.fromkeys(ids))
    if not any(captions.get(i) for i in ids):
        raise DataError(f"{source}: none of its {len(ids)} ids has a caption in the other files; fetch the files of one release.")
    finder = Finder(root, suffixes)
    videos = []
    for i in ids:
        found = next((path for name in names(i) if (path := finder.find(name, source))), None)
        videos.append(Video(i, found, tuple(captions.get(i, ()))))
    return videos


def one_of(root: Path, names: Sequence[str]) -> Path:
    """The first of these files that is there, else the first."""
    return next((root / name for name in names if (root / name).is_file()), root / names[0])


def missing_files(root: Path, title: str, files: Files, where: str) -> dict[str, list[str]]:
    """``splits`` of a loader: for each split, a sentence for each file of it that is not there."""
    need_folder(root, title)
    return {
        split: [
            f"{title}'s {split} split needs {names[0]}, which is not in {root}; put it at {root / names[0]}"
            + (f", or {' or '.join(names[1:])} beside it" if names[1:] else "")
            + f" ({where})."
            for names in needed
            if not one_of(root, names).is_file()
        ]
        for split, needed in files.items()
    }


def tree(root: Path, files: Files) -> str:
    """What a data set's folder should hold, with a tick for each file that is there and a cross for each that is not."""
    lines = [f"Expected in {root}:"]
    for names in dict.fromkeys(names for needed in files.values() for names in needed):
        tick = "✓" if one_of(root, names).is_file() else "✗"
        used = ", ".join(split for split, needed in files.items() if names in needed)
        lines.append(f"  {tick} {' or '.join(names)}  ({used})")
    return "\n".join(lines)


def need_folder(root: Path, dataset: str) -> None:
    """Raise DataError where a data set's folder is not there."""
    if not root.is_dir():
        raise DataError(f"There is no folder {root}; put {dataset}'s files there, or name the place with --root DIR.")


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of the lines that are not blank."""
    for number, line in enumerate(read_text(path).split("\n"), 1):  # not splitlines: a caption may hold U+2028 or a form feed
        if line.strip():
            yield number, line.rstrip("\r")


def read_list(path: Path, root: Path) -> list[str]:
    """A file of one id a line."""
    ids = [inside(line.strip(), root, f"{path}, line {number}") for number, line in read_lines(path)]
    if not ids:
        raise DataError(f"{path} lists no video; expected one id a line.")
    return ids


def read_json(path: Path) -> Any:
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: it is not JSON ({error.msg}); fetch the file again.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON that can be read ({brief(error)}).") from error


def read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a csv file with a header, none of ``columns`` empty."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise DataError(f"{path} is not a csv file ({brief(error)}).") from error
    for number, row in enumerate(rows, 2):
        absent = [column for column in columns if not (row.get(column) or "").strip()]
        if absent:
            raise DataError(f"{path}, line {number}: column {absent[0]!r} is empty or missing; expected: {', '.join(columns)}.")
    if not rows:
        raise DataError(f"{path} holds no rows; expected a header and: {', '.join(columns)}.")
    return rows


def read_tsv(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """(number, fields) of the lines of a tab-separated file without a header."""
    for number, line in read_lines(path):
        row = line.split("\t")
        if len(row) != len(fields):
            raise DataError(f"{path}, line {number}: {len(row)} tab-separated fields, not {len(fields)}: {', '.join(fields)}.")
        yield number, row


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """What has another shape than a loader walks through becomes a DataError that says what was expected."""
    try:
        yield
    except KeyError as error:
        raise DataError(f"{path} is not {expected}: there is no {brief(error)}.") from error
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{path} is not {expected}: {brief(error)}.") from error


def sentences(value: Any) -> tuple[str, ...]:
    """The sentences of a string or a list of strings, stripped, without empty ones. Raises ValueError for anything else."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("captions must be text")
    for text in texts:
        text.encode("utf-8")  # half a surrogate pair passes as JSON, and no cache could store it
    return tuple(stripped for text in texts if (stripped := text.strip()))
