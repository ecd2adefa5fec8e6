"""Cached frames to normalised patches in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check(frames: Tensor, patch: int, mean: Tensor, std: Tensor, dtype: torch.dtype) -> None:
    """Raise ValueError for what is not a batch of uint8 RGB frames, for a patch that does not fit, or for another dtype."""
    if frames.dtype != torch.uint8:
        raise ValueError(f"frames must be uint8, not {str(frames.dtype).removeprefix('torch.')}")
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be (B, H, W, 3), not {tuple(frames.shape)}")
    if not 1 <= patch <= min(frames.shape[1:3]):
        raise ValueError(f"a patch of {patch} does not fit frames of {frames.shape[1]} x {frames.shape[2]}")
    if mean.numel() != 3 or std.numel() != 3:
        raise ValueError(f"mean and std must have 3 elements, not {mean.numel()} and {std.numel()}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(str(d).removeprefix('torch.') for d in DTYPES)}, not {dtype}")


def patches(
    frames: Tensor,  # (B, H, W, 3) uint8
    patch: int,
    mean: Tensor,  # 3 elements
    std: Tensor,  # 3 elements
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # (B, gh * gw, 3 * patch * patch)
    """The formula of ``xmafast.kernels.patches``, any device."""
    b, height, width, _ = frames.shape
    gh, gw = height // patch, width // patch
    grid = frames[:, : gh * patch, : gw * patch].reshape(b, gh, patch, gw, patch, 3)
    x = grid.permute(0, 1, 3, 5, 2, 4).reshape(b, gh * gw, 3, patch * patch)  # moved while it is one byte an element
    x = x.float().div_(255).sub_(mean.float().view(3, 1)).div_(std.float().view(3, 1))
    return x.to(dtype).flatten(2)
