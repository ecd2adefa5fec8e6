"""Time, memory and a device's own limits."""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

Run = Callable[[], object]
MEASURED = {"cpu": 5.0, "cuda": 1.0}  # ms that one measurement takes at least, so that the clock is no part of it
ROUNDS = 7, 30
BUDGET = {"cpu": 15_000.0, "cuda": 4_000.0}  # ms for all rounds of a case, where the least number of rounds allows it
FLUSH = 2**28  # bytes, several times the largest L2
MEMORY = {
    "cuda": "max_memory_allocated over one call, less what was allocated before; the result counts",
    "cpu": "peak resident memory of a call's second run in a process of its own, less what was resident before it (VmHWM, cleared in "
    "between; freed blocks are returned at once); the result counts; Linux alone",
}


def interleaved(runs: dict[str, Run], device: str, rounds: int | None = None) -> dict[str, dict]:
    """Median, p20 and p80 in ms of each run. A round takes each once, so that a drifting clock meets all alike."""
    if not runs:
        return {}
    flush = torch.empty(FLUSH, dtype=torch.int8, device=device) if device == "cuda" else None
    launches = {}
    for name, run in runs.items():
        run()
        launches[name] = max(1, math.ceil(MEASURED[device] / max(1e-3, _once(run, 1, flush))))
    total = sum(_once(run, launches[name], flush) * launches[name] for name, run in runs.items())
    rounds = rounds or int(min(max(BUDGET[device] / max(total, 1e-3), ROUNDS[0]), ROUNDS[1]))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name in turns(runs, rounds):
        times[name].append(_once(runs[name], launches[name], flush))
    return {name: summary(values) | {"rounds": rounds, "launches": launches[name]} for name, values in times.items()}


def turns(names: Iterable[str], rounds: int) -> Iterator[str]:
    """Each name once a round, every other round from the last to the first."""
    for turn in range(rounds):
        yield from list(names) if turn % 2 == 0 else reversed(list(names))


def _once(run: Run, launches: int, flush: torch.Tensor | None) -> float:
    """ms of a launch. On a GPU the flush is queued first: it clears the L2, and the stream is not idle when the launches come."""
    if flush is None:
        start = time.perf_counter()
        for _ in range(launches):
            run()
        return (time.perf_counter() - start) * 1e3 / launches
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    flush.zero_()
    first.record()
    for _ in range(launches):
        run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / launches


def summary(values: list[float]) -> dict:
    low, median, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    return {"median_ms": median, "p20_ms": low, "p80_ms": high}


def peak_on_gpu(run: Run) -> float:
    """MB, as ``MEMORY`` says."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return peak / 1e6


def fresh_processes() -> Any:
    """A pool that runs each task in a new process, forked from one that has only imported torch."""
    # freed blocks go back to the system, or the first run would leave room that the second fills unseen
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "xmafast.kernels"])
    pool = context.Pool(1, maxtasksperchild=1)
    del os.environ["MALLOC_MMAP_THRESHOLD_"]
    return pool


def peak_resident(run: Run) -> float | None:
    """MB, as ``MEMORY`` says; of the process that calls it."""
    run()  # libraries, thread pools and compiled code are no part of it
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = resident_peak()
    result = run()
    peak = resident_peak() - before
    del result
    return peak / 1e6


def resident_peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


def free_bytes(device: str) -> float:
    """What a form may take before it is said not to fit."""
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    info = Path("/proc/meminfo")
    if not info.is_file():
        return math.inf
    return 1024 * int(next(line.split()[1] for line in info.read_text().splitlines() if line.startswith("MemAvailable")))


def roofs(device: str, dtype: torch.dtype, quick: bool) -> dict:
    """Bytes a second of a large copy, read and written, and FLOPs a second of a large product."""
    size = 2**22 if quick else 2**28 if device == "cpu" else 2**31
    side = 256 if quick else 2048 if device == "cpu" else 8192
    source, target = (torch.ones(size, dtype=torch.int8, device=device) for _ in range(2))
    a, b, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
    times = interleaved({"copy": lambda: target.copy_(source), "product": lambda: torch.mm(a, b, out=out)}, device)
    return {
        "copy_bytes_per_s": 2 * size / times["copy"]["median_ms"] * 1e3,
        "product_flops_per_s": 2 * side**3 / times["product"]["median_ms"] * 1e3,
        "product": f"{side}^3 {str(dtype).removeprefix('torch.')}",
    }
