"""Changing a library: one process at a time, so that whatever kills it does no harm."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmafast.cache.file import FULL
from xmafast.cache.lock import locked
from xmafast.errors import CacheError
from xmafast.index.catalog import (
    ADAPTERS,
    ANEW,
    APPLICATION,
    CATALOG,
    SCHEMA,
    TABLES,
    THUMBS,
    WORK,
    Adapter,
    Content,
    Item,
    RowFile,
    Vectors,
    adapters_of,
    connect,
    contents_of,
    crc_of,
    files_of,
    items_of,
    meta_of,
    sentences,
    vectors_of,
)

WASTE = 0.3  # the share of a file's rows that may be of no item any more before the file is written again


class Writer:
    """The one process that changes a library; a context manager.

    ``add_content`` and ``add_vectors`` note what has been done, ``keep`` brings it to disk, where a killed update finds it again, and
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
            self._db = connect(self.path, write=True)
            self._stack.callback(self._db.close)
            with sentences(self.path):
                self.files = files_of(self._db)
                self.meta, self.adapters = meta_of(self._db), adapters_of(self._db)
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
            for table in TABLES:
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
        return {item.id: item for item in items_of(self._db)}

    def contents(self) -> dict[str, Content]:
        return contents_of(self._db)

    def failures(self) -> dict[str, str]:
        return dict(self._db.execute("SELECT id, reason FROM failures"))

    def vectors(self, model: str) -> dict[str, Vectors]:
        return vectors_of(self._db, model)

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
        """Bring what was noted to disk."""
        with self._room(), sentences(self.path):
            for file in self._open.values():
                file.flush()
                os.fsync(file.fileno())
            self._write_files()
            self._db.execute("COMMIT")
            self._db.execute("BEGIN IMMEDIATE")

    def _write_files(self) -> None:
        known = files_of(self._db)
        rows = [(name, file.file, file.width, file.rows) for name, file in self.files.items() if known.get(name) != file]
        self._db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)

    def publish(self, items: Iterable[Item], adapters: Mapping[str, Adapter], failures: Mapping[str, str], meta: Mapping[str, Any]) -> None:
        """Make these the library's items, all at once.

        Raises CacheError where the content of one, or its embeddings of one of the adapters, are not there; all is then as it was.
        """
        models = sorted({adapter.model for adapter in adapters.values()})
        with sentences(self.path):
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
        with sentences(self.path):
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
