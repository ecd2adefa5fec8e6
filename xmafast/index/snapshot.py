"""Reading a library: all of it as it was at one moment."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from xmafast.errors import CacheError
from xmafast.index.catalog import (
    ANEW,
    CATALOG,
    THUMBS,
    Content,
    RowFile,
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


class Snapshot:
    """A library's content at one moment: it stays as it is while others write.

    Attributes: ``meta``, ``adapters`` by name, ``items`` (a list in the order of their ids), ``contents`` (of each item), ``failures``
    (id -> reason). Raises CacheError for a folder that is no library, a damaged or newer one, and one whose first indexing has not ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        connection = connect(path, write=False)
        try:
            with sentences(path):
                connection.execute("BEGIN")
                self.meta = meta_of(connection)
                if not self.meta.get("revision"):
                    raise CacheError(f"{path} is empty: its first indexing was interrupted; repeat the `xmafast index` command.")
                self.adapters = adapters_of(connection)
                self.items = items_of(connection)
                self.failures = dict(connection.execute("SELECT id, reason FROM failures ORDER BY id"))
                contents = contents_of(connection)
                self.contents = [contents[item.hash] for item in self.items]
                self._vectors: dict[str, np.ndarray] = {}
                for model in {adapter.model for adapter in self.adapters.values()}:
                    found = vectors_of(connection, model)
                    self._vectors[model] = np.array([found[item.hash] for item in self.items], dtype=np.int64).reshape(-1, 3)
                # mapped before a writer, who waits for the end of this transaction, may take their names away
                self._maps = {name: self._mapped(file) for name, file in files_of(connection).items() if file.rows}
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


def revision(path: Path) -> int:
    """How often a library has been updated; a reader whose snapshot has another one is behind."""
    connection = connect(path, write=False)
    try:
        with sentences(path):
            return int(meta_of(connection).get("revision", 0))
    finally:
        connection.close()
