"""A library of one's own videos and images: embeddings, thumbnails and paths in one folder, searched exactly."""

from xmafast.index.catalog import is_library
from xmafast.index.library import Filters, Found, Index
from xmafast.index.sources import read_frames
from xmafast.index.update import Updated

__all__ = ["Filters", "Found", "Index", "Updated", "is_library", "read_frames"]
