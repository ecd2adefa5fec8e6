"""From what a user names (a folder, a cache, a library, a model) to an update of the library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xmafast.errors import CacheError, UsageError
from xmafast.index.catalog import CATALOG, is_library
from xmafast.index.snapshot import Snapshot, revision
from xmafast.index.sources import CacheSource, FolderSource, Progress, Source, holds_cache, media, same_place
from xmafast.index.update import Updated, update
from xmafast.retriever import Retriever


def build(
    path: Path,
    source: Path | None,
    retriever: Retriever | None,
    *,
    name: str | None,
    origin: str | None,
    frames: int | None,
    sampling: str | None,
    size: int | None,
    decoder: str,
    workers: int | None,
    time_limit: float,
    drop: Sequence[str],
    rebuild: bool,
    check: bool,
    progress: Progress | None,
) -> Updated:
    """``xmafast.Index.build``."""
    there = (path / CATALOG).is_file()
    old = Snapshot(path) if there and not _begun(path) else None
    damaged = old.damaged() if old is not None and check else None
    if old is None:
        if source is None:
            raise UsageError(f"{path} does not say yet what it is an index of; name a folder or a cache: xmafast index DIR --out {path}")
        if retriever is None:
            raise UsageError(f"{path} has no adapter yet; name a model with --run RUN or --backbone NAME.")
    root = Path(old.meta["root"]) if source is None and old is not None else source
    assert root is not None
    if is_library(root) and not holds_cache(root):
        raise UsageError(f"{root} is a library, not a folder to index; to bring it up to date: xmafast index {root}")
    kind = old.meta["kind"] if old is not None and same_place(old.meta["root"], root) else "cache" if holds_cache(root) else "folder"
    found: Source
    if kind == "cache":
        if frames or sampling or size:
            raise UsageError(f"{root} is a cache, whose frames are decided; --frames, --sampling and --size go with a folder of videos.")
        if not root.exists():
            raise CacheError(f"There is no cache {root}; name one, or bring it back. Nothing was changed.")
        found = CacheSource(root)
    else:
        media(root)
        known = dict(old.meta) if old is not None else {}
        first = retriever.backbone.image_size if retriever is not None else 224
        settings = {
            "frames": frames or known.get("frames", 12),
            "sampling": sampling or known.get("sampling", "fps"),
            "size": size or known.get("size", first),
        }
        found = FolderSource(root, settings, decoder, workers, time_limit)
    add = {}
    if retriever is not None:
        default = retriever.method.name if retriever.method is not None else retriever.backbone.name
        add[name or default] = (retriever, origin or default)
    return update(path, found, add=add, drop=drop, rebuild=rebuild, damaged=damaged, progress=progress)


def _begun(path: Path) -> bool:
    """Whether a library's first indexing has not ended."""
    return revision(path) == 0
