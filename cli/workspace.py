"""Where caches and runs live, and which one a command takes when none is named."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from xmafast.errors import CacheError, RunError

if TYPE_CHECKING:
    from xmafast.backbone import Backbone


def cache_folder(named: Path | None, workspace: Path) -> Path:
    """The cache that was named (a folder, a file, or a data set's name), or the newest one of the workspace."""
    if named is not None:
        inside = workspace / "caches" / named
        return inside if not named.exists() and inside.is_dir() else named
    files = sorted(workspace.glob("caches/*/*.h5"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise CacheError(f"There is no cache in {workspace / 'caches'} yet; make one with: xmafast cache demo")
    return files[-1].parent


def is_cache(named: Path, workspace: Path) -> bool:
    """Whether a path, or a name under caches/, is a cache."""
    place = cache_folder(named, workspace)
    return place.suffix == ".h5" or any(place.glob("*.h5"))


def run_folder(named: Path | None, workspace: Path) -> Path:
    """The run that was named (a folder, or a name under runs/), or the newest one of the workspace."""
    if named is not None:
        inside = workspace / "runs" / named
        return inside if not named.exists() and inside.is_dir() else named
    runs = newest_runs(workspace)
    if not runs:
        raise RunError(f"There is no trained run in {workspace / 'runs'} yet; make one with: xmafast train")
    return runs[0]


def run_cache(run: Path) -> Path:
    """The cache that a run was trained on."""
    try:
        cache = json.loads((run / "config.json").read_text(encoding="utf-8"))["cache"]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{run / 'config.json'} does not say which cache the run was trained on; name a cache after the run.") from error
    if isinstance(cache, list):
        raise RunError(f"{run} was trained on several data sets; name one of their caches after it: {', '.join(cache)}")
    return Path(cache)


def frozen_backbone(cache: Path, name: str | None, pretrained: str | None) -> Backbone:
    """The backbone to use without a run: the one that was named, or the cache's default."""
    from xmafast.cache import open_splits
    from xmafast.pretrained import backbone_for

    return backbone_for(next(iter(open_splits(cache).values())).attributes, name, pretrained)


def newest_runs(workspace: Path) -> list[Path]:
    """The runs that can be loaded, newest first."""
    files = sorted(workspace.glob("runs/*/best/adapter_config.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent.parent for path in files]


def interrupted_run(workspace: Path) -> Path:
    """The newest run of the workspace that was begun and has not come to its end."""
    files = sorted(workspace.glob("runs/*/config.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    runs = [path.parent for path in files if not (path.parent / "metrics.json").exists()]
    if not runs:
        raise RunError(f"There is no interrupted run in {workspace / 'runs'}; every one there is finished.")
    return runs[0]


def new_run(workspace: Path, dataset: str, method: str) -> Path:
    """A name for a new run that is not taken."""
    base = workspace / "runs" / f"{dataset}-{method}-{time.strftime('%Y%m%d-%H%M%S')}"
    return next(path for n in range(1, 1000) if not (path := base if n == 1 else base.with_name(f"{base.name}-{n}")).exists())
