"""Normalised patches as a registered op: Triton on CUDA, eager on the CPU. Bytes have no gradient, so there is no backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xmafast.kernels.dispatch import launch, use_triton
from xmafast.kernels.frames import reference


@torch.library.custom_op("xmafast::patches", mutates_args=(), device_types="cuda")
def _patches(frames: Tensor, patch: int, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    from xmafast.kernels.frames import triton

    return launch(triton.patches, frames, patch, mean, std, dtype)


@_patches.register_kernel("cpu")
def _(frames: Tensor, patch: int, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    return reference.patches(frames, patch, mean, std, dtype)


@_patches.register_fake
def _(frames: Tensor, patch: int, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    b, height, width, _ = frames.shape
    return frames.new_empty(b, (height // patch) * (width // patch), 3 * patch * patch, dtype=dtype)


def patches(
    frames: Tensor,  # (B, H, W, 3) uint8
    patch: int,
    mean: Tensor | Sequence[float],  # 3 elements
    std: Tensor | Sequence[float],  # 3 elements
    *,
    dtype: torch.dtype = torch.float32,
    impl: str = "auto",
) -> Tensor:  # (B, gh * gw, 3 * patch * patch)
    """``(frames / 255 - mean) / std`` in float32, cut into patches of ``patch`` pixels a side, rounded to ``dtype``.

    gh = H // patch rows of gw = W // patch patches each; a remainder on the right or at the bottom is left out, as by a
    convolution of that stride. A patch's elements are in the order (channel, y, x), so that for a ViT's first convolution
    ``patches @ conv1.weight.flatten(1).T`` equals ``conv1(normalised images).flatten(2).mT``. mean and std are in units of
    the 0..1 range. frames may have any strides. dtype: float32, bfloat16 or float16.
    impl: auto, eager or triton (``xmafast.kernels.dispatch``).

    Raises ValueError for frames that are not uint8 (B, H, W, 3), a patch that does not fit them, a mean or std that has not
    3 elements, another dtype, or an unknown impl.
    """
    # tensors stay tensors: reading their numbers would wait for the GPU
    mean, std = (torch.as_tensor(t, dtype=torch.float32, device=frames.device).detach().reshape(-1) for t in (mean, std))
    reference.check(frames, patch, mean, std, dtype)
    run = _patches if use_triton(impl, frames) else reference.patches
    return run(frames, patch, mean, std, dtype)
