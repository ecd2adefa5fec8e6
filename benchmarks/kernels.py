"""The kernels against eager PyTorch, torch.compile and other people's forms of the same thing, in one run and one table.

    python benchmarks/kernels.py                            on a GPU where there is one, else on the CPU, at small sizes
    python benchmarks/kernels.py --only ranks topk          some ops; what the file holds of the others is kept
    python benchmarks/kernels.py --device cpu --compile     torch.compile on the CPU as well, which takes its time
    python benchmarks/kernels.py --quick --out quick.json   every row at a tiny size, to see that it runs

Each form's result is compared with float64 before it is timed: a wrong rival gets no time, and a wrong result of ours ends the
run. On a GPU, `pytest -m gpu tests/kernels` must pass first (--trust: it just did). The columns: median ms of interleaved
rounds; how many times slower than ours (below 1: faster); peak extra memory of a call; and, for ours, the share of the roof,
which is the least bytes over the measured copy rate or the least FLOPs over the measured rate of a matrix product, whichever
takes longer. Writes benchmarks/results/kernels-DEVICE.json, with the 20th and 80th percentiles.

flashlib and siglip-kernel take part where they are installed: pip install flashlib siglip-kernel.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure
import torch
from kernels_case import AUTO, OURS, Case, Form, Setup
from kernels_promises import check
from kernels_sizes import BUILD, SIZES, build, ideal_ms
from machine import machine
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]


def main() -> None:
    args = arguments()
    device = args.device
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("no measurement: there is no CUDA device here; use --device cpu")
    if device == "cuda" and not args.trust:
        refuse_when_red()
    setup = Setup(device, torch.float32 if device == "cpu" else torch.bfloat16, device == "cuda" if args.compile is None else args.compile)
    chosen = machine()
    out = args.out or ROOT / "benchmarks" / "results" / f"kernels-{slug(chosen['gpu']) if device == 'cuda' else 'cpu'}.json"
    result: dict[str, Any] = {
        "machine": chosen,
        "device": device,
        "dtype": str(setup.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "quick": args.quick,
        "memory": measure.MEMORY[device],
        "roofs": measure.roofs(device, setup.dtype, args.quick),
    }
    rows = kept(out, result, args.only)
    out.parent.mkdir(parents=True, exist_ok=True)
    for found in measured(args.only or list(BUILD), setup, result["roofs"], args.quick):
        rows = sorted(rows + found, key=lambda row: list(BUILD).index(row["op"]))
        result |= {"rows": rows, "promises": [] if args.quick else check(device, rows)}
        out.write_text(json.dumps(result, indent=1) + "\n")  # a run that is cut short leaves what it has measured
    show(result)
    for promise in result["promises"]:
        print(f"{promise['state']}: {promise['promise']}: {promise['figure']}")
    print(f"wrote {out}", file=sys.stderr)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", metavar="OP", choices=BUILD, help=", ".join(BUILD))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None, help="torch.compile too (default: on CUDA)")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--trust", action="store_true", help="do not run the GPU tests first")
    parser.add_argument("--out", type=Path, default=None)
    return parser.parse_args()


def refuse_when_red() -> None:
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/kernels"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode or " passed" not in done.stdout:
        last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1:]
        sys.exit(f"no measurement: `pytest -m gpu tests/kernels` is not green: {' '.join(last)}")


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def kept(out: Path, result: dict, only: list[str] | None) -> list[dict]:
    """Rows of the other ops that an earlier run on the same machine has written."""
    if not only or not out.is_file():
        return []
    before = json.loads(out.read_text())
    same = all(before.get(key) == result[key] for key in ("machine", "device", "dtype", "threads", "quick"))
    return [row for row in before["rows"] if row["op"] not in only] if same else []


def measured(ops: list[str], setup: Setup, roofs: dict, quick: bool) -> Iterator[list[dict]]:
    """The rows of each case."""
    processes = measure.fresh_processes() if setup.device == "cpu" else None
    for op in ops:
        for size in SIZES["quick" if quick else setup.device].get(op, []):
            started = time.monotonic()
            rows = measure_case(op, size, setup, roofs, quick, processes)
            print(f"{op} {rows[0]['size']}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            yield rows
    if processes is not None:
        processes.terminate()


def measure_case(op: str, size: dict, setup: Setup, roofs: dict, quick: bool, processes: Any) -> list[dict]:
    case = build(op, size, setup)
    rows = {
        name: {"op": op, "size": case.size, "form": name, **examine(name, form, case, setup.device)} for name, form in case.forms.items()
    }
    able = {name: form.run for name, form in case.forms.items() if rows[name]["state"] == "measured" and form.run}
    for name in (OURS, AUTO):
        if rows.get(name, {}).get("state") == "wrong result":
            sys.exit(f"no measurement: {op} {case.size}: {name} is off by {rows[name]['error']:.2g}, above {rows[name]['tolerance']:.2g}")
    times = measure.interleaved(able, setup.device, rounds=3 if quick else None)
    ideal, bound = ideal_ms(case, roofs)
    for name, run in able.items():
        row = rows[name]
        row |= times[name]
        row["ratio"] = row["median_ms"] / times[OURS]["median_ms"] if OURS in times else None
        row["peak_mb"] = processes.apply(peak_in_child, (op, size, setup, name)) if processes else measure.peak_on_gpu(run)
        row["inputs_mb"] = case.inputs / 1e6
        if name in (OURS, AUTO):
            row |= {"bytes": case.bytes, "flops": case.flops, "bound": bound, "roof_percent": 100 * ideal / row["median_ms"]}
    return list(rows.values())


def examine(name: str, form: Form, case: Case, device: str) -> dict:
    """Whether the form is there, fits, and gives the result."""
    if form.run is None:
        return {"state": "not installed"}
    if form.needs > measure.free_bytes(device):
        return {"state": "does not fit"}
    try:
        result = form.run()
        if form.tolerance is None:
            return {"state": "measured", "checked": False}
        error = case.error(result)
    except torch.OutOfMemoryError:
        return {"state": "does not fit"}
    except Exception as failure:
        if name in (OURS, AUTO):
            raise
        return {"state": f"failed: {type(failure).__name__}: {str(failure).splitlines()[0][:80] if str(failure) else ''}"}
    # not <=: NaN is wrong
    agrees = error <= form.tolerance
    return {"state": "measured" if agrees else "wrong result", "checked": True, "error": error, "tolerance": form.tolerance}


def peak_in_child(op: str, size: dict, setup: Setup, name: str) -> float | None:
    run = build(op, size, setup).forms[name].run
    assert run is not None
    return measure.peak_resident(run)


def show(result: dict) -> None:
    roofs = result["roofs"]
    title = (
        f"{result['machine']['gpu'] if result['device'] == 'cuda' else result['machine']['cpu']}, {result['dtype']}: copies at "
        f"{roofs['copy_bytes_per_s'] / 1e9:,.0f} GB/s, products at {roofs['product_flops_per_s'] / 1e12:,.2f} TFLOP/s"
    )
    table = Table("op", "size", "form", title=title)
    for name in ("median ms", "x ours", "peak MB", "% of roof", "error"):
        table.add_column(name, justify="right")
    last = None
    for row in result["rows"]:
        head = (row["op"], row["size"])
        if last is not None and head != last:
            table.add_section()
        table.add_row(*(head if head != last else ("", "")), row["form"], *cells(row))
        last = head
    Console(width=160).print(table)


def cells(row: dict) -> list[str]:
    error = f"{row['error']:.1e}" if "error" in row else "another result" if row.get("checked") is False else ""
    if row["state"] != "measured":
        return [row["state"], "", "", "", error]
    roof = f"{row['roof_percent']:.0f} {row['bound']}" if "bound" in row else ""
    peak = "" if row["peak_mb"] is None else f"{row['peak_mb']:,.1f}"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    return [f"{row['median_ms']:,.3f}", ratio, peak, roof, error]


if __name__ == "__main__":
    main()
