"""How fast training is: whole steps, their memory, what the frozen prefix saves, and adapters in files and in turn.

    python benchmarks/train.py                              on the CPU, 12 frames, random weights: minutes on two cores
    python benchmarks/train.py --device cuda                batch 128, bfloat16; also a training from a cache, and MSR-VTT's from it
    python benchmarks/train.py --quick                      that it works, on the demo backbone
    python benchmarks/train.py --sections prefix --rounds 9

methods: a step of full fine-tuning, the Cross-Modal Adapter, MV-Adapter and LoRA, on ViT-B/32 and B/16, beside the eager float32 reference
of each in the same run, rounds taking turns. A step is forward, backward, clipping and the optimiser; the share of the GEMM rate is that of
its products (torch's count) in the rate of one large product on the same device in the same type.
prefix: adapters in all blocks, in the last two, and in the last two from cached tokens.
adapter: the file of MSR-VTT's setting, and the time to put another adapter on a backbone in memory.
loop: a training from a real cache of embedded clips, its waiting included, and MSR-VTT's 7,030 steps of 128 projected from it (a GPU's).

Writes benchmarks/results/train-DEVICE.json as it goes; sections and backbones that are not measured are left as they are, so that a long
run can be had in parts (--sections, --backbones). Fails where a promise is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure
import torch
from machine import machine
from promises import judge
from rich.console import Console
from rich.table import Table
from train_steps import AUTO, EAGER, MEMORY, METHODS, Case, Steps, backbone_of, fits, flops, peak_in_child, peak_on_gpu

from xmafast import Retriever, build_cache, load
from xmafast.cache import FrameCache
from xmafast.datasets import demo
from xmafast.retriever import WEIGHTS
from xmafast.training import Recipe, Trainer

SECTIONS = ("methods", "prefix", "adapter", "loop")
BATCH = {"cuda": {}, "cpu": {"ViT-B-32": 4, "ViT-B-16": 2, "demo": 8}}  # on a GPU 128 for all
MSRVTT_STEPS, MSRVTT_BATCH = 7030, 128  # 5 epochs of 180,000 pairs
FILE_MB, SWAP_MS = 1.1, 10.0
PREFIX = {"demo": (3.5, 1.7), "ViT-B-32": (5.0, 3.2)}  # how much faster the cached step is: than in all blocks, than uncached


def main() -> None:
    args = arguments()
    result: dict[str, Any] = {"machine": machine(), "device": args.device, "threads": torch.get_num_threads(), "frames": args.frames}
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    result |= {"dtype": str(dtype).removeprefix("torch."), "roofs": measure.roofs(args.device, dtype, args.quick)}
    result["memory"] = MEMORY[args.device]
    old = json.loads(args.out.read_text()) if args.out.is_file() and not args.quick else {}
    result |= {section: old[section] for section in SECTIONS if section in old}
    for section in args.sections:
        rows = []
        for row in globals()[f"measure_{section}"](args, result["roofs"]):
            rows.append(row)
            measured = {row["backbone"] for row in rows}
            result[section] = [*(row for row in old.get(section, ()) if row["backbone"] not in measured), *rows]
            result["promises"] = promises(result, args.quick)
            args.out.write_text(json.dumps(result, indent=1) + "\n")  # a run that is cut short keeps what it has
    show(result)
    if missed := [p for p in result["promises"] if p["state"] == "missed"]:
        sys.exit("missed: " + "; ".join(f"{p['promise']} ({p['figure']})" for p in missed))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS)
    parser.add_argument("--backbones", nargs="+", default=["ViT-B-32", "ViT-B-16"])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--batch", type=int, help="videos a step (128 on a GPU, 2 to 8 on a CPU)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.sections = args.sections or [name for name in SECTIONS if name != "loop" or args.device == "cuda"]
    args.prefix_backbones = ["demo", "ViT-B-32"]
    if args.quick:
        args.backbones, args.prefix_backbones, args.frames, args.batch, args.rounds = ["demo"], ["demo"], 2, 2, 1
    args.out = args.out or Path(__file__).parent / "results" / f"train-{args.device}.json"
    return args


def batch_of(args: argparse.Namespace, backbone: str) -> int:
    return args.batch or BATCH[args.device].get(backbone, 128 if args.device == "cuda" else 4)


def measure_methods(args: argparse.Namespace, roofs: dict) -> Iterator[dict]:
    """A backbone's methods in one run, so that a drifting clock meets all alike; on a GPU each by itself, where not all would fit."""
    for name in args.backbones:
        cases = [Case(name, method, args.frames, batch_of(args, name), args.device) for method in args.methods]
        for together in [cases] if args.device == "cpu" else [[case] for case in cases]:
            yield from measure_cases(together, args, roofs)


