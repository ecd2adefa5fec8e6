"""What the project promises of its kernels, and what a run of kernels.py says to it."""

from __future__ import annotations

from kernels_case import AUTO, OURS
from promises import judge, share

NOISE = 1.05  # a form that is the same code twice may differ by as much
TOKENS, SETS, BATCH = "76,800 x 768, r 64", "60,000 x 3,000 x 512", "65,536 x 512"
Rows = dict[tuple[str, str, str], dict]  # by op, size and form


def check(device: str, rows: list[dict]) -> list[dict]:
    """Each promise with its figure, and met, missed or open: what it compares was not measured."""
    at = {(row["op"], row["size"], row["form"]): row for row in rows}
    return on_gpu(at) if device == "cuda" else on_cpu(at)


def value(at: Rows, op: str, size: str, form: str, name: str) -> float | None:
    return at.get((op, size, form), {}).get(name)


def faster(at: Rows, op: str, size: str, rival: str, least: float) -> dict:
    return judge(f"{op} {size} at least {least:.3g} times as fast as {rival}", value(at, op, size, rival, "ratio"), least=least)


def of_roof(at: Rows, op: str, size: str, least: float) -> dict:
    return judge(f"{op} {size} at {least:g} % of the roof or better", value(at, op, size, OURS, "roof_percent"), least=least)


def within_inputs(at: Rows, op: str, size: str) -> dict:
    extra, inputs = (value(at, op, size, OURS, name) for name in ("peak_mb", "inputs_mb"))
    return judge(f"{op} {size} with no more memory than its inputs take (a share)", share(extra, inputs), most=1)


def on_cpu(at: Rows) -> list[dict]:
    op, published = "text-conditioned-ranks", "published (N, M, D)"
    found = []
    for size in ("1,000 x 1,000 x 12 x 512, both", "1,000 x 1,000 x 12 x 512, t2v"):
        memory = share(*(value(at, op, size, form, "peak_mb") for form in (OURS, published)))
        found += [
            faster(at, op, size, published, 10),
            judge(f"{op} {size} with at most a tenth of the peak memory of {published} (a share)", memory, most=0.1),
        ]
    for op in ("ranks", "ranks-both"):
        found += [faster(at, op, size, "matmul + comparison", 1) for size in ("1,000 x 1,000 x 512", "5,000 x 5,000 x 512")]
    for op in ("adapter", "adapter-backward", "adapter-norm", "adapter-norm-backward"):
        found += [faster(at, op, f"{size}, r 8, shared 16", "eager", 1 / NOISE) for size in ("2,400 x 512", "4,728 x 768")]
    return found


def on_gpu(at: Rows) -> list[dict]:
    product = value(at, "ranks", SETS, "the product alone", "ratio")
    return [
        faster(at, "adapter", TOKENS, "eager", 2),
        faster(at, "adapter", TOKENS, "torch.compile", 1.2),
        faster(at, "adapter-backward", TOKENS, "eager", 1.5),
        of_roof(at, "adapter", TOKENS, 80),
        of_roof(at, "adapter-backward", TOKENS, 80),
        of_roof(at, "adapter-dx", TOKENS, 80),
        judge(f"ranks {SETS} at most 1.3 times the time of the product alone", share(1.0, product), most=1.3),
        faster(at, "ranks", SETS, "open_clip chunked", 3),
        faster(at, "ranks-both", SETS, "open_clip chunked", 3),
        within_inputs(at, "ranks", "1,000,000 x 100,000 x 512"),
        within_inputs(at, "text-conditioned-ranks", "60,000 x 3,000 x 12 x 512, t2v"),
        faster(at, "info-nce", BATCH, "eager", 1),
        faster(at, "info-nce", BATCH, "two passes (Inf-CL's structure)", 2),
        judge(f"info-nce {BATCH} in at most 2,000 MB", value(at, "info-nce", BATCH, OURS, "peak_mb"), most=2000),
        never_slower(at),
    ]


def never_slower(at: Rows) -> dict:
    """impl="auto" against eager wherever both were measured; the worst."""
    found = [
        (times, f" at {op} {size}")
        for op, size, form in at
        if form == AUTO and (times := share(*(value(at, op, size, f, "median_ms") for f in (AUTO, "eager")))) is not None
    ]
    promise = f"impl='auto' not slower than eager at any size (its time over eager's, up to {NOISE} for noise)"
    worst, where = max(found, default=(None, ""))
    return judge(promise, worst, most=NOISE, where=where)
