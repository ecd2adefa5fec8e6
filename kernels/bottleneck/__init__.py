"""The bottleneck adapter: down-projection, activation, own and shared up-projection, skip."""

from xmafast.kernels.bottleneck.reference import adapter

__all__ = ["adapter"]
