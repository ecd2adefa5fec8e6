"""What the study runs: its rows, its sizes, and the jobs of each part, in the order in which they are begun.

Learning rates of the demo are those of benchmarks/results/methods.json (on one fold of its training clips, test never read), taken over
where a row differs in bottleneck, frames or batch; those of the motion task are searched for on its validation split, around these.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RATES = Path(__file__).parent / "results" / "methods.json"
SMALL = {"bottleneck": 6, "shared": 16}  # below 1 % of the demo backbone; at the published 8 it is 1.18 %
STEPS = 60  # of part sizes, whatever the number of clips
EACH, ALL, ORDER = "one by one", "together, in no order", "in order"
LAST = "last:2"  # blocks that the motion task's methods adapt, from cached tokens: a third of the time


@dataclass(frozen=True)
class Row:
    """rate: whose learning rate in methods.json it takes. sees: how it sees the frames of a video."""

    name: str
    method: str | None
    rate: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    header: str | None = None
    plugs: tuple[Any, ...] = ()
    at_blocks: str = "all"
    sees: str = EACH

    @property
    def trained(self) -> bool:
        return self.method is not None or self.header == "seqTransf"


FROZEN = Row("frozen", None, header="mean")
FULL = Row("full", "full", "full")
CROSS_MODAL = Row("cross-modal", "cross-modal", "cross-modal", SMALL)
ADAPTER = Row("adapter", "adapter", "adapter", {"bottleneck": 6})
MV_ADAPTER = Row("mv-adapter", "mv-adapter", "mv-adapter", sees=ORDER)
ADAPTFORMER = Row("adaptformer", "adaptformer", "adaptformer")
DISCO = ("disco", {"vision_blocks": 2, "text_blocks": 1})  # a third of the blocks, as published; here that is two, and one of texts

ROWS: dict[str, tuple[Row, ...]] = {
    "demo": (FROZEN, FULL, CROSS_MODAL, ADAPTER, MV_ADAPTER),
    "folds": (FROZEN, FULL, CROSS_MODAL, ADAPTER, MV_ADAPTER),
    "sizes": (FULL, CROSS_MODAL),
    "motion": (
        FROZEN,
        Row("partial, mean", "partial", "partial", header="mean"),
        Row("adaptformer, mean", "adaptformer", "adaptformer", header="mean", at_blocks=LAST),
        Row("cross-modal, text-conditioned", "cross-modal", "cross-modal", at_blocks=LAST),
        Row("seqTransf on frozen CLIP", None, "seqTransf on frozen CLIP", header="seqTransf", sees=ORDER),
        Row("cross-modal, seqTransf", "cross-modal", "cross-modal", header="seqTransf", at_blocks=LAST, sees=ORDER),
        Row("st-adapter", "st-adapter", "st-adapter", at_blocks=LAST, sees=ORDER),
        Row("mv-adapter", "mv-adapter", "mv-adapter", {"tied": 1}, at_blocks=LAST, sees=ORDER),
        Row("tempme (with lora)", "lora", "adapter", plugs=("tempme",), at_blocks="last:4", sees=ORDER),  # it needs four
        Row("disco (with lora)", "lora", "adapter", plugs=(DISCO,), at_blocks=LAST, sees=ALL),
    ),
    "memory": (FULL, CROSS_MODAL, ADAPTER, MV_ADAPTER),
    "stills": (FROZEN, CROSS_MODAL, ADAPTER, ADAPTFORMER),
    "unseen": (FROZEN, FULL, CROSS_MODAL),
}
PARTS = ("demo", "folds", "sizes", "motion", "swap", "memory", "stills", "unseen")
CONDITIONAL = {
    "stills": "it needs stills of a third design (--stills FOLDER; npm fetches them once with `python benchmarks/study_stills.py FOLDER`)",
    "unseen": "it needs a backbone that never saw the test emoji (--unseen FOLDER; `make study-unseen` pretrains one in some 40 minutes)",
}


@dataclass(frozen=True)
class Size:
    """How much of everything. A results file holds runs of one size alone."""

    seeds: int = 5
    demo_clips: int = 600
    demo_frames: int = 4  # cached and tested on
    train_frames: int = 2
    demo_epochs: int = 6
    still_epochs: int = 8
    batch: int = 64
    sizes: tuple[int, ...] = (64, 160, 450)
    steps: int = STEPS
    points: tuple[int, ...] = (0, 5, 15, 30, 60)
    watched: int = 64  # clips of each kind on which the curves are measured
    motion: tuple[int, int, int] = (1600, 160, 512)
    motion_epochs: int = 6
    motion_tune_epochs: int = 2
    motion_batch: int = 32
    rates: tuple[float, ...] = (1 / 3, 1.0, 3.0)  # of the demo's, tried on the motion task

    def as_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))


TINY = Size(2, 24, 4, 2, 1, 1, 8, (8, 12), 4, (0, 2, 4), 6, (24, 8, 12), 1, 1, 8, (1.0,))  # to see that it runs


@dataclass(frozen=True)
class Job:
    """key: under which its outcome is recorded. task: of study_worker. seconds: about, of one core. stage: begun after all lower ones."""

    key: str
    part: str
    task: str
    row: str = ""
    seed: int = 0
    extra: tuple[tuple[str, Any], ...] = ()
    seconds: float = 0.0
    stage: int = 1


# Seconds of one core of an AMD EPYC (Zen 4) at the sizes above, by key's beginning; of frozen models a tenth. For the plan alone.
SECONDS: dict[str, float] = {
    "demo": 54,
    "folds": 57,
    "sizes": 56,
    "motion": 60,
    "motion-lr": 20,
    "swap": 19,
    "memory": 12,
    "stills": 39,
    "unseen": 55,
}


def row_of(part: str, name: str) -> Row:
    return next(row for row in ROWS[part] if row.name == name)


def rates() -> dict[str, float]:
    """Learning rates of the demo by the row of methods.json."""
    found = json.loads(RATES.read_text(encoding="utf-8"))
    return {key.removeprefix("lr/"): value for key, value in found.items() if key.startswith("lr/")}


def jobs(parts: tuple[str, ...], size: Size) -> list[Job]:
    """All jobs of these parts, a frozen model once and not for each seed."""
    made: list[Job] = []
    for part in parts:
        made += _JOBS.get(part, _plain)(part, size)
    return made


def _plain(part: str, size: Size) -> list[Job]:
    return [
        _job(f"{part}/{row.name}/{seed}", part, "trained", row, seed)
        for row in ROWS[part]
        for seed in range(size.seeds if row.trained or part == "folds" else 1)
    ]


def _sizes(part: str, size: Size) -> list[Job]:
    return [
        _job(f"{part}/{row.name} of {clips}/{seed}", part, "curve", row, seed, ("clips", clips))
        for clips in size.sizes
        for row in ROWS[part]
        for seed in range(size.seeds)
    ]


def _motion(part: str, size: Size) -> list[Job]:
    tried = [
        Job(f"motion-lr/{row.name}/{factor:.3g}", part, "rate", row.name, 0, (("factor", factor),), SECONDS["motion-lr"], 0)
        for row in ROWS[part]
        if row.trained
        for factor in size.rates
    ]
    return tried + _plain(part, size)


def _swap(part: str, size: Size) -> list[Job]:
    return [Job(f"swap/{seed}", part, "swap", MV_ADAPTER.name, seed, (), SECONDS["swap"], 2) for seed in range(size.seeds)]


def _memory(part: str, size: Size) -> list[Job]:
    return [
        Job(f"memory/{row.name}/{n}", part, "memory", row.name, n, (), SECONDS["memory"], 2)
        for row in ROWS[part]
        for n in range(min(3, size.seeds))
    ]


def _job(key: str, part: str, task: str, row: Row, seed: int, *extra: tuple[str, Any]) -> Job:
    return Job(key, part, task, row.name, seed, extra, SECONDS[part] * (1.0 if row.trained else 0.1))


_JOBS: dict[str, Callable[[str, Size], list[Job]]] = {"sizes": _sizes, "motion": _motion, "swap": _swap, "memory": _memory}
