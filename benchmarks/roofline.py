"""The rooflines of docs/kernels.md, from what benchmarks/kernels.py measured: python benchmarks/roofline.py [--write]

Of each op at each size: the bytes that it has to move (its inputs once, its results once), its floating-point operations, their quotient,
which of the machine's two roofs that makes the lower one, and the share of that roof that was reached. Roofs are measured in the same run:
a copy's bytes a second, and the rate of one large product.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from kernels_case import OURS

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "kernels-cpu.json", HERE.parent / "docs" / "kernels.md"
PLACE = re.compile(r"(?<=<!-- roofline -->\n).*?(?=<!-- /roofline -->)", re.DOTALL)


def table(result: dict[str, Any]) -> str:
    copy, product = result["roofs"]["copy_bytes_per_s"], result["roofs"]["product_flops_per_s"]
    machine = result["machine"]
    lines = [
        f"On {result['threads']} threads of an {machine['cpu']}, {result['dtype']}, torch {machine['torch']}: a copy moves "
        f"{copy / 1e9:.0f} GB/s, {result['roofs']['product'].replace('^3', '³')} products run at {product / 1e9:.0f} GFLOP/s, so the",
        f"roofs meet at {product / copy:.1f} FLOPs a byte.",
        "",
        "| op | size | MB | MFLOPs | FLOPs a byte | bound by | of that roof |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        if row["form"] == OURS and "bound" in row:
            cells = [f"{row['bytes'] / 1e6:,.1f}", f"{row['flops'] / 1e6:,.0f}", f"{row['flops'] / row['bytes']:,.1f}"]
            cells = [row["op"], row["size"], *cells, row["bound"], f"{row['roof_percent']:.0f} %"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into docs/kernels.md")
    made = table(json.loads(RESULTS.read_text(encoding="utf-8")))
    if parser.parse_args().write:
        PAGE.write_text(PLACE.sub(lambda _: made, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(made)


if __name__ == "__main__":
    main()
