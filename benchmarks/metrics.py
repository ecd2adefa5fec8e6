"""xmafast's metrics beside those of torchmetrics and open_clip: the same numbers, and what they cost.

    python benchmarks/metrics.py [--sizes 1000 5000] [--rounds 5] [--quick] [--out FILE]

Random unit vectors of 512 numbers without ties, one caption a video, and at the smallest size also five captions a video. Every form's
numbers are checked against xmafast's before anything is timed: R@K and mean rank equal, mAP and nDCG to 1e-5, as torchmetrics keeps
float32. Forms are interleaved; medians over rounds. torchmetrics (`pip install xmafast[bench]`) is asked for one number of one
direction, every other form gives both directions' R@1, R@5, R@10, MdR and MnR. Prints a table and writes benchmarks/results/metrics.json.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from machine import machine, versions
from measure import Run, interleaved
from rich.console import Console
from rich.table import Table
from torch.nn.functional import normalize

from xmafast.kernels import ranks_both
from xmafast.kernels.ranking.scores import InnerProducts
from xmafast.metrics import metrics_of, precision_and_gain, rank_of
from xmafast.ranks import caption_counts, rank_matrix

try:
    from torchmetrics import retrieval
except ImportError:
    retrieval = None
try:
    from open_clip_train.train import get_clip_metrics
except ImportError:
    get_clip_metrics = None

WIDTH, CAPTIONS = 512, 5

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 5000], help="texts and videos")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--quick", action="store_true", help="100 texts and one round, to see that everything runs")
parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "metrics.json")
args = parser.parse_args()
sizes, rounds = ([100], 1) if args.quick else (sorted(args.sizes), args.rounds)


def embeddings(texts: int, videos: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Texts near their videos, so that the metrics are neither 0 nor 100."""
    generator = torch.Generator().manual_seed(texts)
    video = normalize(torch.randn(videos, WIDTH, generator=generator), dim=-1)
    own = torch.arange(texts) % videos
    return normalize(0.2 * video[own] + torch.randn(texts, WIDTH, generator=generator) / WIDTH**0.5, dim=-1), video, own


def ours(text: torch.Tensor, video: torch.Tensor) -> dict[str, dict[str, float]]:
    found = {}
    for side, (greater, ties) in zip(("t2v", "v2t"), ranks_both(text, video), strict=True):
        found[side] = metrics_of(rank_of(greater.numpy(), ties.numpy()))
    return found


def flat(scores: torch.Tensor, positive: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What torchmetrics takes: scores, targets and queries of all pairs."""
    return scores.flatten(), positive.flatten(), torch.arange(len(scores)).repeat_interleave(scores.shape[1])


def check_open_clip(theirs: dict, mine: dict) -> None:
    for side, name in (("t2v", "text_to_image"), ("v2t", "image_to_text")):
        for k in (1, 5, 10):
            assert math.isclose(mine[side][f"R@{k}"], 100 * theirs[f"{name}_R@{k}"], rel_tol=1e-12), (name, k)
        assert math.isclose(mine[side]["MnR"], theirs[f"{name}_mean_rank"], rel_tol=1e-12), name
        assert math.floor(mine[side]["MdR"]) == theirs[f"{name}_median_rank"], name  # open_clip rounds a median between two ranks down


def asked(metric: Any, pairs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """A number of torchmetrics from scratch, without what the call before left."""
    metric.reset()
    metric.update(pairs[0], pairs[1], indexes=pairs[2])
    return metric.compute()


def paired(size: int) -> dict[str, Run]:
    """As many texts as videos, each its own."""
    text, video, _ = embeddings(size, size)
    array, scale = (text @ video.T).numpy(), torch.tensor(1.0)
    mine = ours(text, video)
    assert rank_matrix(array).metrics() == mine
    forms: dict[str, Run] = {
        "xmafast, from embeddings": lambda: ours(text, video),
        "xmafast, from a matrix": lambda: rank_matrix(array).metrics(),
    }
    if get_clip_metrics:
        check_open_clip(get_clip_metrics(video, text, scale), mine)
        forms["open_clip get_clip_metrics"] = lambda: get_clip_metrics(video, text, scale)
    if retrieval:
        pairs, recall = flat(text @ video.T, torch.eye(size, dtype=torch.bool)), retrieval.RetrievalRecall(top_k=1)
        assert math.isclose(100 * float(asked(recall, pairs)), mine["t2v"]["R@1"], rel_tol=1e-5)
        forms["torchmetrics RetrievalRecall(1), one direction"] = lambda: asked(recall, pairs)
    return forms


def several(videos: int) -> dict[str, Run]:
    """Video to text with ``CAPTIONS`` positives each."""
    text, video, own = embeddings(videos * CAPTIONS, videos)

    def mine() -> tuple[float, float]:
        precision, gain = precision_and_gain(*caption_counts(InnerProducts(text, video), own), len(text))
        return float(precision.mean()), float(gain.mean())

    forms: dict[str, Run] = {"xmafast, mAP and nDCG": mine}
    if retrieval:
        pairs = flat(video @ text.T, own == torch.arange(videos)[:, None])
        for value, kind in zip(mine(), (retrieval.RetrievalMAP(), retrieval.RetrievalNormalizedDCG()), strict=True):
            assert math.isclose(float(asked(kind, pairs)), value, rel_tol=1e-5), kind
            forms[f"torchmetrics {type(kind).__name__}"] = lambda kind=kind: asked(kind, pairs)
    return forms


missing = [name for name, there in (("torchmetrics", retrieval), ("open_clip_train", get_clip_metrics)) if there is None]
cases = {f"{size:,} x {size:,}, R@K, MdR, MnR": paired(size) for size in sizes}
cases[f"{sizes[0]:,} videos of {CAPTIONS} captions, video to text"] = several(sizes[0])
rows = [(case, interleaved(forms, "cpu", rounds)) for case, forms in cases.items()]

table = Table("", "form", "ms", "p20-p80", "times xmafast's", title=f"{WIDTH} numbers, {torch.get_num_threads()} threads")
result = []
for name_of, times in rows:
    case = name_of
    first = next(iter(times.values()))["median_ms"]
    for form, time in times.items():
        ratio = time["median_ms"] / first
        table.add_row(case, form, f"{time['median_ms']:,.1f}", f"{time['p20_ms']:,.1f}-{time['p80_ms']:,.1f}", f"{ratio:,.1f}")
        result.append({"case": name_of, "form": form, **time, "ratio": ratio, "checked": True})
        case = ""
    table.add_section()
Console(width=150).print(table)
for name in missing:
    print(f"{name} is not installed, and left out", file=sys.stderr)
about = {"machine": machine() | versions(["torchmetrics"]), "threads": torch.get_num_threads(), "load": os.getloadavg()[0], "width": WIDTH}
args.out.write_text(json.dumps({**about, "rounds": rounds, "missing": missing, "rows": result}, indent=1) + "\n", encoding="utf-8")
slower = [row["form"] for row in result if not row["form"].startswith("xmafast") and row["ratio"] < 1]
if slower and not args.quick:
    sys.exit(f"missed: {', '.join(slower)} was faster")
