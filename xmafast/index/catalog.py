"""The folder that a library is: a catalogue in SQLite, and files of rows that only grow.

    lib.xma/catalog.sqlite       items, contents, embeddings, adapters, failures, and how much of each file counts
    lib.xma/NAME-0.rows          rows of one width, end to end: frame embeddings, pooled embeddings, thumbnails
    lib.xma/adapters/MODEL/      what was trained, as a run keeps it
    lib.xma/work/                frames on their way to the encoder; not there between two updates

Rows are appended and brought to disk before the catalogue counts them, and no reader looks past that count: a process that is killed
leaves a tail that the next writer cuts off. What is known of a content, by its hash, is written as it is found out; the items, which say
which contents there are, change in one transaction at the end. ``docs/index-format.md`` has every table.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmafast.errors import CacheError

SCHEMA = 1
APPLICATION = 0x786D6166  # "xmaf", in the header of the catalogue
CATALOG, ADAPTERS, WORK = "catalog.sqlite", "adapters", "work"
THUMBS = "thumbs"
ANEW = "restore it from a copy, or move the library away and index again"
WAIT = 30.0  # seconds that a reader and a writer wait for each other's transaction

TABLES = (
    "meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "files (name TEXT PRIMARY KEY, file TEXT NOT NULL, width INTEGER NOT NULL, rows INTEGER NOT NULL)",
    "adapters (name TEXT PRIMARY KEY, model TEXT NOT NULL, about TEXT NOT NULL)",
    "items (id TEXT PRIMARY KEY, source TEXT NOT NULL, split TEXT NOT NULL, captions TEXT NOT NULL, size INTEGER NOT NULL, "
    "mtime INTEGER NOT NULL, hash TEXT NOT NULL)",
    "contents (hash TEXT PRIMARY KEY, times BLOB NOT NULL, thumb_at INTEGER NOT NULL, thumb_size INTEGER NOT NULL, "
    "thumb_lengths BLOB NOT NULL, thumb_crc INTEGER NOT NULL)",
    "vectors (model TEXT NOT NULL, hash TEXT NOT NULL, frames_at INTEGER NOT NULL, pooled_at INTEGER NOT NULL, crc INTEGER NOT NULL, "
    "PRIMARY KEY (model, hash)) WITHOUT ROWID",
    "failures (id TEXT PRIMARY KEY, reason TEXT NOT NULL)",
)


def token_of(name: str) -> str:
    """A short name of an item that goes into an address: it depends on the id alone, and leads to no file but by the catalogue."""
    return hashlib.sha256(name.encode("utf-8")).hexdigest()[:20]


def is_library(path: Path) -> bool:
    """Whether a path is a library, or is named as one."""
    return (path / CATALOG).is_file() or path.suffix == ".xma"


class Vectors(NamedTuple):
    """Where a content's embeddings lie: a row for each frame from ``frames_at`` on, and one pooled row."""

    frames_at: int
    pooled_at: int
    crc: int


@dataclass(frozen=True)
class Content:
    """What was decoded. times: seconds of its frames; thumb_at: where its thumbnails begin, in bytes; thumb_lengths: bytes of each."""

    times: tuple[float, ...]
    thumb_at: int
    thumb_lengths: tuple[int, ...]
    thumb_crc: int

    def row(self) -> tuple[Any, ...]:
        lengths = np.array(self.thumb_lengths, "<i4").tobytes()
        return np.array(self.times, "<f4").tobytes(), self.thumb_at, sum(self.thumb_lengths), lengths, self.thumb_crc

    @staticmethod
    def of(times: bytes, at: int, _: int, lengths: bytes, crc: int) -> Content:
        return Content(tuple(np.frombuffer(times, "<f4").tolist()), at, tuple(np.frombuffer(lengths, "<i4").tolist()), crc)


