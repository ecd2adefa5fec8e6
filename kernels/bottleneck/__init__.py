"""The bottleneck adapter: down-projection, activation, own and shared up-projection, skip; and the same with a LayerNorm behind it."""

from xmafast.kernels.bottleneck.norm import adapter_norm
from xmafast.kernels.bottleneck.op import adapter

__all__ = ["adapter", "adapter_norm"]
