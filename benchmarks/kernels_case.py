"""What a problem of the kernels' benchmark is made of: forms of one computation, the truth, and the least work there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

OURS, AUTO, OP = "xmafast", "xmafast auto", "xmafast op"


@dataclass(frozen=True)
class Setup:
    device: str
    dtype: torch.dtype
    compile: bool

    def randn(self, *shape: int, std: float = 1.0) -> Tensor:
        return (std * torch.randn(shape, device=self.device)).to(self.dtype)


@dataclass(frozen=True)
class Form:
    """One way to the result. ``run`` is None where it is not installed; ``tolerance`` None where it is another result."""

    run: Callable[[], Any] | None
    tolerance: float | None
    needs: float = 0.0  # bytes it takes at least, where that may be too many


@dataclass(frozen=True)
class Case:
    size: str
    forms: dict[str, Form]
    error: Callable[[Any], float]  # of a form's result against float64
    bytes: float
    flops: float
    inputs: float = 0.0  # bytes of the inputs


def ours(setup: Setup, call: Callable[[str], Callable[[], Any]], tolerance: float, loose: float, *, op: bool = False) -> dict[str, Form]:
    """``call(impl)`` in the implementations that the device has. On the CPU auto is ours; op: the registered op is another form."""
    if setup.device == "cpu":
        return {OURS: Form(call("auto"), tolerance)} | ({OP: Form(call("triton"), tolerance)} if op else {})
    # what auto chooses may be eager
    return {OURS: Form(call("triton"), tolerance), AUTO: Form(call("auto"), loose), "eager": Form(call("eager"), loose)}


def compiled(setup: Setup, call: Callable[[Callable], Callable[[], Any]], function: Callable, loose: float) -> dict[str, Form]:
    """``call(f)`` runs f on the inputs."""
    return {"torch.compile": Form(call(torch.compile(function, dynamic=False)), loose)} if setup.compile else {}


def nbytes(*tensors: Tensor) -> float:
    return float(sum(t.numel() * t.element_size() for t in tensors))


def tolerances(dtype: torch.dtype) -> tuple[float, float]:
    """Of relative errors: for us, and for a rival, which may round more often than the dtype asks."""
    return (1e-4, 1e-3) if dtype == torch.float32 else (2e-2, 0.3)


def against(truth: Callable[[], Sequence[Tensor]]) -> Callable[[Any], float]:
    """The worst relative error, in the norm, of a tensor or of as many of a tuple as the truth has."""
    known = cache(lambda: [t.detach() for t in truth()])  # made when first asked for: a process that measures memory never asks

    def error(result: Any) -> float:
        results = [result] if isinstance(result, Tensor) else result
        return max(float((r.detach().double() - t).norm() / t.norm()) for r, t in zip(results, known(), strict=False))

    return error


def step(function: Callable[..., Tensor], leaves: Sequence[Tensor], grad: Tensor | None = None) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward."""

    def run() -> tuple[Tensor, ...]:
        out = function(*leaves)
        return out, *torch.autograd.grad(out, leaves, grad)

    return run


def doubled(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]


def pairs(setup: Setup, n: int, m: int, d: int, cosine: float = 0.15) -> tuple[Tensor, Tensor, Tensor]:
    """Unit queries and candidates, the n // m texts of a video one after the other, and their positives."""
    candidates = F.normalize(torch.randn(m, d, device=setup.device), dim=-1)
    positives = torch.arange(n, device=setup.device) // (n // m)
    queries = F.normalize(cosine * candidates[positives] + torch.randn(n, d, device=setup.device) / d**0.5, dim=-1)
    return queries.to(setup.dtype), candidates.to(setup.dtype), positives
