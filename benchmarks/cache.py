"""The frame cache against other readers of video, and against other ways to keep decoded frames, in one run and one table.

    python benchmarks/cache.py [--videos 600] [--work DIR]     everything, from the 600 embedded clips
    python benchmarks/cache.py --root DIR                      from the videos of a folder
    python benchmarks/cache.py --only read bytes               some sections; what the file holds of the others is kept
    python benchmarks/cache.py --quick --out quick.json        every row with few videos, to see that it runs

Everything is 12 frames of 224 x 224. Each form's frames are compared before its time counts: what decodes with the same decoder
or keeps raw bytes must give the same bytes. Forms are interleaved; figures are medians over rounds.

build   videos/s of a whole `build_cache` (its processes' start, checksums, the file, the flush to disk) against readers in as many
        spawned processes that keep nothing: the same decoder, OpenCV and PyAV, the same sampled frames, the same resize. "steady"
        leaves out the first tenth of the videos, with the start, and what comes after the last. Two inputs: the embedded clips,
        three seconds of 224 px, where little is decoded and no frame is resized, which is the harder case for a cache; and 15
        seconds of 320 x 240, as MSR-VTT's are, made beforehand of five clips each (60 files, listed again up to --videos).
read    videos/s of one process, page cache warm, random order, batches of 32, every form into the same batch array, except those of
        ours that allocate. LMDB: a value a video, copied from its memory map (raw), or a value a frame (JPEG). WebDataset: raw
        bytes in plain tar shards of 50 videos, shuffled by shards and a buffer, as it is used. np.copyto: what one thread copies.
bytes   on disk, by blocks.

OpenCV, LMDB, WebDataset and PyAV take part where they are installed: pip install -e ".[bench]". Writes
benchmarks/results/cache.json, with the 20th and 80th percentiles. The data goes into a temporary folder, about 5 GB.
"""

# Nothing here may import torch: every spawned decode process imports this file again.
from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

SECTIONS = ("build", "read", "bytes")
OPTIONS = {"frames": 12, "size": 224}
BUILD_ROUNDS, READ_ROUNDS, QUICK_ROUNDS = 5, 7, 2
QUICK_VIDEOS = 8
PACKAGES = ("decord", "av", "opencv-python-headless", "lmdb", "webdataset", "pillow")


def main() -> None:
    from cache_report import judged, show
    from machine import machine, versions

    args = arguments()
    if args.quick:
        args.videos = min(args.videos, QUICK_VIDEOS)
    result = {"machine": machine() | versions(PACKAGES), "quick": args.quick, "videos": args.videos, "workers": args.workers}
    result |= {"root": str(args.root) if args.root else "embedded clips", **OPTIONS}
    rows = kept(args.out, result, args.only)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="xmafast-cache-", dir=args.work) as work:
        for found in measured(args, Path(work)):
            rows = sorted(rows + found, key=lambda row: SECTIONS.index(row["section"]))
            result |= {"rows": rows, "promises": [] if args.quick else judged(rows)}
            args.out.write_text(json.dumps(result, indent=1) + "\n")  # a run that is cut short leaves what it has measured
    show(result)
    print(f"wrote {args.out}", file=sys.stderr)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="SECTION", choices=SECTIONS, default=SECTIONS, help=", ".join(SECTIONS))
    parser.add_argument("--videos", type=int, default=600, help="most videos of a section; fewer are read where memory is short")
    parser.add_argument("--root", type=Path, default=None, help="a folder of videos")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="decode processes")
    parser.add_argument("--work", type=Path, default=None, help="where the temporary folder goes")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cache.json")
    return parser.parse_args()


def kept(out: Path, result: dict, only: list[str]) -> list[dict]:
    """Rows of the other sections that an earlier run like this one has written."""
    before = json.loads(out.read_text()) if out.is_file() else {}
    same = all(before.get(key) == value for key, value in result.items())
    return [row for row in before["rows"] if row["section"] not in only] if same else []


def measured(args: argparse.Namespace, work: Path):
    """The rows of each section and case, as they are measured."""
    import cache_sources
    from cache_build import measure_build
    from cache_read import Stores, measure_bytes, measure_read

    from xmafast.datasets.base import find_files
    from xmafast.files import VIDEOS

    paths = find_files(args.root, VIDEOS)[: args.videos] if args.root else cache_sources.embedded()[: args.videos]
    if not paths:
        sys.exit(f"no measurement: {args.root} holds no videos; name a folder that does")
    options = OPTIONS | {"sampling": "fps" if args.root else "uniform"}  # three seconds have three frames by the second
    if "build" in args.only:
        rounds = QUICK_ROUNDS if args.quick else BUILD_ROUNDS
        name = str(args.root) if args.root else "3 s of 224 x 224"
        yield measure_build(f"{len(paths)} videos, {name}", paths, options, folder(work / "build"), args.workers, rounds)
        if not args.root:
            try:
                files = cache_sources.rendered(work / "rendered", args.videos, args.workers)
            except ImportError:
                print("no videos of 320 x 240: PyAV, which writes them, is not installed", file=sys.stderr)
            else:
                listed = (files * -(-args.videos // len(files)))[: args.videos]
                name = f"{len(listed)} videos, 15 s of 320 x 240"
                yield measure_build(name, listed, OPTIONS | {"sampling": "fps"}, folder(work / "build-rendered"), args.workers, rounds)
    if {"read", "bytes"} & set(args.only):
        stores = Stores(folder(work / "stores"), paths, options, args.workers)
        if "read" in args.only:
            yield measure_read(stores, QUICK_ROUNDS if args.quick else READ_ROUNDS)
        if "bytes" in args.only:
            yield measure_bytes(stores)


def folder(path: Path) -> Path:
    path.mkdir()
    return path


if __name__ == "__main__":
    main()
