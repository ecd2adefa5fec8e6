"""xmafast: parameter-efficient text-video and text-image retrieval on a frozen CLIP.

Names are imported on first use, so that ``import xmafast`` and ``xmafast --help`` do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from xmafast.backbone import Backbone
    from xmafast.cache import FeatureCache, FrameCache, build_cache, build_features, merge, open_splits
    from xmafast.cache.stream import StreamFile, write_stream
    from xmafast.cache.torch_dataset import FrameDataset
    from xmafast.evaluation import evaluate
    from xmafast.index import Index
    from xmafast.methods import METHODS
    from xmafast.official import import_official
    from xmafast.pretrained import load_backbone
    from xmafast.retriever import Retriever
    from xmafast.sharing import load
    from xmafast.training import train

_HOME = {
    "METHODS": "methods",
    "Backbone": "backbone",
    "FeatureCache": "cache",
    "FrameCache": "cache",
    "FrameDataset": "cache.torch_dataset",
    "Index": "index",
    "Retriever": "retriever",
    "StreamFile": "cache.stream",
    "build_cache": "cache",
    "build_features": "cache",
    "evaluate": "evaluation",
    "import_official": "official",
    "load": "sharing",
    "load_backbone": "pretrained",
    "merge": "cache",
    "open_splits": "cache",
    "train": "training",
    "write_stream": "cache.stream",
}

__all__ = [
    "Backbone",
    "FeatureCache",
    "FrameCache",
    "FrameDataset",
    "Index",
    "METHODS",
    "Retriever",
    "StreamFile",
    "__version__",
    "build_cache",
    "build_features",
    "evaluate",
    "import_official",
    "load",
    "load_backbone",
    "merge",
    "open_splits",
    "train",
    "write_stream",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"xmafast.{_HOME[name]}"), name)
    raise AttributeError(f"module 'xmafast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
