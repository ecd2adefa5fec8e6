"""What other tools read of a library, through the real libraries where they are installed."""

import json
import sys

import numpy as np
import pytest
import torch
from indexing import adapter, fill

from xmafast.errors import UsageError
from xmafast.index import Index
from xmafast.index.export import PACKAGES, export


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "lib.xma"
    fill(path, [f"clips/{i:03}.mp4" for i in range(50)], adapters={"made": adapter(pooling="mean")})
    return Index(path)


QUERY = torch.randn(16, generator=torch.Generator().manual_seed(1))
UNIT = (QUERY / QUERY.norm()).numpy()


def test_faiss_finds_what_the_library_finds(library, tmp_path):
    faiss = pytest.importorskip("faiss", reason="pip install faiss-cpu")
    path = export(library, "faiss", tmp_path / "lib.faiss")
    rows = [json.loads(line) for line in (tmp_path / "lib.faiss.jsonl").read_text().splitlines()]
    scores, found = faiss.read_index(str(path)).search(UNIT[None], 50)
    hits = library.search_vector(QUERY, topk=50)
    assert [rows[i]["id"] for i in found[0]] == [hit.id for hit in hits]
    assert scores[0] == pytest.approx([hit.score for hit in hits], abs=1e-6)
    assert rows[0]["source"] == str(library.source(rows[0]["id"]))


def test_parquet_reads_back_equal(library, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")
    table = parquet.read_table(export(library, "parquet", tmp_path / "lib.parquet"))
    assert table["id"].to_pylist() == library.ids
    assert np.array_equal(np.array(table["pooled"].to_pylist(), np.float32), library.pooled())
    for name, frames, times in zip(library.ids, table["frames"].to_pylist(), table["times"].to_pylist(), strict=True):
        assert np.array_equal(np.array(frames, np.float16), library.embeddings(name))
        assert tuple(times) == library.times(name)


def test_lancedb_finds_what_the_library_finds(library, tmp_path):
    lancedb = pytest.importorskip("lancedb", reason="pip install lancedb")
    for _ in range(2):  # a second export takes the place of the first
        path = export(library, "lancedb", tmp_path / "lib.lance")
    table = lancedb.connect(str(path)).open_table("items")
    assert table.count_rows() == 50
    found = table.search(UNIT).distance_type("dot").limit(10).to_list()
    assert [row["id"] for row in found] == [hit.id for hit in library.search_vector(QUERY, topk=10)]


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_package_that_is_missing_is_named_in_one_sentence(library, tmp_path, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, PACKAGES[kind][0], None)
    with pytest.raises(UsageError, match=f"needs {PACKAGES[kind][1]}, which is not installed; try: pip install {PACKAGES[kind][1]}"):
        export(library, kind, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_takes_the_place_of_no_other_thing(library, tmp_path):
    pytest.importorskip("faiss", reason="pip install faiss-cpu")
    with pytest.raises(UsageError, match="is there already"):
        export(library, "faiss", tmp_path)
    with pytest.raises(UsageError, match="Did you mean 'faiss'"):
        export(library, "fais", tmp_path / "x")
