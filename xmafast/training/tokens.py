"""The token cache that a run on the last blocks trains from: found, made or offered."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from xmafast.cache import FeatureCache, FrameReader, build_features, feature_folder
from xmafast.cache.joined import JoinedFrames
from xmafast.errors import CacheError, RunError, UsageError
from xmafast.retriever import Retriever

Progress = Callable[[int, int], None]
Tell = Callable[[str], None]


def tokens_for(
    retriever: Retriever, frames: FrameReader, wanted: bool | None, *, tell: Tell | None = None, progress: Progress | None = None
) -> FeatureCache | None:
    """The cache of the tokens that enter the first vision block that is adapted, of these frames; None to train from the frames.

    wanted: None takes it where it is there and fits, True makes it where it is not, False leaves it. tell: is told what is taken, or the
    command that would make it with what it takes on the disk. Raises CacheError where what is wanted cannot be made.
    """
    tell = tell or (lambda sentence: None)
    if wanted is False or why_none(retriever, frames):
        return None
    path, block = token_file(retriever, frames), retriever.adapted.first_vision
    cache = _found(path, retriever, frames)
    if cache is None and wanted:
        tell(f"Making the token cache {path}: {_size(token_bytes(retriever, frames))}.")
        build_features(frames, path, retriever.backbone, level="tokens", block=block, progress=progress)
        cache = _found(path, retriever, frames)
        if cache is None:
            raise CacheError(f"{path} does not hold the tokens of every video: some do not fit float16; train with --no-cache-tokens.")
    if cache is None:
        tell(
            f"The {block} vision blocks below are run in every step. Run once, their tokens take {_size(token_bytes(retriever, frames))}: "
            f"train with --cache-tokens, or first {token_command(retriever, frames)}"
        )
        return None
    tell(f"Training from the token cache {path}: {retriever.backbone.shape.vision_depth - block} vision blocks a step.")
    return cache


def resumed_tokens(retriever: Retriever, frames: FrameReader, run: Path) -> FeatureCache:
    """The token cache of a run that was begun on one. Raises RunError where it is not there any more."""
    cache = None if why_none(retriever, frames) else _found(token_file(retriever, frames), retriever, frames)
    if cache is None:
        raise RunError(f"{run} was begun on a token cache that is not there any more; make it again: {token_command(retriever, frames)}")
    return cache


def check_tokens(retriever: Retriever, frames: FrameReader) -> None:
    """Raise UsageError where a token cache is wanted and there can be none."""
    if reason := why_none(retriever, frames):
        raise UsageError(f"--cache-tokens has nothing to make: {reason}.")


def why_none(retriever: Retriever, frames: FrameReader) -> str | None:
    """Why there can be no token cache, as the rest of a sentence."""
    if not retriever.adapted.first_vision:
        return "no vision block is constant, unless --blocks last:K leaves some out"
    if retriever.patch_drop:
        return "--patch-drop leaves other patches out in every step"
    if isinstance(frames, JoinedFrames):
        return "a token cache is of one data set"
    return None


def token_file(retriever: Retriever, frames: FrameReader) -> Path:
    return feature_folder(frames.path.parent, retriever.backbone, "tokens", retriever.adapted.first_vision) / frames.path.name


def token_bytes(retriever: Retriever, frames: FrameReader) -> int:
    """On the disk."""
    tokens, width = retriever.backbone.feature_shape("tokens")
    return 2 * len(frames.rows) * frames.shape[1] * tokens * width


def token_command(retriever: Retriever, frames: FrameReader) -> str:
    """The command that makes it."""
    backbone, attributes = retriever.backbone, frames.attributes
    words = [
        *("xmafast", "cache", str(attributes.get("dataset", "DATASET")), "--split", str(attributes.get("split", "train"))),
        *(("--root", str(attributes["root"])) if attributes.get("root") else ()),
        *("--out", str(frames.path.parent), "--level", "tokens", "--block", str(retriever.adapted.first_vision)),
        *("--backbone", backbone.name, "--pretrained", backbone.pretrained),
    ]
    return shlex.join(words)


def _found(path: Path, retriever: Retriever, frames: FrameReader) -> FeatureCache | None:
    """The cache at ``path``, where it is of these weights and of these frames as they are."""
    if not path.is_file():
        return None
    cache = FeatureCache(path)
    if cache.attributes.get("backbone_sha256") != retriever.backbone.fingerprint or not cache.current(frames):
        return None
    return cache


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
