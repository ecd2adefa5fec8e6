"""Every method on the demo, side by side: what it trains, what it costs, what it brings and what it forgets.

    python benchmarks/methods.py                       all of the below; what is recorded already is not run again
    python benchmarks/methods.py tune train            some steps
    python benchmarks/methods.py --only full bias      some rows
    python benchmarks/methods.py --jobs 2              that many trainings at a time, with a share of the cores each

tune     a learning rate for each row: on a third of the training clips, with the others trained on, steps of a factor of three from a
         guess, up and down, until both neighbours are worse in R-sum. Test clips are never read.
train    `xmafast.train` with that rate at seeds 0, 1, 2; the 150 test clips are ranked once, by the epoch that validation kept.
forget   of each trained model, text-image retrieval over 300 stills that the backbone's pretraining held out, against the frozen one's.
cost     milliseconds of a training step, all rows interleaved in one process, and the peak memory of a process of its own.
table    everything as a table, and benchmarks/results/methods.json. Fails where a row is missing.

`forget` needs the stills, which npm fetches once (xmafast/demo/pretrain.py), or --stills FOLDER. Runs are kept under --workspace.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from methods_rows import ROWS, Row, run_folder
from methods_table import show

HERE = Path(__file__).parent
STEPS = ("tune", "train", "forget", "cost", "table")
SEEDS = (0, 1, 2)
FACTOR = 3.0
EPOCHS = 6  # half of the demo's: the whole table takes some two hours on two cores


class Records:
    """The results file: one JSON object, with the outcome of each run under its key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def __setitem__(self, key: str, value: Any) -> None:
        self.rows[key] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.rows, indent=1, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--only", nargs="+", metavar="ROW", help=", ".join(row.name for row in ROWS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--workspace", type=Path, default=Path("methods-benchmark"))
    parser.add_argument("--stills", type=Path, default=None)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="fewer, to see that it runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "methods.json")
    args = parser.parse_args()
    steps, names = args.steps or list(STEPS), {row.name for row in ROWS}
    for wrong in [*(set(steps) - set(STEPS)), *(set(args.only or ()) - names)]:
        parser.error(f"{wrong!r} is no step and no row")
    rows = [row for row in ROWS if not args.only or row.name in args.only]
    records = Records(args.out)
    if records.rows.get("epochs", args.epochs) != args.epochs:
        parser.error(f"{args.out} holds runs of {records.rows['epochs']} epochs; name another --out")
    records["epochs"] = args.epochs
    worker("cache", args, {})
    with ThreadPoolExecutor(args.jobs) as pool:
        if "tune" in steps:
            list(pool.map(lambda row: tune(row, args, records), rows))
        if "train" in steps:
            list(pool.map(lambda job: train(*job, steps, args, records), [(row, seed) for seed in args.seeds for row in rows]))
    if "forget" in steps:
        forget(rows, args, records)
    if "cost" in steps:
        cost(rows, args, records)
    if "table" in steps and not show(records.rows, rows, args.seeds):
        sys.exit("some rows are not complete; run the steps that are missing")


def tune(row: Row, args: argparse.Namespace, records: Records) -> None:
    """The best of a grid of rates, each a factor of three from the next; a grid's end that is best is walked on from."""

    start = row.lr
    if start is None or f"lr/{row.name}" in records.rows:
        return

    def score(step: int) -> float:
        lr = start * FACTOR**step
        key = f"tune/{row.name}/{lr:.3g}"
        if key not in records.rows:
            records[key] = worker("tune", args, {"row": row.name, "lr": lr})
            print(f"{key}: R-sum {records.rows[key]['r_sum']:.1f}", file=sys.stderr, flush=True)
        return records.rows[key]["r_sum"]

    best = max((-1, 0, 1), key=score)
    while best in (direction := {-1: -1, 1: 1}) or abs(best) > 1:
        step = direction.get(best, 1 if best > 0 else -1)
        if score(best + step) <= score(best):
            break
        best += step
    records[f"lr/{row.name}"] = float(f"{start * FACTOR**best:.3g}")


def train(row: Row, seed: int, steps: list[str], args: argparse.Namespace, records: Records) -> None:
    """A training that is recorded is made again where what it forgot is still to be measured and its adapter is gone."""
    key = f"train/{row.name}/{seed}"
    kept = (run_folder(args.workspace, row.name, seed) / "metrics.json").is_file()
    if key in records.rows and (kept or "forget" not in steps or f"forget/{row.name}/{seed}" in records.rows):
        return
    if row.lr is not None and f"lr/{row.name}" not in records.rows:
        sys.exit(f"{row.name} has no learning rate yet: run the step tune first")
    records[key] = worker("train", args, {"row": row.name, "lr": records.rows.get(f"lr/{row.name}"), "seed": seed})
    print(f"{key}: t2v R@1 {records.rows[key]['t2v']['R@1']:.1f}", file=sys.stderr, flush=True)


def forget(rows: list[Row], args: argparse.Namespace, records: Records) -> None:
    wanted = [f"{row.name}/{seed}" for row in rows for seed in args.seeds if f"train/{row.name}/{seed}" in records.rows]
    if missing := [key for key in wanted if f"forget/{key}" not in records.rows]:
        found = worker("forget", args, {"runs": missing, "stills": str(args.stills) if args.stills else None})
        for key, value in found.items():
            records[f"forget/{key}"] = value


def cost(rows: list[Row], args: argparse.Namespace, records: Records) -> None:
    """Times are comparable within one process alone, so that all rows are measured again where one is missing."""
    rows = [row for row in rows if row.lr is not None]
    if all(f"cost/{row.name}" in records.rows for row in rows):
        return
    times = worker("times", args, {"rows": [row.name for row in rows]})
    for row in rows:
        memory = worker("memory", args, {"row": row.name})
        records[f"cost/{row.name}"] = times["rows"][row.name] | memory
    records["machine"] = times["machine"]


def worker(task: str, args: argparse.Namespace, job: dict) -> Any:
    """A task in a process of its own, with its share of the cores; what it prints last is the answer."""
    threads = str(max(1, (os.cpu_count() or 1) // args.jobs)) if task in ("tune", "train") else str(os.cpu_count() or 1)
    job = job | {"workspace": str(args.workspace.absolute()), "epochs": args.epochs}
    command = [sys.executable, str(HERE / "methods_worker.py"), task, json.dumps(job)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": threads}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{task} {job} failed")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