def measure_cases(cases: list[Case], args: argparse.Namespace, roofs: dict) -> Iterator[dict]:
    backbone = backbone_of(cases[0].backbone, args.device)
    steps = {case: Steps(case, backbone) for case in cases}
    forms = {(case, form): fits(steps[case], form) for case in cases for form in (AUTO, EAGER)}
    runs = {f"{case.method}|{form}": run(steps[case], form) for (case, form), room in forms.items() if room}
    times = measure.interleaved(runs, args.device, args.rounds)
    peaks: dict[Case, float | None] = {}
    for case in cases:
        if args.device == "cuda" and forms[case, AUTO]:
            peaks[case] = peak_on_gpu(steps[case])
    del steps, runs
    gc.collect()
    if args.device == "cpu":
        processes = measure.fresh_processes()
        peaks = {case: processes.apply(peak_in_child, (case, torch.get_num_threads())) for case in cases}
        processes.terminate()
    for (case, form), room in forms.items():
        row: dict[str, Any] = {"backbone": case.backbone, "method": case.method, "form": form, "batch": case.batch}
        if not room:
            yield row | {"state": "out of memory"}
            continue
        time_ms = times[f"{case.method}|{form}"]
        count = flops(case)
        row |= {"state": "measured", **time_ms, "videos_per_s": case.batch / time_ms["median_ms"] * 1e3, "step_flops": count}
        row["gemm_share"] = count / time_ms["median_ms"] * 1e3 / roofs["product_flops_per_s"]
        yield row | ({"peak_mb": peaks.get(case)} if form == AUTO else {})


def run(steps: Steps, form: str = AUTO) -> measure.Run:
    return lambda: steps.run(form)


def measure_prefix(args: argparse.Namespace, roofs: dict) -> Iterator[dict]:
    for name in args.prefix_backbones:
        backbone, batch = backbone_of(name, args.device), batch_of(args, name)

        def case(blocks: str, cached: bool = False, name: str = name, batch: int = batch) -> Case:
            return Case(name, "cross-modal", args.frames, batch, args.device, blocks, cached)

        cases = {"all blocks": case("all"), "last:2": case("last:2"), "last:2, cached tokens": case("last:2", True)}
        times = measure.interleaved({form: run(Steps(case, backbone)) for form, case in cases.items()}, args.device, args.rounds)
        cached = times["last:2, cached tokens"]["median_ms"]
        for form, row in times.items():
            rate = batch / row["median_ms"] * 1e3
            yield {
                "backbone": name,
                "form": form,
                "batch": batch,
                **row,
                "videos_per_s": rate,
                "cached_is_faster": row["median_ms"] / cached,
            }


