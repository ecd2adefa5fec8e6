"""The bottleneck adapter: down-projection, activation, own and shared up-projection, skip."""

from xmafast.kernels.bottleneck.op import adapter

__all__ = ["adapter"]
