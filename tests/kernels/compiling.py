"""Compile a Triton kernel for a GPU that is not there, and read what ptxas says of it."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter is on, and kernels cannot be compiled under it", allow_module_level=True)
pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes of shared memory that one block may have
CHIPS = tuple(SHARED_LIMIT)
TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Compiled:
    shared: int
    stack: int
    registers: int
    ptx: str


def compile_for(arch: int, kernel: Any, types: dict[str, str], constants: dict[str, Any], tile: dict[str, int]) -> Compiled:
    """types: the signature of the run-time arguments, as ``{"x": "*bf16", "M": "i32"}``. tile: block sizes, num_warps, num_stages."""
    options = {key: value for key, value in tile.items() if key.startswith("num_")}
    constants = constants | {key: value for key, value in tile.items() if not key.startswith("num_")}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if types.get(name, "").startswith(("*", "i"))}
    built = triton.compile(ASTSource(kernel, signature, constants, aligned), target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return Compiled(built.metadata.shared, int(found[2]), int(found[1]), built.asm["ptx"])


def check(arch: int, built: Compiled, *, matrix: bool) -> None:
    """No spill, shared memory within the chip's limit, and on Hopper the tensor cores' own instructions in a matrix kernel."""
    assert built.stack == 0, f"{built.stack} bytes of stack: registers spill ({built.registers} in use)"
    assert built.shared <= SHARED_LIMIT[arch], f"{built.shared} bytes of shared memory"
    if matrix and arch == 90:
        assert "wgmma" in built.ptx


def some_quick(cases: Iterable[tuple], quick: Iterable[tuple]) -> list:
    """All cases, of which only ``quick`` run in plain pytest."""
    cases, quick = list(cases), set(quick)
    assert quick <= set(cases)
    return [case if case in quick else pytest.param(*case, marks=pytest.mark.slow) for case in cases]
