"""Which form of an op runs: eager PyTorch, or the registered op with its Triton kernel."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

HAS_TRITON = importlib.util.find_spec("triton") is not None
IMPLEMENTATIONS = ("auto", "eager", "triton")


def use_triton(impl: str, *tensors: Tensor, measured: bool = False) -> bool:
    """Whether the registered op runs rather than the eager form.

    ``auto`` takes it on CUDA where ``measured``: where a committed measurement says that the kernel is not slower at this size.
    ``triton`` insists; on the CPU the op then runs its eager kernel, so that it can be checked without a GPU.
    Raises ValueError for an unknown ``impl``, and for ``triton`` where no Triton kernel can run.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"unknown impl {impl!r}; known: {', '.join(IMPLEMENTATIONS)}")
    kinds = {tensor.device.type for tensor in tensors}
    if impl == "triton":
        if kinds == {"cuda"} and not HAS_TRITON:
            raise ValueError("impl='triton' needs the triton package, which is not installed; use impl='eager'")
        if kinds not in ({"cuda"}, {"cpu"}):
            raise ValueError(f"impl='triton' needs every tensor on one CUDA device, not on {', '.join(sorted(kinds))}; use impl='eager'")
        return True
    return impl == "auto" and measured and HAS_TRITON and kinds == {"cuda"}


def launch(function: Callable[..., T], *arguments: Any) -> T:
    """Call what launches a kernel with its tensors' GPU as the current one, on which Triton would otherwise not launch."""
    with torch.cuda.device_of(next(argument for argument in arguments if isinstance(argument, Tensor))):
        return function(*arguments)
