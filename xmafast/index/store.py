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
import shutil
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmafast.cache.file import FULL
from xmafast.cache.lock import locked
from xmafast.errors import CacheError

SCHEMA = 1
APPLICATION = 0x786D6166  # "xmaf", in the header of the catalogue
CATALOG, ADAPTERS, WORK = "catalog.sqlite", "adapters", "work"
THUMBS = "thumbs"
WASTE = 0.3  # the share of a file's rows that may be of no item any more before the file is written again
ANEW = "restore it from a copy, or move the library away and index again"
WAIT = 30.0  # seconds that a reader and a writer wait for each other's transaction

_TABLES = (
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
def _sentences(path: Path) -> Iterator[None]:
    """What SQLite says of a damaged or occupied catalogue, as one sentence."""
    try:
        yield
    except (sqlite3.DatabaseError, ValueError, KeyError) as error:
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            raise CacheError(f"{path} is being written by another process; wait for it to end, and repeat the command.") from error
        if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
            raise CacheError(f"There is no room left for {path}; make room, and repeat the command.") from error
        raise CacheError(f"{path / CATALOG} is damaged ({str(error).splitlines()[0]}); {ANEW}.") from error


def _connect(path: Path, *, write: bool) -> sqlite3.Connection:
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
        with _sentences(path):
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


def _files(connection: sqlite3.Connection) -> dict[str, RowFile]:
    return {name: RowFile(*rest) for name, *rest in connection.execute("SELECT name, file, width, rows FROM files")}


def _meta(connection: sqlite3.Connection) -> dict[str, Any]:
    return {key: json.loads(value) for key, value in connection.execute("SELECT key, value FROM meta")}


def _adapters(connection: sqlite3.Connection) -> dict[str, Adapter]:
    rows = connection.execute("SELECT name, model, about FROM adapters ORDER BY name")
    return {name: Adapter(name, model, json.loads(about)) for name, model, about in rows}


def _items(connection: sqlite3.Connection) -> list[Item]:
    return [Item.of(*row) for row in connection.execute("SELECT * FROM items ORDER BY id")]


def _contents(connection: sqlite3.Connection) -> dict[str, Content]:
    return {digest: Content.of(*rest) for digest, *rest in connection.execute("SELECT * FROM contents")}


def _vectors(connection: sqlite3.Connection, model: str) -> dict[str, Vectors]:
    rows = connection.execute("SELECT hash, frames_at, pooled_at, crc FROM vectors WHERE model = ?", (model,))
    return {digest: Vectors(*where) for digest, *where in rows}


class Snapshot:
    """A library's content at one moment: it stays as it is while others write.

    Attributes: ``meta``, ``adapters`` by name, ``items`` (a list in the order of their ids), ``contents`` (of each item), ``failures``
    (id -> reason). Raises CacheError for a folder that is no library, a damaged or newer one, and one whose first indexing has not ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        connection = _connect(path, write=False)
        try:
            with _sentences(path):
                connection.execute("BEGIN")
                self.meta = _meta(connection)
                if not self.meta.get("revision"):
                    raise CacheError(f"{path} is empty: its first indexing was interrupted; repeat the `xmafast index` command.")
                self.adapters = _adapters(connection)
                self.items = _items(connection)
                self.failures = dict(connection.execute("SELECT id, reason FROM failures ORDER BY id"))
                contents = _contents(connection)
                self.contents = [contents[item.hash] for item in self.items]
                self._vectors: dict[str, np.ndarray] = {}
                for model in {adapter.model for adapter in self.adapters.values()}:
                    found = _vectors(connection, model)
                    self._vectors[model] = np.array([found[item.hash] for item in self.items], dtype=np.int64).reshape(-1, 3)
                # mapped before a writer, who waits for the end of this transaction, may take their names away
                self._maps = {name: self._mapped(file) for name, file in _files(connection).items() if file.rows}
                connection.execute("COMMIT")
        finally:
            connection.close()
        self._check_places()

    def _check_places(self) -> None:
        """Raise CacheError where the catalogue points past the end of a file."""
        counts = np.array([len(content.times) for content in self.contents], dtype=np.int64)
        for model, where in self._vectors.items():
            frames, pooled = self._rows_of(f"{model}-frames"), self._rows_of(f"{model}-pooled")
            if len(where) and ((where[:, 0] + counts).max() > frames or where[:, 1].max() >= pooled or where[:, :2].min() < 0):
                raise CacheError(f"{self.path / CATALOG} is damaged: it points past the embeddings; {ANEW}.")

    def _rows_of(self, name: str) -> int:
        return len(self._maps[name]) if name in self._maps else 0

    def _mapped(self, file: RowFile) -> np.ndarray:
        place = self.path / file.file
        try:
            size = place.stat().st_size
        except OSError as error:
            raise CacheError(f"{self.path} is damaged: {file.file} is missing; {ANEW}.") from error
        if size < file.rows * file.width:
            raise CacheError(f"{self.path} is damaged: {file.file} has {size} of {file.rows * file.width} bytes; {ANEW}.")
        return np.memmap(place, dtype=np.uint8, mode="r", shape=(file.rows, file.width))

    def vectors(self, model: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Memory maps frames (T, D) and pooled (P, D), float16, and of each item where its frames begin (M,) and its pooled row (M,)."""
        where = self._vectors[model]
        return self._maps[f"{model}-frames"].view("<f2"), self._maps[f"{model}-pooled"].view("<f2"), where[:, 0], where[:, 1]

    def thumbnail(self, row: int, frame: int) -> bytes:
        """The JPEG of one frame of an item."""
        content = self.contents[row]
        start = content.thumb_at + sum(content.thumb_lengths[:frame])
        return self._maps[THUMBS][start : start + content.thumb_lengths[frame], 0].tobytes()

    def damaged(self) -> dict[str, set[str]]:
        """What is not what was written any more, by a checksum of every content: hash -> adapters' models, or ``thumbs``."""
        found: dict[str, set[str]] = {}
        for model, where in self._vectors.items():
            frames, pooled, frames_at, pooled_at = self.vectors(model)
            for row, (item, content) in enumerate(zip(self.items, self.contents, strict=True)):
                stored = crc_of(frames[frames_at[row] : frames_at[row] + len(content.times)], pooled[pooled_at[row]])
                if stored != int(where[row, 2]):
                    found.setdefault(item.hash, set()).add(model)
        for item, content in zip(self.items, self.contents, strict=True):
            if zlib.crc32(self._thumbs(content) if content.thumb_lengths else b"") != content.thumb_crc:
                found.setdefault(item.hash, set()).add(THUMBS)
        return found

    def _thumbs(self, content: Content) -> bytes:
        return self._maps[THUMBS][content.thumb_at : content.thumb_at + sum(content.thumb_lengths)].tobytes()


def crc_of(frames: np.ndarray, pooled: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(pooled).tobytes(), zlib.crc32(np.ascontiguousarray(frames).tobytes()))


def revision(path: Path) -> int:
    """How often a library has been updated; a reader whose snapshot has another one is behind."""
    connection = _connect(path, write=False)
    try:
        with _sentences(path):
            return int(_meta(connection).get("revision", 0))
    finally:
        connection.close()


class Writer:
    """The one process that changes a library; a context manager.

    ``stage`` and ``stage_vectors`` keep what has been done, ``keep`` brings it to disk, where a killed update finds it again, and
    ``publish`` makes it the content, all at once. Raises CacheError where another process is writing, and where the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = contextlib.ExitStack()
        self._open: dict[str, Any] = {}

    def __enter__(self) -> Writer:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(locked(self.path))
        try:
            if not (self.path / CATALOG).is_file():
                self._create()
            self._db = _connect(self.path, write=True)
            self._stack.callback(self._db.close)
            with _sentences(self.path):
                self.files = _files(self._db)
                self.meta, self.adapters = _meta(self._db), _adapters(self._db)
                self._tidy()
                self._db.execute("BEGIN IMMEDIATE")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with contextlib.suppress(CacheError, OSError):  # whatever ended it, what it has done is the next one's to use
                self.keep()
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            for file in self._open.values():
                with contextlib.suppress(OSError):
                    file.close()
            shutil.rmtree(self.path / WORK, ignore_errors=True)
        finally:
            self._stack.close()
            if self.fresh:
                self._remove_if_empty()

    def _create(self) -> None:
        if self.path.exists() and (not self.path.is_dir() or (any(self.path.iterdir()) and not self._unfinished())):
            raise CacheError(f"{self.path} is there already, and is no library; name another --out.")
        self.path.mkdir(exist_ok=True)
        scratch = self.path / f"{CATALOG}.partial"
        scratch.unlink(missing_ok=True)
        connection = sqlite3.connect(scratch, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN")
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
            for table in _TABLES:
                connection.execute(f"CREATE TABLE {table}")
            connection.execute("COMMIT")
        finally:
            connection.close()
        scratch.replace(self.path / CATALOG)

    def _unfinished(self) -> bool:
        """Whether all there is in the folder is a catalogue that was being made."""
        return all(file.name.startswith(f"{CATALOG}.partial") for file in self.path.iterdir())

    def _tidy(self) -> None:
        """Take away what a killed writer left: files that the catalogue does not know, and frames."""
        shutil.rmtree(self.path / WORK, ignore_errors=True)
        known = {file.file for file in self.files.values()}
        for stray in self.path.glob("*.rows"):
            if stray.name not in known:
                stray.unlink()

    @property
    def fresh(self) -> bool:
        """Whether the library has never had any content."""
        return not self.meta.get("revision")

    def _remove_if_empty(self) -> None:
        """Take away a library that a failed first indexing has made, unless it holds work that the next try can use."""
        if not any(file.rows for file in self.files.values()):
            shutil.rmtree(self.path, ignore_errors=True)

    # reading

    def items(self) -> dict[str, Item]:
        return {item.id: item for item in _items(self._db)}

    def contents(self) -> dict[str, Content]:
        return _contents(self._db)

    def failures(self) -> dict[str, str]:
        return dict(self._db.execute("SELECT id, reason FROM failures"))

    def vectors(self, model: str) -> dict[str, Vectors]:
        return _vectors(self._db, model)

    # writing

    def add_content(self, digest: str, times: Sequence[float], thumbs: Sequence[bytes]) -> None:
        """Note what was decoded of a content: the seconds of its frames, and a JPEG of each."""
        whole = b"".join(thumbs)
        at = self._append(THUMBS, 1, whole)
        content = Content(tuple(float(t) for t in times), at, tuple(len(thumb) for thumb in thumbs), zlib.crc32(whole))
        self._db.execute("INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?, ?, ?)", (digest, *content.row()))

    def add_vectors(self, model: str, digest: str, frames: np.ndarray, pooled: np.ndarray) -> None:
        """Note a content's embeddings: frames (n, D) and pooled (D,), float16."""
        frames, pooled = np.ascontiguousarray(frames, "<f2"), np.ascontiguousarray(pooled, "<f2")
        width = 2 * pooled.shape[-1]
        frames_at = self._append(f"{model}-frames", width, frames.tobytes())
        pooled_at = self._append(f"{model}-pooled", width, pooled.tobytes())
        self._db.execute(
            "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?)", (model, digest, frames_at, pooled_at, crc_of(frames, pooled))
        )

    def _append(self, name: str, width: int, data: bytes) -> int:
        """The row at which the data begins."""
        known = self.files.setdefault(name, RowFile(f"{name}-0.rows", width, 0))
        if known.width != width:
            raise CacheError(f"{self.path}: rows of {width} bytes do not go into {known.file}, whose rows have {known.width}.")
        with self._room():
            if name not in self._open:
                file = (self.path / known.file).open("ab", buffering=2**20)
                self._open[name] = file
                file.truncate(known.rows * width)  # what a killed writer appended and did not count
                file.seek(0, os.SEEK_END)
                if file.tell() < known.rows * width:
                    raise CacheError(f"{self.path} is damaged: {known.file} is cut off; {ANEW}.")
            self._open[name].write(data)
        self.files[name] = RowFile(known.file, width, known.rows + len(data) // width)
        return known.rows

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise CacheError(
                    f"There is no room left for {self.path}; make room, and repeat the command: what was done is kept."
                ) from error
            raise

    def keep(self) -> None:
        """Bring what was staged to disk."""
        with self._room(), _sentences(self.path):
            for file in self._open.values():
                file.flush()
                os.fsync(file.fileno())
            self._write_files()
            self._db.execute("COMMIT")
            self._db.execute("BEGIN IMMEDIATE")

    def _write_files(self) -> None:
        known = _files(self._db)
        rows = [(name, file.file, file.width, file.rows) for name, file in self.files.items() if known.get(name) != file]
        self._db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)

    def publish(self, items: Iterable[Item], adapters: Mapping[str, Adapter], failures: Mapping[str, str], meta: Mapping[str, Any]) -> None:
        """Make these the library's items, all at once.

        Raises CacheError where the content of one, or its embeddings of one of the adapters, are not there; all is then as it was.
        """
        models = sorted({adapter.model for adapter in adapters.values()})
        with _sentences(self.path):
            self.keep()  # the rows are on disk before they count
            run, each = self._db.execute, self._db.executemany
            try:
                before, after = {row[0]: row for row in run("SELECT * FROM items")}, {item.id: item.row() for item in items}
                each("DELETE FROM items WHERE id = ?", ((name,) for name in before.keys() - after.keys()))
                new = (row for name, row in after.items() if before.get(name) != row)
                each("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?, ?)", new)
                for adapter in adapters.values():
                    known = "SELECT 1 FROM vectors JOIN contents USING (hash) WHERE model = ? AND vectors.hash = items.hash"
                    lacking = run(f"SELECT id FROM items WHERE NOT EXISTS ({known}) LIMIT 1", (adapter.model,)).fetchone()
                    if lacking:
                        raise CacheError(f"{self.path}: {lacking[0]} has no embeddings of {adapter.name!r}; the library is as it was.")
                for table in ("contents", "vectors"):
                    run(f"DELETE FROM {table} WHERE hash NOT IN (SELECT hash FROM items)")
                run(f"DELETE FROM vectors WHERE model NOT IN ({','.join('?' * len(models))})", models)
                run("DELETE FROM failures")
                each("INSERT INTO failures VALUES (?, ?)", sorted(failures.items()))
                run("DELETE FROM adapters")
                each("INSERT INTO adapters VALUES (?, ?, ?)", ((a.name, a.model, json.dumps(a.about)) for a in adapters.values()))
                now = {**meta, "revision": int(self.meta.get("revision", 0)) + 1}
                run("DELETE FROM meta")
                each("INSERT INTO meta VALUES (?, ?)", ((key, json.dumps(value)) for key, value in now.items()))
            except BaseException:
                run("ROLLBACK")
                run("BEGIN IMMEDIATE")
                raise
            self.keep()
            self.meta, self.adapters = now, dict(adapters)
        self._drop_models(set(models))
        if self._wasted() > WASTE:
            self.compact()

    def _drop_models(self, models: set[str]) -> None:
        """Take away the files of adapters that are gone."""
        gone = [name for name in self.files if name != THUMBS and name.rpartition("-")[0] not in models]
        names = [self.files.pop(name).file for name in gone]
        if gone:
            self._db.executemany("DELETE FROM files WHERE name = ?", ((name,) for name in gone))
            for name in gone:
                if name in self._open:
                    self._open.pop(name).close()
            self.keep()
        for name in names:
            (self.path / name).unlink(missing_ok=True)
        for folder in (self.path / ADAPTERS).glob("*"):
            if folder.name not in models:
                shutil.rmtree(folder, ignore_errors=True)

    def _wasted(self) -> float:
        """The largest share of a file's rows that belong to no content."""
        run = self._db.execute
        live = {THUMBS: run("SELECT COALESCE(SUM(thumb_size), 0) FROM contents").fetchone()[0]}
        for model in {adapter.model for adapter in self.adapters.values()}:
            known = "SELECT COUNT(*), COALESCE(SUM(LENGTH(times)), 0) / 4 FROM vectors JOIN contents USING (hash) WHERE model = ?"
            live[f"{model}-pooled"], live[f"{model}-frames"] = run(known, (model,)).fetchone()
        return max((1 - live.get(name, 0) / file.rows for name, file in self.files.items() if file.rows), default=0.0)

    def compact(self) -> None:
        """Write every file again with the rows of its items alone, in the order of their ids, and let go of the old ones.

        What the files hold then depends on the items alone, and not on the order in which they came.
        """
        contents = self.contents()
        vectors = {model: self.vectors(model) for model in sorted({adapter.model for adapter in self.adapters.values()})}
        order = list(dict.fromkeys(item.hash for item in self.items().values()))
        old = {name: self.path / file.file for name, file in self.files.items()}
        for file in self._open.values():
            file.close()
        self._open.clear()
        maps = {
            name: np.memmap(self.path / file.file, np.uint8, "r", shape=(file.rows, file.width))
            for name, file in self.files.items()
            if file.rows
        }
        for name, was in self.files.items():
            number = int(was.file.removesuffix(".rows").rpartition("-")[2]) + 1
            self.files[name] = RowFile(f"{name}-{number}.rows", was.width, 0)
            (self.path / self.files[name].file).unlink(missing_ok=True)
        with _sentences(self.path):
            for digest in order:
                content = contents[digest]
                at, size = content.thumb_at, sum(content.thumb_lengths)
                at = self._append(THUMBS, 1, maps[THUMBS][at : at + size].tobytes()) if size else 0
                self._db.execute("UPDATE contents SET thumb_at = ? WHERE hash = ?", (at, digest))
                for model, found in vectors.items():
                    names, (start, pooled, _) = (f"{model}-frames", f"{model}-pooled"), found[digest]
                    rows = (maps[names[0]][start : start + len(content.times)], maps[names[1]][pooled])
                    places = [self._append(name, maps[name].shape[1], row.tobytes()) for name, row in zip(names, rows, strict=True)]
                    change = "UPDATE vectors SET frames_at = ?, pooled_at = ? WHERE model = ? AND hash = ?"
                    self._db.execute(change, (*places, model, digest))
        self.keep()
        for path in old.values():
            path.unlink(missing_ok=True)
