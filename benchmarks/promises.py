"""A promise that a benchmark holds a figure of its own to: met, missed, or open where it was not measured."""

from __future__ import annotations


def judge(promise: str, value: float | None, *, least: float | None = None, most: float | None = None, where: str = "") -> dict:
    if value is None:
        return {"promise": promise, "state": "open", "figure": "not measured", "value": None}
    met = (least is None or value >= least) and (most is None or value <= most)
    return {"promise": promise, "state": "met" if met else "missed", "figure": f"{value:.3g}{where}", "value": value}


def share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole
