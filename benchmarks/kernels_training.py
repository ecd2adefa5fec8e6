"""What training runs: the adapter in its three places, the frames' patches, the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import kernels_rivals as rivals
import torch
from kernels_case import OURS, Case, Form, Setup, against, compiled, doubled, nbytes, ours, pairs, step, tolerances
from torch import Tensor

from xmafast import kernels
from xmafast.kernels.bottleneck import reference as bottleneck
from xmafast.kernels.contrast import reference as contrast

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def _adapter_inputs(setup: Setup, rows: int, width: int, r: int, shared: int, norm: bool, grad: bool) -> list[Tensor]:
    weights = [
        setup.randn(r, width, std=width**-0.5), setup.randn(r, std=0.1), setup.randn(width - shared, r, std=r**-0.5),
        setup.randn(width - shared, std=0.1), setup.randn(shared, r, std=r**-0.5), setup.randn(shared, std=0.1),
    ]  # fmt: skip
    leaves = [setup.randn(rows, width)] + ([setup.randn(rows, width)] if norm else []) + weights[: 6 if shared else 4]
    return [t.requires_grad_(grad) for t in leaves]


def _norm_of(setup: Setup, width: int) -> tuple[Tensor, Tensor]:
    return torch.ones(width, device=setup.device, dtype=setup.dtype), torch.zeros(width, device=setup.device, dtype=setup.dtype)


def _adapter_function(setup: Setup, width: int, norm: bool, impl: str | None) -> Callable:
    """Of the leaves; impl None is the plain PyTorch form. The LayerNorm is the frozen backbone's."""
    if not norm:
        return bottleneck.adapter if impl is None else partial(kernels.adapter, impl=impl)
    frozen = _norm_of(setup, width)
    run = bottleneck.adapter_norm if impl is None else partial(kernels.adapter_norm, impl=impl)
    return lambda x, stream, *weights: run(x, stream, *(t.to(x.dtype) for t in frozen), *weights)


def adapter(setup: Setup, *, rows: int, width: int, r: int, shared: int = 0, norm: bool = False, backward: bool = False) -> Case:
    leaves = _adapter_inputs(setup, rows, width, r, shared, norm, backward)
    grads = [setup.randn(rows, width) for _ in range(2 if norm else 1)]
    tolerance, loose = tolerances(setup.dtype)

    def tuples(result: Any) -> list[Tensor]:
        return [result] if isinstance(result, Tensor) else list(result)

    def run_of(function: Callable) -> Callable[[], Any]:
        if not backward:
            return lambda: function(*leaves)
        output: list[Tensor] = []  # of one forward, made when the form is first run

        def run() -> tuple[Tensor, ...]:
            if not output:
                output.extend(tuples(function(*leaves)))
            return torch.autograd.grad(output, leaves, grads, retain_graph=True)

        return run

    def truth() -> Sequence[Tensor]:
        exact = doubled(leaves)
        out = tuples(_adapter_function(setup, width, norm, None)(*exact))
        return torch.autograd.grad(out, exact, [g.double() for g in grads]) if backward else out

    plain = _adapter_function(setup, width, norm, None)
    forms = ours(setup, lambda impl: run_of(_adapter_function(setup, width, norm, impl)), tolerance, loose, op=True)
    forms |= {"eager": Form(run_of(_adapter_function(setup, width, norm, "eager")), loose)}  # on a CPU auto has a form of its own
    forms |= compiled(setup, run_of, plain, loose)
    # forward: x (and the stream) read, y (and the normed) written, the r-wide pre-activation kept for the backward.
    # backward: dy (and the other gradient and the stream) and x read, dx (and the stream's gradient) written, h read.
    passes = (6 if norm else 3) if backward else (4 if norm else 2)
    # two products of rows x width x r; backward: two for dx and the bottleneck, two for the weights
    flops = (4 if backward else 2) * 2 * rows * width * r
    size = f"{rows:,} x {width}, r {r}" + (f", shared {shared}" if shared else "")
    return Case(size, forms, against(truth), float(rows * (passes * width + r) * leaves[0].element_size()), float(flops))


def adapter_dx(setup: Setup, *, rows: int, width: int, r: int) -> Case:
    """The backward's own kernel, dx and the bottleneck's gradient: what is left to cuBLAS reads dy twice and x once more."""
    down, up, h, dy = (
        setup.randn(r, width, std=width**-0.5),
        setup.randn(width, r, std=r**-0.5),
        setup.randn(rows, r),
        setup.randn(rows, width),
    )
    none = up.new_empty(0, r)

    def eager(dy: Tensor, h: Tensor, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        dh = (dy @ up) * bottleneck.slope(h, "quick_gelu")
        return dy + dh @ down, dh

    def run_of(function: Callable) -> Callable[[], Any]:
        return lambda: function(dy, h, down, up)

    tolerance, loose = tolerances(setup.dtype)
    forms = {
        OURS: Form(lambda: torch.ops.xmafast.adapter_backward(dy, h, down, up, none, "quick_gelu", 1.0, True), tolerance),
        "eager": Form(run_of(eager), loose),
    } | compiled(setup, run_of, eager, loose)
    bytes_ = float(rows * (2 * width + 2 * r) * dy.element_size())  # dy and h read, dx and dh written
    truth = against(lambda: eager(*(t.double() for t in (dy, h, down, up))))
    return Case(f"{rows:,} x {width}, r {r}", forms, truth, bytes_, float(4 * rows * width * r))


def patches(setup: Setup, *, frames: int, side: int, patch: int) -> Case:
    images = torch.randint(0, 256, (frames, side, side, 3), dtype=torch.uint8, device=setup.device)
    mean, std = (torch.tensor(t, device=setup.device) for t in (MEAN, STD))
    tolerance, loose = tolerances(setup.dtype)
    forms = ours(setup, lambda impl: lambda: kernels.patches(images, patch, mean, std, dtype=setup.dtype, impl=impl), tolerance, loose)
    forms |= {"normalise, unfold": Form(lambda: rivals.unfolded_patches(images, patch, mean, std, setup.dtype), loose)}
    forms |= compiled(setup, lambda f: lambda: f(images, patch, mean, std, setup.dtype), rivals.unfolded_patches, loose)
    truth = against(lambda: [rivals.unfolded_patches(images, patch, mean.double(), std.double(), torch.float64)])
    moved = images.numel() * (1.0 + setup.dtype.itemsize)  # bytes read, numbers written
    return Case(f"{frames:,} frames of {side}, patch {patch}", forms, truth, moved, 0.0)


def info_nce(setup: Setup, *, n: int, d: int) -> Case:
    queries, candidates, _ = pairs(setup, n, n, d)
    scale = torch.tensor(100.0, device=setup.device, requires_grad=True)
    leaves = [queries.requires_grad_(), candidates.requires_grad_(), scale]
    tolerance, loose = tolerances(setup.dtype)
    logits = 3.0 * n * n * setup.dtype.itemsize  # cosines, logits, and a softmax at a time

    forms = ours(setup, lambda impl: step(partial(kernels.info_nce, impl=impl), leaves), tolerance, loose, op=True)
    if setup.device == "cuda":
        forms["eager"] = Form(forms["eager"].run, loose, needs=logits)
    forms |= compiled(setup, lambda f: step(f, leaves), contrast.info_nce, loose)
    forms |= {"two passes (Inf-CL's structure)": Form(lambda: rivals.two_pass_info_nce(*(t.detach() for t in leaves)), loose)}
    if setup.device == "cuda":
        sigmoid = rivals.siglip_step(queries, candidates) if rivals.installed("siglip_kernel") else None
        forms |= {"siglip-kernel (sigmoid loss)": Form(sigmoid, None)}

    def truth() -> Sequence[Tensor]:  # not the scale's gradient, where terms of both signs cancel
        if n <= 2048:
            return step(contrast.info_nce, doubled(leaves))()[:3]
        return rivals.two_pass_info_nce(*(t.detach().double() for t in leaves))[:3]

    moved = 2 * nbytes(queries, candidates)
    # a product forward, again in the backward as logits are not kept, and one each for the two gradients
    return Case(f"{n:,} x {d}", forms, against(truth), moved, 8.0 * n * n * d, moved / 2)
