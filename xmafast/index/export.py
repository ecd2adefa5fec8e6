"""A library's embeddings for other tools: FAISS, Parquet, LanceDB."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xmafast.errors import UsageError, unknown
from xmafast.files import write_atomically
from xmafast.index.library import Index

PACKAGES = {"faiss": ("faiss", "faiss-cpu"), "parquet": ("pyarrow", "pyarrow"), "lancedb": ("lancedb", "lancedb")}
ROWS = 1024  # items that are written at a time


def export(index: Index, kind: str, path: str | Path, adapter: str | None = None) -> Path:
    """Write one adapter's embeddings to ``path``, in the order of ``Index.ids``; gives the path back.

    faiss: a flat inner-product index of the mean header's unit vectors, (M, D) float32, and ``PATH.jsonl``, whose line i says which item
        row i is. Its inner product with a unit query is the mean header's score.
    parquet: one row an item: id, source, split, captions, modified (seconds since 1970), pooled (D float32), times (n float32) and frames
        (n lists of D float16, un-normalised).
    lancedb: a database with a table ``items``: the same without frames, and ``vector`` for pooled.

    Raises UsageError for an unknown kind or adapter, a path that is there as something else, and a package that is not installed.
    """
    if kind not in PACKAGES:
        raise unknown("export", kind, PACKAGES)
    path = Path(path)
    module, package = PACKAGES[kind]
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"Exporting to {kind} needs {package}, which is not installed; try: pip install {package}") from error
    if path.resolve() == index.path.resolve() or (path.is_dir() != (kind == "lancedb") and path.exists()):
        raise UsageError(f"{path} is there already, as something else; name another --to.")
    path.parent.mkdir(parents=True, exist_ok=True)
    {"faiss": _faiss, "parquet": _parquet, "lancedb": _lancedb}[kind](index, path, adapter)
    return path


def _about(index: Index) -> Iterator[dict[str, Any]]:
    for item in index._snapshot.items:
        yield {
            "id": item.id,
            "source": str(Path(index.settings["root"]) / item.source),
            "split": item.split,
            "captions": list(item.captions),
            "modified": item.mtime / 1e9,
        }


def _faiss(index: Index, path: Path, adapter: str | None) -> None:
    import faiss

    pooled = np.ascontiguousarray(index.pooled(adapter))
    flat = faiss.IndexFlatIP(pooled.shape[1])
    flat.add(pooled)
    lines = "".join(json.dumps({"row": row, **about}, ensure_ascii=False) + "\n" for row, about in enumerate(_about(index)))
    write_atomically(path.with_name(path.name + ".jsonl"), lambda partial: partial.write_text(lines, encoding="utf-8"))
    write_atomically(path, lambda partial: faiss.write_index(flat, str(partial)))


def _tables(index: Index, adapter: str | None, vector: str, *, frames: bool) -> tuple[Any, Iterator[Any]]:
    """An Arrow schema, and the record batches."""
    import pyarrow as pa

    pooled = index.pooled(adapter)
    dim = pooled.shape[1]
    fields = [("id", pa.string()), ("source", pa.string()), ("split", pa.string()), ("captions", pa.list_(pa.string()))]
    fields += [("modified", pa.float64()), (vector, pa.list_(pa.float32(), dim)), ("times", pa.list_(pa.float32()))]
    if frames:
        fields.append(("frames", pa.list_(pa.list_(pa.float16(), dim))))
    schema = pa.schema(fields)

    def batches() -> Iterator[Any]:
        abouts = list(_about(index))
        for start in range(0, len(abouts), ROWS):
            some = abouts[start : start + ROWS]
            columns = [pa.array([about[name] for about in some], schema.field(name).type) for name, _ in fields[:5]]
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(pooled[start : start + ROWS].reshape(-1)), dim))
            columns.append(pa.array([list(index.times(about["id"])) for about in some], schema.field("times").type))
            if frames:
                each = [index.embeddings(about["id"], adapter) for about in some]
                ends = pa.array(np.cumsum([0, *(len(rows) for rows in each)]), pa.int32())
                rows = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(each).reshape(-1)), dim)
                columns.append(pa.ListArray.from_arrays(ends, rows))
            yield pa.record_batch(columns, schema=schema)

    return schema, batches()


def _parquet(index: Index, path: Path, adapter: str | None) -> None:
    import pyarrow.parquet as pq

    schema, batches = _tables(index, adapter, "pooled", frames=True)

    def write(partial: Path) -> None:
        with pq.ParquetWriter(str(partial), schema) as writer:
            for batch in batches:
                writer.write_batch(batch)

    write_atomically(path, write)


def _lancedb(index: Index, path: Path, adapter: str | None) -> None:
    import lancedb

    schema, batches = _tables(index, adapter, "vector", frames=False)
    fresh = not path.exists()
    try:
        lancedb.connect(str(path)).create_table("items", batches, schema=schema, mode="overwrite")
    except BaseException:
        if fresh:
            shutil.rmtree(path, ignore_errors=True)
        raise
