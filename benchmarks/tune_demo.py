"""Choose the demo's learning rate and epochs by cross-validation inside its 450 training clips.

    python benchmarks/tune_demo.py [--lr 1e-3 3e-3] [--epochs 5 8] [--folds 3]

Each of the folds of 150 clips is held out once; test clips are never read. Prints the mean over folds after each epoch and
appends to benchmarks/results/tune_demo.jsonl. A few minutes a setting on two cores.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
import torch
from machine import machine

from xmafast import Retriever, load_backbone
from xmafast.cache import open_splits
from xmafast.evaluation import rank_cache
from xmafast.training import Recipe, fit

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--cache", type=Path, default=Path("caches/demo"))
parser.add_argument("--lr", type=float, nargs="+", default=[1e-3])
parser.add_argument("--epochs", type=int, nargs="+", default=[5])
parser.add_argument("--batch-size", type=int, nargs="+", default=[64])
parser.add_argument("--folds", type=int, default=3)
parser.add_argument("--train-frames", type=int, nargs="+", default=[4])
parser.add_argument("--weight-decay", type=float, nargs="+", default=[0.2])
args = parser.parse_args()

RESULTS = Path(__file__).parent / "results" / "tune_demo.jsonl"

cache = open_splits(args.cache)["train"]
backbone = load_backbone("demo")
order = np.random.default_rng(0).permutation(cache.rows)
folds = [np.sort(part) for part in np.array_split(order, 3)][: args.folds]


def r_sum(metrics: dict) -> float:
    return sum(value for key, value in metrics.items() if key.startswith("R@"))


def show(name: str, values: list[dict]) -> None:
    mean = {d: {k: float(np.mean([v[d][k] for v in values])) for k in values[0][d]} for d in ("t2v", "v2t")}
    print(
        f"{name:60s}",
        *(f"{d} R@1 {mean[d]['R@1']:5.1f} R-sum {r_sum(mean[d]):6.1f}" for d in mean),
        flush=True,
    )
    with RESULTS.open("a") as file:
        file.write(json.dumps({"setting": name, **mean, "folds": len(values), "machine": machine()}) + "\n")


RESULTS.parent.mkdir(exist_ok=True)
show("zero-shot", [rank_cache(Retriever(backbone, None), cache, fold, captions=1).metrics() for fold in folds])
for lr, epochs, batch, decay, frames in itertools.product(args.lr, args.epochs, args.batch_size, args.weight_decay, args.train_frames):
    results: dict[int, list[dict]] = {}
    started = time.monotonic()
    for seed, fold in enumerate(folds):
        torch.manual_seed(seed)
        retriever = Retriever(backbone, "cross-modal")
        recipe = Recipe(epochs, batch, lr, train_frames=frames, weight_decay=decay, seed=seed)
        for step in fit(retriever, cache, np.setdiff1d(cache.rows, fold), recipe):
            if step.epoch == epochs or step.epoch % 3 == 0:
                results.setdefault(step.epoch, []).append(rank_cache(retriever, cache, fold, captions=1).metrics())
    seconds = (time.monotonic() - started) / len(folds)
    for epoch, values in results.items():
        show(f"lr {lr:g} batch {batch} wd {decay:g} frames {frames} epoch {epoch}/{epochs} ({seconds:.0f} s)", values)
