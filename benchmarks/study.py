"""The two papers' claims in miniature: on the demo's 600 clips, and on a task that needs time (benchmarks/motion.py).

    python benchmarks/study.py                    everything that is not recorded yet, then the page: docs/study.md and its figures
    python benchmarks/study.py demo motion        some parts
    python benchmarks/study.py --plan             how many runs are missing, and about how long they take; runs nothing
    python benchmarks/study.py --page             the page alone, from what is recorded
    python benchmarks/study.py --check            run a few rows again, and fail where one leaves its committed interval
    python benchmarks/study.py --check all        run every row again

demo     full fine-tuning and adapters on the fixed split, 450 clips to train and 150 to test
folds    the same by five-fold cross-validation over all 600
sizes    train and test as training goes on, on few clips and on many
motion   rows that see the order of frames and rows that do not
swap     adapters of both tasks in turn on one backbone
memory   of a training step, in a process of its own
stills   text-image retrieval over a design that neither pretraining nor training saw; needs --stills FOLDER
unseen   a backbone that never saw the test emoji in any design; needs --unseen FOLDER

Every run is recorded when it is done, in benchmarks/results/study.json, and not run again; a study that is stopped goes on where it was.
Each run takes one thread, ``--jobs`` run at a time. Caches and adapters are kept under --workspace, and made again where they are gone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from pathlib import Path

from machine import machine
from study_page import check, write_page
from study_plan import CONDITIONAL, PARTS, TINY, Job, Size, jobs
from study_records import Records
from study_stills import images_of
from study_worker import Bench, begin, run

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
SAMPLE = ("demo/cross-modal/0", "demo/full/0", "motion/st-adapter/0", "motion/adaptformer, mean/0")  # of --check


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--workspace", type=Path, default=Path("study-workspace"))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "study.json")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where study.md and study/ are")
    parser.add_argument("--stills", type=Path, help="as benchmarks/study_stills.py fetched them")
    parser.add_argument("--unseen", type=Path, help="as `make study-unseen` pretrained it")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--check", nargs="?", const="sample", choices=("sample", "all"))
    parser.add_argument("--tiny", action="store_true", help="a handful of clips, to see that it runs; name another --out and --docs")
    args = parser.parse_args()
    if wrong := set(args.parts) - set(PARTS):
        parser.error(f"{sorted(wrong)[0]!r} is no part; parts: {', '.join(PARTS)}")
    if args.tiny and (args.out == HERE / "results" / "study.json" or args.docs == DOCS):
        parser.error("--tiny is no study: name another --out and --docs")
    size = TINY if args.tiny else Size()
    records = Records(args.out)
    if args.page:
        write_page(records.rows, args.docs)
        return
    if records.rows.get("size", size.as_json()) != size.as_json():
        parser.error(f"{args.out} holds runs of other sizes; name another --out")
    bench = Bench(args.workspace.absolute(), size, args.stills and args.stills.absolute(), args.unseen and args.unseen.absolute())
    wanted = able(tuple(args.parts) or PARTS, bench, records)
    todo = jobs(wanted, size)
    if args.check:
        again(args.check, todo, bench, records, args.jobs)
        return
    todo = [job for job in todo if job.key not in records]
    tell_plan(todo, args.jobs)
    if args.plan:
        return
    if todo:
        records["size"] = size.as_json()
        records["machine"] = machine()
        failed = run_all(todo, bench, records, args.jobs)
        write_page(records.rows, args.docs)
        if failed:
            sys.exit(f"{len(failed)} runs failed ({', '.join(failed[:5])}); the same command tries them again")
    write_page(records.rows, args.docs)


def able(parts: tuple[str, ...], bench: Bench, records: Records) -> tuple[str, ...]:
    """The parts that can be run here; of the others it is said what they need, where they are not recorded."""
    present = {
        "stills": bench.stills is not None and images_of(bench.stills).is_dir(),
        "unseen": bench.unseen is not None and (bench.unseen / "open_clip_model.safetensors").is_file(),
    }
    for part in parts:
        if not present.get(part, True) and any(job.key not in records for job in jobs((part,), bench.size)):
            print(f"{part} is left out: {CONDITIONAL[part]}", file=sys.stderr)
    return tuple(part for part in parts if present.get(part, True))


def tell_plan(todo: list[Job], workers: int) -> None:
    """How many runs there are, and about how long they take."""
    seconds = sum(job.seconds for job in todo)
    for part in PARTS:
        if own := [job for job in todo if job.part == part]:
            print(f"{part:8s} {len(own):4d} runs, about {sum(job.seconds for job in own) / 60:5.1f} minutes of one core", file=sys.stderr)
    print(f"{len(todo)} runs, about {seconds / 60 / workers:.0f} minutes with {workers} at a time", file=sys.stderr, flush=True)


def pool(workers: int) -> Executor:
    """Processes of their own, one thread each, which torch must be told before it is imported."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), begin, (1,))


