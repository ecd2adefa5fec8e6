"""Videos decoded once, kept as HDF5: building, resuming, joining and reading; and what a frozen backbone makes of them."""

from xmafast.cache.build import build_cache
from xmafast.cache.features import FeatureCache, build_features, feature_folder
from xmafast.cache.file import Status
from xmafast.cache.frames import FrameCache, FrameReader
from xmafast.cache.merging import Merged, merge
from xmafast.cache.renew import Summary
from xmafast.cache.shards import Shard, open_splits
from xmafast.cache.verify import Verified, repair, verify

__all__ = [
    "FeatureCache",
    "FrameCache",
    "FrameReader",
    "Merged",
    "Shard",
    "Status",
    "Summary",
    "Verified",
    "build_cache",
    "build_features",
    "feature_folder",
    "merge",
    "open_splits",
    "repair",
    "verify",
]
