"""Cached frames to normalised patches in Triton: one byte read, one element written, nothing between them in memory.

One program owns BLOCK_P patches. It writes each patch channel by channel, in the order of the convolution's weight, so a
store covers consecutive elements; the three passes over a patch's interleaved bytes meet in the L1 cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def patches_kernel(
    frames, mean, std, out,
    N, GH, GW, stride_b, stride_y, stride_x, stride_c,
    PATCH: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """out (N, 3 * PATCH * PATCH), N patches in the order (frame, row, column); elements in the order (channel, y, x)."""
    AREA: tl.constexpr = PATCH * PATCH
    n = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    column = n % GW
    line = n // GW
    corner = (line // GH) * stride_b + (line % GH) * PATCH * stride_y + column * PATCH * stride_x
    for start in range(0, AREA, BLOCK_E):
        e = start + tl.arange(0, BLOCK_E)
        here = (n[:, None] < N) & (e[None, :] < AREA)
        pixel = corner[:, None] + ((e // PATCH) * stride_y + (e % PATCH) * stride_x)[None, :]
        for c in tl.static_range(3):
            value = tl.load(frames + pixel + c * stride_c, mask=here, other=0).to(tl.float32)
            # in units of 0..255, so that an element costs one subtraction and one product
            level = tl.load(mean + c) * 255.0
            gain = tl.div_rn(1.0, tl.load(std + c) * 255.0)
            value = (value - level) * gain
            tl.store(out + n[:, None] * (3 * AREA) + (c * AREA + e)[None, :], value.to(out.dtype.element_ty), mask=here)


def blocks(patch: int) -> dict[str, int]:
    """Tile sizes and warps for a patch: 2,048 elements at a time, so that a tile's bytes of all channels stay in L1."""
    elements = min(1024, triton.next_power_of_2(patch * patch))
    return {"BLOCK_P": min(64, 2048 // elements), "BLOCK_E": elements, "num_warps": 4, "num_stages": 2}


def patches(frames: Tensor, patch: int, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """frames (B, H, W, 3) uint8 of any strides; mean and std (3,) contiguous float32 -> (B, gh * gw, 3 * patch * patch)."""
    if max(frames.stride()[1:]) * max(patch, 3) >= 2**31:  # offsets within a patch have 32 bits
        frames = frames.contiguous()
    b, height, width, _ = frames.shape
    gh, gw = height // patch, width // patch
    out = torch.empty((b, gh * gw, 3 * patch * patch), dtype=dtype, device=frames.device)
    n = b * gh * gw
    if n:
        tile = blocks(patch)
        patches_kernel[(triton.cdiv(n, tile["BLOCK_P"]),)](
            frames, mean, std, out,
            n, gh, gw, *frames.stride(),
            PATCH=patch, **tile,
        )  # fmt: skip
    return out