def run_all(todo: list[Job], bench: Bench, records: Records, workers: int) -> list[str]:
    """Run jobs, stage after stage, each recorded when it is done; the keys of those that failed, which the others do not wait for."""
    bench.prepare()
    if any(job.part in ("motion", "swap") for job in todo):
        bench.prepare_tokens()
    failed: list[str] = []
    began, total = time.monotonic(), len(todo)
    finished = 0
    with pool(workers) as executor:
        for stage in sorted({job.stage for job in todo}):
            waiting: dict[Future, Job] = {}
            left = [job for job in todo if job.stage == stage]
            while left or waiting:
                while left and len(waiting) < workers:
                    job = left.pop(0)
                    try:
                        waiting[executor.submit(run, job, bench, needed(job, records))] = job
                    except BrokenExecutor:  # killed from outside, as for memory
                        sys.exit("A process of the study was killed; what was done is recorded, and the same command goes on from there.")
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    job = waiting.pop(future)
                    finished += 1
                    if error := future.exception():
                        failed.append(job.key)
                        outcome = f"failed: {type(error).__name__}: {error}"
                    else:
                        records[job.key] = future.result()
                        outcome = "done"
                    minutes = (time.monotonic() - began) / 60
                    print(f"[{finished}/{total}, {minutes:.1f} min] {job.key}: {outcome}", file=sys.stderr, flush=True)
    return failed


def needed(job: Job, records: Records) -> dict:
    """What a job has to know of earlier ones: the rates that were tried. A swap may have to train its adapters."""
    if job.part not in ("motion", "swap"):
        return {}
    return {key: value for key, value in records.rows.items() if key.startswith(f"motion-lr/{job.row}/")}


def again(which: str, todo: list[Job], bench: Bench, records: Records, workers: int) -> None:
    """Run recorded rows again, apart from the records, and hold them against these. Exits with 1 where one is outside."""
    chosen = [job for job in todo if job.key in records and (which == "all" or job.key in SAMPLE) and job.task in ("trained", "curve")]
    if not chosen:
        sys.exit("Nothing is recorded that could be run again; run the study first: make study")
    tell_plan(chosen, workers)
    fresh = Records(bench.workspace / "check.json")  # so that a check that is stopped goes on too
    if fresh.rows.get("size") != bench.size.as_json():
        fresh.rows = {"size": bench.size.as_json()}
    rates = {key: value for key, value in records.rows.items() if key.startswith("motion-lr/")}
    fresh.rows |= rates
    failed = run_all([job for job in chosen if job.key not in fresh], bench, fresh, workers)
    lines, outside = check(records.rows, fresh.rows, [job.key for job in chosen])
    print("\n".join(lines))
    if not failed:  # the next check is made of new runs again
        fresh.path.unlink(missing_ok=True)
    if failed or outside:
        sys.exit(f"{outside} figures are outside of their committed intervals, {len(failed)} runs failed")


if __name__ == "__main__":
    main()
