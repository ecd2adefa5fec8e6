"""Cached frames to the patches that a ViT's first convolution reads."""

from xmafast.kernels.frames.op import patches

__all__ = ["patches"]
