"""A query in a library, without the model: ``Index.search_vector`` beside a plain matrix product and ``torch.topk``.

    python benchmarks/search.py [--clips 10000] [--frames 12] [--dim 512] [--rounds 7] [--out FILE]

Random embeddings, one query at a time, forms interleaved, medians over rounds. The rivals hold every frame in float32 in memory, twice
what a library maps, and are given the Gram matrices too; sentence-transformers' semantic_search (`pip install xmafast[bench]`) is given the
videos' means. The library reads float16 from its files and settles near-ties in float64.
Each form must find the same clips. Prints a table and writes benchmarks/results/search.json.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import machine
from measure import interleaved
from rich.console import Console
from rich.table import Table

from xmafast.index import Filters, Index
from xmafast.index.catalog import Adapter, Item
from xmafast.index.writer import Writer

try:
    from sentence_transformers.util import semantic_search
except ImportError:
    semantic_search = None

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--clips", type=int, default=10_000)
parser.add_argument("--frames", type=int, default=12)
parser.add_argument("--dim", type=int, default=512)
parser.add_argument("--topk", type=int, default=10)
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "search.json")


def library(path: Path, frames: np.ndarray) -> Index:
    """A library of these frames (M, F, D) float16."""
    about = {"header": "text-conditioned", "pooling": "text-conditioned", "temperature": 5.0, "dim": frames.shape[2]}
    wide = torch.from_numpy(frames).float()
    pooled = torch.nn.functional.normalize(torch.nn.functional.normalize(wide, dim=-1).mean(1), dim=-1).half().numpy()
    items = [Item(f"{i:07}.mp4", f"{i:07}.mp4", 1, 1, f"{i:032x}") for i in range(len(frames))]
    with Writer(path) as writer:
        for i, item in enumerate(items):
            writer.add_content(item.hash, range(frames.shape[1]), [b"jpeg"] * frames.shape[1])
            writer.add_vectors("random", item.hash, frames[i], pooled[i])
        meta = {"root": "nowhere", "kind": "folder", "frames": frames.shape[1], "sampling": "fps", "size": 224}
        writer.publish(items, {"random": Adapter("random", "random", about)}, {}, meta)
    return Index(path)


def main() -> None:
    options = parser.parse_args()
    m, f, d, k = options.clips, options.frames, options.dim, options.topk
    generator = torch.Generator().manual_seed(0)
    frames = (torch.randn(m, f, d, generator=generator) * 0.3 + torch.randn(m, 1, d, generator=generator) * 0.3).half()
    query = torch.randn(d, generator=generator)
    wide = frames.float()
    pooled = torch.nn.functional.normalize(torch.nn.functional.normalize(wide, dim=-1).mean(1), dim=-1)
    unit, gram = query / query.norm(), torch.bmm(wide, wide.mT)
    flat = wide.view(m * f, d)

    def conditioned() -> list[int]:
        a = (flat @ query).view(m, f)
        w = (a / 5).softmax(1)
        scores = (w * a).sum(1) / ((gram @ w[..., None]).squeeze(-1) * w).sum(1).sqrt()
        return scores.topk(k).indices.tolist()

    with tempfile.TemporaryDirectory() as folder:
        index = library(Path(folder) / "lib.xma", frames.numpy())

        def own(header: str, filters: Filters | None = None) -> list[int]:
            hits = index.search_vector(query, topk=k, header=header, filters=filters or Filters())
            return [int(hit.id[:7]) for hit in hits]

        sections: dict[str, dict[str, Callable[[], list[int]]]] = {
            "text-conditioned": {"matmul + topk, float32": conditioned, "xmafast.Index": lambda: own("text-conditioned")},
            "mean": {"matmul + topk, float32": lambda: (pooled @ unit).topk(k).indices.tolist(), "xmafast.Index": lambda: own("mean")},
        }
        if semantic_search:

            def semantic() -> list[int]:
                return [int(hit["corpus_id"]) for hit in semantic_search(unit, pooled, top_k=k)[0]]

            sections["mean"]["sentence-transformers semantic_search, float32"] = semantic
        rows = []
        for header, forms in sections.items():
            found = {name: form() for name, form in forms.items()}
            plain = set(found["matmul + topk, float32"])
            checked = all(len(plain & set(other)) >= k - 1 for other in found.values())  # float16 may exchange the last
            times = interleaved(dict(forms), "cpu", options.rounds)
            base = times["matmul + topk, float32"]["median_ms"]
            rows += [{"header": header, "form": name, "checked": checked, "ratio": t["median_ms"] / base, **t} for name, t in times.items()]
    table = Table("header", "form", "ms", "times the plain form", title=f"One query, {m:,} clips x {f} frames x {d}", title_justify="left")
    for row in rows:
        table.add_row(row["header"], row["form"], f"{row['median_ms']:.1f}", f"{row['ratio']:.2f}")
    Console(width=120).print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine() | {"threads": torch.get_num_threads()}, "clips": m, "frames": f, "dim": d, "topk": k, "rows": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
