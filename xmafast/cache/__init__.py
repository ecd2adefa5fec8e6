"""Videos decoded once, kept as HDF5: building, resuming and reading."""

from xmafast.cache.build import Summary, build_cache
from xmafast.cache.frames import FrameCache, Status, open_splits
from xmafast.cache.verify import Verified, repair, verify

__all__ = ["FrameCache", "Status", "Summary", "Verified", "build_cache", "open_splits", "repair", "verify"]