def measure_adapter(args: argparse.Namespace, roofs: dict) -> Iterator[dict]:
    """Of MSR-VTT's setting on ViT-B/32. Swapped by ``restore``, which reads a file into the model at hand; ``load`` makes another model."""
    backbone = backbone_of("demo" if args.quick else "ViT-B-32", args.device)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for seed in range(2):
            torch.manual_seed(seed)
            model = Retriever(backbone, **METHODS["cross-modal"]).to(args.device)
            files.append(model.save(Path(folder) / str(seed), torch.float16) / WEIGHTS)
        before = [(p.data_ptr(), p._version) for p in backbone.parameters()]
        swaps, loads = [], []
        for turn in range(3 if args.quick else 41):
            began = time.perf_counter()
            model.restore(files[turn % 2])
            synchronise(args.device)
            swaps.append(1e3 * (time.perf_counter() - began))
            began = time.perf_counter()
            load(files[turn % 2].parent, backbone)
            synchronise(args.device)
            loads.append(1e3 * (time.perf_counter() - began))
        untouched = before == [(p.data_ptr(), p._version) for p in backbone.parameters()]
        yield {
            "backbone": backbone.name,
            "file_mb": files[0].stat().st_size / 1e6,
            "swap_ms": statistics.median(swaps),
            "load_ms": statistics.median(loads),
            "backbone_untouched": untouched,
        }


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure_loop(args: argparse.Namespace, roofs: dict) -> Iterator[dict]:
    """The median step of a ``Trainer`` on embedded clips, read from a cache, but for the first two."""
    name, steps = ("demo", 4) if args.quick else ("ViT-B-32", 30)
    batch = batch_of(args, name)
    backbone = backbone_of(name, args.device)
    split = demo.load(demo.ROOT, "train")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.h5"
        build_cache(split, path, frames=args.frames, sampling="uniform", size=backbone.image_size)
        cache = FrameCache(path)
        epochs = -(-steps * batch // len(cache.rows)) + 1
        model = Retriever(backbone, frames=args.frames, **METHODS["cross-modal"]).to(args.device)
        trainer = Trainer(model, cache, cache.rows, Recipe(epochs, batch))
        taken = [step for step, _ in zip(trainer.run(), range(steps), strict=False) if step.step > 2]
        full = [step for step in taken if not step.ends_epoch]  # an epoch's last batch is smaller
        seconds = statistics.median(batch / step.videos_per_second for step in full)
        yield {
            "backbone": name,
            "batch": batch,
            "step_ms": seconds * 1e3,
            "videos_per_s": batch / seconds,
            "wait_share": sum(step.wait for step in full) / len(full),
            "msrvtt_minutes": seconds * MSRVTT_STEPS / 60 if batch == MSRVTT_BATCH else None,
        }


def promises(result: dict, quick: bool) -> list[dict]:
    if quick:
        return []
    found, rows = [], {(row["backbone"], row["method"], row["form"]): row for row in result.get("methods", ())}

    def ratio(part: dict | None, whole: dict | None, name: str = "median_ms") -> float | None:
        return part[name] / whole[name] if part and whole and name in part and name in whole else None

    for backbone in dict.fromkeys(row["backbone"] for row in result.get("methods", ())):
        ours, full, eager = (rows.get((backbone, *key)) for key in (("cross-modal", AUTO), ("full", AUTO), ("cross-modal", EAGER)))
        if result["device"] == "cpu":
            found.append(judge(f"{backbone}: the Cross-Modal Adapter's step, of full fine-tuning's", ratio(ours, full), most=0.70))
        elif backbone == "ViT-B-32":
            found.append(judge(f"{backbone}: times as fast as the eager float32 reference", ratio(eager, ours), least=3))
            found.append(judge(f"{backbone}: share of the GEMM rate", ours and ours.get("gemm_share"), least=0.40))
    if result["device"] == "cpu":
        prefix = {(row["backbone"], row["form"]): row["cached_is_faster"] for row in result.get("prefix", ())}
        for backbone, least in PREFIX.items():
            for form, most in zip(("all blocks", "last:2"), least, strict=True):
                found.append(judge(f"{backbone}: cached last:2 faster than {form}", prefix.get((backbone, form)), least=most))
    for row in result.get("adapter", ()):
        found.append(judge("MB of MSR-VTT's adapter in fp16", row["file_mb"], most=FILE_MB))
        found.append(judge("ms to put another adapter on the backbone", row["swap_ms"], most=SWAP_MS))
        found.append(judge("the backbone's weights stay as they are", float(row["backbone_untouched"]), least=1))
    for row in result.get("loop", ()) if result["device"] == "cuda" else ():
        found.append(judge("share of the time spent waiting for data", row["wait_share"], most=0.02))
        found.append(judge("minutes of MSR-VTT's 7,030 steps of 128, projected", row["msrvtt_minutes"], most=20))
    return found


def show(result: dict) -> None:
    console = Console(width=140)
    machine_name = result["machine"]["gpu"] if result["device"] == "cuda" else result["machine"]["cpu"]
    rate = result["roofs"]["product_flops_per_s"] / 1e12
    title = f"{machine_name}, {result['dtype']}, {result['frames']} frames; products at {rate:,.2f} TFLOP/s"
    full = {row["backbone"]: row for row in result.get("methods", ()) if row["method"] == "full" and row["form"] == AUTO}
    table = Table("backbone", "method", "form", "videos", "ms a step", "videos/s", "of full", "GEMM rate", "peak MB", title=title)
    for row in result.get("methods", ()):
        start = (row["backbone"], row["method"], row["form"], str(row["batch"]))
        if row["state"] != "measured":
            table.add_row(*start, row["state"])
            continue
        whole = full.get(row["backbone"], {}).get("median_ms")
        of_full = f"{row['median_ms'] / whole:.2f}" if whole else ""
        peak = f"{row['peak_mb']:,.0f}" if row.get("peak_mb") else ""
        table.add_row(*start, f"{row['median_ms']:,.0f}", f"{row['videos_per_s']:,.2f}", of_full, f"{100 * row['gemm_share']:.0f} %", peak)
    console.print(table)
    if result.get("prefix"):
        table = Table("backbone", "adapted", "videos", "ms a step", "videos/s", "times the cached step", title="The frozen prefix")
        for row in result["prefix"]:
            cells = (f"{row['median_ms']:,.0f}", f"{row['videos_per_s']:,.2f}", f"{row['cached_is_faster']:.2f}")
            table.add_row(row["backbone"], row["form"], str(row["batch"]), *cells)
        console.print(table)
    for row in [*result.get("adapter", ()), *result.get("loop", ())]:
        console.print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    for promise in result["promises"]:
        console.print(f"{promise['state']:>7}  {promise['promise']}: {promise['figure']}")


if __name__ == "__main__":
    main()
