"""A frozen block's MLP in training on a CPU, beside autograd's own: python benchmarks/frozen_mlp.py [--rows 4728] [--width 768]

Forward and backward, the gradient of the input alone, under both activations of open_clip's models; the forms take turns. Two videos of 12
frames of ViT-B/16 by default. Writes benchmarks/results/frozen-mlp.json.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import measure
import torch
from machine import machine
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from xmafast.frozen_mlp import frozen_mlp


def mlp_of(width: int, activation: nn.Module) -> nn.Sequential:
    made = nn.Sequential()
    for name, part in {"c_fc": nn.Linear(width, 4 * width), "gelu": activation, "c_proj": nn.Linear(4 * width, width)}.items():
        made.add_module(name, part)
    return made.requires_grad_(False)


def step(form: Any, x: Tensor, g: Tensor) -> Tensor:
    return torch.autograd.grad(form(x), x, g)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4728)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "frozen-mlp.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    x, g = torch.randn(args.rows, args.width, requires_grad=True), torch.randn(args.rows, args.width)
    rows = []
    for name, activation in {"GELU": nn.GELU(), "QuickGELU": QuickGELU()}.items():
        mlp = mlp_of(args.width, activation)
        forms = {"xmafast": partial(step, partial(frozen_mlp, mlp), x, g), "autograd": partial(step, mlp, x, g)}
        torch.testing.assert_close(forms["xmafast"](), forms["autograd"](), rtol=1e-4, atol=1e-5)
        times = measure.interleaved(forms, "cpu")
        share = times["xmafast"]["median_ms"] / times["autograd"]["median_ms"]
        rows.append({"activation": name, "share": share} | {form: time["median_ms"] for form, time in times.items()})
        print(f"{name}: {rows[-1]['xmafast']:.0f} ms, autograd's own {rows[-1]['autograd']:.0f} ms: {share:.2f} of its time")
    args.out.write_text(json.dumps({"machine": machine(), "size": [args.rows, args.width], "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