@dataclass(frozen=True)
class Item:
    """One video or image. source: its file, relative to the library's root or absolute; mtime: nanoseconds; hash: of its content."""

    id: str
    source: str
    size: int
    mtime: int
    hash: str
    split: str = ""
    captions: tuple[str, ...] = ()

    def row(self) -> tuple[Any, ...]:
        captions = json.dumps(list(self.captions), ensure_ascii=False)
        return self.id, self.source, self.split, captions, self.size, self.mtime, self.hash

    @staticmethod
    def of(name: str, source: str, split: str, captions: str, size: int, mtime: int, digest: str) -> Item:
        return Item(name, source, size, mtime, digest, split, tuple(json.loads(captions)) if captions != "[]" else ())


@dataclass(frozen=True)
class Adapter:
    """One set of embeddings. model: a hash of all that they depend on, which names its files; about: how to load it, and its header."""

    name: str
    model: str
    about: Mapping[str, Any]


@dataclass(frozen=True)
class RowFile:
    file: str
    width: int  # bytes
    rows: int


@contextlib.contextmanager
def sentences(path: Path) -> Iterator[None]:
    """What SQLite says of a damaged or occupied catalogue, as one sentence."""
    try:
        yield
    except (sqlite3.DatabaseError, ValueError, KeyError) as error:
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            raise CacheError(f"{path} is being written by another process; wait for it to end, and repeat the command.") from error
        if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
            raise CacheError(f"There is no room left for {path}; make room, and repeat the command.") from error
        raise CacheError(f"{path / CATALOG} is damaged ({str(error).splitlines()[0]}); {ANEW}.") from error


def connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """Autocommit; transactions are begun by hand. Raises CacheError for what is no library, or one of a newer format."""
    catalog = path / CATALOG
    if not catalog.is_file():
        if not path.exists():
            raise CacheError(f"There is no library {path}; make one with: xmafast index DIR --out {path}")
        raise CacheError(f"{path} holds no {CATALOG}, so it is no library; make one with: xmafast index DIR --out lib.xma")
    # a reader, too, may have to undo what a killed writer left in the middle of a transaction; where it may not write, there is none
    mode = "rw" if write or (os.access(path, os.W_OK) and os.access(catalog, os.W_OK)) else "ro&immutable=1"
    connection = sqlite3.connect(f"{catalog.absolute().as_uri()}?mode={mode}", uri=True, timeout=WAIT, isolation_level=None)
    try:
        with sentences(path):
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            schema = connection.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION:
            raise CacheError(f"{catalog} is not a catalogue of xmafast; name a library that `xmafast index` wrote.")
        if schema > SCHEMA:
            raise CacheError(
                f"{path} has index format {schema}, and this version reads {SCHEMA}; install a newer xmafast, or index to another --out."
            )
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def files_of(connection: sqlite3.Connection) -> dict[str, RowFile]:
    return {name: RowFile(*rest) for name, *rest in connection.execute("SELECT name, file, width, rows FROM files")}


def meta_of(connection: sqlite3.Connection) -> dict[str, Any]:
    return {key: json.loads(value) for key, value in connection.execute("SELECT key, value FROM meta")}


def adapters_of(connection: sqlite3.Connection) -> dict[str, Adapter]:
    rows = connection.execute("SELECT name, model, about FROM adapters ORDER BY name")
    return {name: Adapter(name, model, json.loads(about)) for name, model, about in rows}


def items_of(connection: sqlite3.Connection) -> list[Item]:
    return [Item.of(*row) for row in connection.execute("SELECT * FROM items ORDER BY id")]


def contents_of(connection: sqlite3.Connection) -> dict[str, Content]:
    return {digest: Content.of(*rest) for digest, *rest in connection.execute("SELECT * FROM contents")}


def vectors_of(connection: sqlite3.Connection, model: str) -> dict[str, Vectors]:
    rows = connection.execute("SELECT hash, frames_at, pooled_at, crc FROM vectors WHERE model = ?", (model,))
    return {digest: Vectors(*where) for digest, *where in rows}


def crc_of(frames: np.ndarray, pooled: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(pooled).tobytes(), zlib.crc32(np.ascontiguousarray(frames).tobytes()))
