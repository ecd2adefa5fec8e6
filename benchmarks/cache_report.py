"""What is promised of the cache, what a run of cache.py says to it, and its table."""

from __future__ import annotations

import cache_build
import cache_read
from cache_decoders import BARE
from promises import judge, share
from rich.console import Console
from rich.table import Table

REFERENCES = {"build": cache_build.OURS, "read": cache_read.OURS, "bytes": "cache, raw"}
FIGURES = {"build": "videos_per_s", "read": "videos_per_s", "bytes": "bytes_per_video"}
OF_DECODER = 0.9
READ_RATE = 5_000


def judged(rows: list[dict]) -> list[dict]:
    """Each promise with its figure, and met, missed, open, or what the machine's own copies allow."""
    at = {(row["section"], row["case"], row["form"]): row.get(FIGURES[row["section"]]) for row in rows}
    found = []
    for section, case in dict.fromkeys((row["section"], row["case"]) for row in rows):
        rates = {form: value for (s, c, form), value in at.items() if (s, c) == (section, case)}
        if section == "build":
            promise = f"build_cache, {case}: at {OF_DECODER:g} of the bare decoder's rate or better (a share)"
            found.append(judge(promise, share(rates[cache_build.OURS], rates[BARE]), least=OF_DECODER))
        if section == "read":
            found += [ahead(rival, rates[cache_read.OURS], rates[rival]) for rival in (r.name for r in cache_read.RIVALS)]
            found.append(read_rate(rates[cache_read.OURS], rates[cache_read.COPY]))
    return found


def ahead(rival: str, ours: float, its: float | None) -> dict:
    return judge(f"{cache_read.OURS} ahead of {rival} (times its rate)", share(ours, its), least=1)


def read_rate(ours: float, copied: float) -> dict:
    found = judge(f"{cache_read.OURS} at {READ_RATE:,} videos/s or better, where memory allows", ours, least=READ_RATE)
    found["figure"] = f"{ours:,.0f} videos/s, {ours / copied:.2f} of what one thread copies"
    if found["state"] == "missed" and copied < READ_RATE:
        found["state"] = f"the machine copies only {copied:,.0f} videos/s"
    return found


def show(result: dict) -> None:
    machine = result["machine"]
    table = Table("section", "case", "form", title=f"{machine['cpu']}, {machine['cores']} cores, {result['workers']} decode processes")
    for name in ("videos/s", "steady", "p20 to p80 ms", "x ours", "kB a video", "error"):
        table.add_column(name, justify="right")
    ours = {(row["section"], row["case"]): row for row in result["rows"] if row["form"] == REFERENCES[row["section"]]}
    last = None
    for row in result["rows"]:
        head = (row["section"], row["case"])
        if last is not None and head != last:
            table.add_section()
        table.add_row(*(head if head != last else ("", "")), row["form"], *cells(row, ours[head]))
        last = head
    Console(width=160).print(table)
    for promise in result["promises"]:
        print(f"{promise['state']}: {promise['promise']}: {promise['figure']}")


def cells(row: dict, ours: dict) -> list[str]:
    """x ours: how often our rate is the form's, or its bytes are ours; below 1 is our loss."""
    if row["state"] != "measured":
        return [row["state"], "", "", "", "", ""]
    if row["section"] == "bytes":
        return ["", "", "", f"{row['bytes_per_video'] / ours['bytes_per_video']:.2f}", f"{row['bytes_per_video'] / 1e3:,.0f}", ""]
    return [
        f"{row['videos_per_s']:,.1f}",
        f"{row['steady_videos_per_s']:,.1f}" if "steady_videos_per_s" in row else "",
        f"{row['p20_ms']:,.0f} to {row['p80_ms']:,.0f}",
        f"{ours['videos_per_s'] / row['videos_per_s']:.2f}",
        "",
        f"{row['error']:.2f}" if "error" in row else "",
    ]
