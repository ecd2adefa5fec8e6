"""What a frozen backbone makes of cached frames, computed once: tokens at a block, or embeddings.

tokens:      /tokens      (N, F, T, D) float16   entering the vision block that ``block`` counts, from 0
embeddings:  /embeddings  (N, F, D) float32      un-normalised
both:        /frames_checksum (N,) uint64        of the frames that a row was made of

The attributes name the backbone and the sha256 of its weights. Other weights are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from xmafast import __version__
from xmafast.cache.file import ERROR_BYTES, Arrays, CacheFile, Status, checksum, cut, lay_out, opened, write
from xmafast.cache.frames import FrameCache, FrameReader
from xmafast.cache.lock import locked
from xmafast.cache.renew import Summary, check_room, renewed
from xmafast.errors import CacheError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from xmafast.backbone import Backbone

LEVELS = ("frames", "tokens", "embeddings")
AT_ONCE = 16  # videos


class FeatureCache(CacheFile):
    """A token or embedding cache; ``data`` is the memory map, (N, F, T, D) float16 or (N, F, D) float32.

    Raises CacheError for a file that is missing, no HDF5, or of another level.
    """

    levels = ("tokens", "embeddings")
    small = ("frames_checksum",)
    frames_checksum: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, F, ...)."""
        return tuple(self.data.shape)

    def settings(self) -> dict[str, Any]:
        keys = ("frames", "sampling", "size", "level", "block", "backbone_sha256")
        return {key: self.attributes.get(key) for key in keys}

    def of(self, backbone: Backbone) -> FeatureCache:
        """Itself. Raises CacheError where it was made with other weights than the backbone's."""
        made = self.attributes
        if made["backbone_sha256"] != backbone.fingerprint:
            raise CacheError(
                f"{self.path} was made with other weights than the {backbone.name} ({backbone.pretrained}) at hand: "
                f"{made['backbone']} ({made['pretrained']}), sha256 {str(made['backbone_sha256'])[:12]}… and not "
                f"{backbone.fingerprint[:12]}…. Cache the {self.level} of this backbone with --backbone and --pretrained."
            )
        return self

    def current(self, frames: FrameReader) -> bool:
        """Whether it holds every row that is done of these frames, as they are."""
        if self.ids != frames.ids:
            return False
        rows = frames.rows
        return bool((self.status[rows] == Status.DONE).all() and (self.frames_checksum[rows] == frames.checksum[rows]).all())

    def read(self, rows: np.ndarray, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows -> features (B, F, ...) and mask bool (B, F), true where a frame is real. out: B rows or more, to read them into."""
        import torch

        mask = torch.from_numpy(np.arange(self.data.shape[1]) < self.num_frames[rows][:, None])
        if out is None:
            return torch.from_numpy(self.data[rows]), mask
        found = out[: len(rows)]
        np.take(self.data, rows, axis=0, out=found.numpy(), mode="clip")  # "raise" would read into a buffer first
        return found, mask


def kind_of(path: Path) -> type[FrameCache] | type[FeatureCache]:
    """The class that reads a cache file. Raises CacheError for a file that is no HDF5."""
    try:
        with h5py.File(path, "r") as file:
            return FrameCache if str(file.attrs.get("level", "frames")) == "frames" else FeatureCache
    except OSError as error:
        raise CacheError(f"{path} is not there, not an HDF5 file, or a damaged one; cache again.") from error


def feature_folder(frames: Path, backbone: Backbone, level: str, block: int | None = None) -> Path:
    """Where the features of the frame caches in a folder lie: ``caches/NAME/embeddings-ViT-B-32-1a2b3c4d``."""
    at = "" if block is None else f"-{block}"
    return frames / f"{level}{at}-{backbone.name}-{backbone.fingerprint[:8]}"


def lay_out_features(
    path: Path, ids: Sequence[str], captions: Sequence[tuple[str, ...]], attributes: dict[str, Any], shape: tuple[int, ...]
) -> None:
    """An empty feature cache, whose rows have this shape, (F, ...)."""
    level = str(attributes["level"])
    kind = np.float16 if level == "tokens" else np.float32
    arrays: Arrays = {level: ((len(ids), *shape), kind), "frames_checksum": ((len(ids),), np.uint64)}
    lay_out(path, ids, captions, attributes, level, arrays)


def build_features(
    frames: FrameReader,
    path: str | Path,
    backbone: Backbone,
    *,
    level: str = "embeddings",
    block: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Run the frozen backbone over cached frames and keep what comes out in ``path``.

    level: ``embeddings``, un-normalised, or ``tokens`` entering vision block ``block`` (from 0): the output of the blocks before it.
    Rows whose frames have not changed since are kept; an interrupted run goes on where it stopped. progress: (videos, of videos).

    Raises UsageError for a block that the backbone does not have; CacheError where the file holds other features, where another
    process is writing it, and where the disk is full.
    """
    path = Path(path)
    depth = backbone.shape.vision_depth
    if level not in LEVELS[1:]:
        raise UsageError(f"Features are {' or '.join(LEVELS[1:])}, not {level!r}.")
    if (level == "tokens") != (block is not None) or (block is not None and not 0 < block < depth):
        raise UsageError(
            f"--level tokens needs --block from 1 to {depth - 1} on {backbone.name}, the first block that is still to run: "
            f"{depth - 4} leaves the last four."
            if level == "tokens"
            else "--block goes with --level tokens."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        return _build(frames, path, backbone, level, block, progress)


def _build(
    frames: FrameReader, path: Path, backbone: Backbone, level: str, block: int | None, progress: Callable[[int, int], None] | None
) -> Summary:
    kept = (
        "dataset",
        "split",
        "root",
        "frames",
        "sampling",
        "size",
        "decoder",
        "decoder_version",
        "source_sha256",
        "shard",
        "list_videos",
        "list_sha256",
    )
    attributes: dict[str, Any] = {key: frames.attributes[key] for key in kept if key in frames.attributes} | {
        "level": level,
        "backbone": backbone.name,
        "pretrained": backbone.pretrained,
        "backbone_sha256": backbone.fingerprint,
        "xmafast_version": __version__,
    }
    if block is not None:
        attributes["block"] = block
    shape = (frames.shape[1], *backbone.feature_shape(level))

    def create(scratch: Path, ids: Sequence[str], captions: Sequence[tuple[str, ...]]) -> None:
        lay_out_features(scratch, ids, captions, attributes, shape)

    settings = {key: attributes.get(key) for key in ("frames", "sampling", "size", "level", "block", "backbone_sha256")}
    cache, reused = renewed(FeatureCache, path, frames.ids, frames.captions, attributes, settings, create)
    summary = Summary(path)
    todo = []
    for row in range(len(frames)):
        if frames.status[row] != Status.DONE:
            cache.status[row], cache.error[row] = frames.status[row], frames.error[row]
            failed = frames.status[row] == Status.FAILED
            summary.failed, summary.missing = summary.failed + failed, summary.missing + (not failed)
            reason = frames.error[row].decode("utf-8", "ignore") if failed else "its frames are not cached"
            summary.problems.append((frames.ids[row], "failed" if failed else "missing", reason))
        elif cache.status[row] == Status.DONE and cache.frames_checksum[row] == frames.checksum[row]:
            summary.present += 1
        else:
            cache.status[row] = Status.TODO
            todo.append(row)
    check_room(len(todo) * cache.capacity, len(todo), path.parent, "or cache elsewhere with --out")
    if progress:
        progress(0, len(todo))
    with opened(cache.path, f"There is no room left for {path}; what was computed is kept") as file:
        for start in range(0, len(todo), AT_ONCE):
            rows = np.array(todo[start : start + AT_ONCE])
            for row, features in zip(rows, _features(frames, rows, backbone, level, block), strict=True):
                _keep(cache, frames, int(row), features, file, summary)
            if progress:
                progress(min(start + AT_ONCE, len(todo)), len(todo))
    cache.flush()
    if not reused:
        cache.path.replace(path)
    return summary


def _features(frames: FrameReader, rows: np.ndarray, backbone: Backbone, level: str, block: int | None) -> list[np.ndarray]:
    """Of each row the features of its real frames (n, ...)."""
    import torch

    from xmafast.precision import autocast

    data, mask = frames.read(rows)
    with torch.inference_mode(), autocast(backbone.mean.device):
        flat = data[mask].to(backbone.mean.device)  # padding costs nothing
        found = backbone.encode_frames(flat) if block is None else backbone.encode_prefix(flat, block)
        found = found.to(torch.float16 if level == "tokens" else torch.float32).cpu()
    return [part.numpy() for part in found.split(mask.sum(1).tolist())]


def _keep(cache: FeatureCache, frames: FrameReader, row: int, features: np.ndarray, file: int, summary: Summary) -> None:
    n = len(features)
    cache.num_frames[row], cache.timestamps[row], cache.bytes[row] = n, frames.timestamps[row], frames.bytes[row]
    cache.source[row], cache.frames_checksum[row] = frames.source[row], frames.checksum[row]
    if not np.isfinite(features).all():
        reason = f"its {cache.level} do not fit {features.dtype}"
        cache.error[row], cache.status[row] = cut(reason, ERROR_BYTES), Status.FAILED
        summary.failed += 1
        summary.problems.append((cache.ids[row], "failed", reason))
        return
    padded = features.tobytes().ljust(cache.capacity, b"\0")
    write(file, padded, cache.place(row))
    cache.checksum[row], cache.error[row] = checksum([features], cache.timestamps[row, :n]), b""
    cache.status[row] = Status.DONE  # last: a row marked done is whole
    summary.done += 1
