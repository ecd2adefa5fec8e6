"""Videos decoded once, kept as HDF5: building, resuming and reading."""

from xmafast.cache.build import Summary, build_cache
from xmafast.cache.frames import FrameCache, Status, open_splits

__all__ = ["FrameCache", "Status", "Summary", "build_cache", "open_splits"]
