"""Frame embeddings of a whole cache, computed once for each model and kept beside it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from xmafast.cache import FeatureCache, FrameReader, feature_folder
from xmafast.files import write_atomically
from xmafast.precision import autocast
from xmafast.retriever import Retriever

Progress = Callable[[int, int], None]
VIDEOS_AT_ONCE = 16


def queries_of(cache: FrameReader, rows: np.ndarray, captions: int | None, device: torch.device) -> tuple[list[str], Tensor]:
    """The first ``captions`` of each row's captions (None: all), N in all, and for each the place of its video in ``rows``, (N,)."""
    texts = [cache.captions[row][:captions] for row in rows]
    video_of = torch.tensor([i for i, group in enumerate(texts) for _ in group], device=device)
    return [caption for group in texts for caption in group], video_of


@torch.inference_mode()
def embed_frames(
    retriever: Retriever, cache: FrameReader | FeatureCache, rows: np.ndarray, progress: Progress | None = None
) -> tuple[Tensor, Tensor]:
    """Rows of a cache of frames, or of their tokens -> un-normalised frame embeddings (M, F, D) in float32, and mask (M, F)."""
    retriever.eval()
    embeddings, masks = [], []
    for start in range(0, len(rows), VIDEOS_AT_ONCE):
        frames, mask = cache.read(rows[start : start + VIDEOS_AT_ONCE])
        with autocast(retriever.device):
            stream = retriever.read_stream([cache.ids[row] for row in rows[start : start + VIDEOS_AT_ONCE]])
            embeddings.append(retriever.encode_frames(frames, mask, stream).float())
        masks.append(mask.to(retriever.device))
        if progress:
            progress(min(start + VIDEOS_AT_ONCE, len(rows)), len(rows))
    if not embeddings:
        return torch.zeros(0, cache.shape[1], retriever.embed_dim), torch.zeros(0, cache.shape[1], dtype=torch.bool)
    return torch.cat(embeddings), torch.cat(masks)


@torch.inference_mode()
def embed_texts(retriever: Retriever, texts: list[str], batch: int = 256) -> Tensor:
    """Captions -> un-normalised embeddings (N, D) in float32."""
    retriever.eval()
    parts = []
    for start in range(0, len(texts), batch):
        with autocast(retriever.device):
            parts.append(retriever.encode_text(texts[start : start + batch]).float())
    return torch.cat(parts) if parts else torch.zeros(0, retriever.embed_dim)


@torch.inference_mode()
def adapt_frames(retriever: Retriever, frames: Tensor, mask: Tensor) -> Tensor:
    """The frozen backbone's frame embeddings (M, F, D) -> the retriever's, in float32, of a method on features."""
    retriever.eval()
    with autocast(retriever.device):
        pairs = zip(frames.split(VIDEOS_AT_ONCE), mask.split(VIDEOS_AT_ONCE), strict=True)
        return torch.cat([retriever.on_frames(f, m).float() for f, m in pairs])


@torch.inference_mode()
def adapt_texts(retriever: Retriever, text: Tensor, batch: int = 256) -> Tensor:
    """The frozen backbone's text embeddings (N, D) -> the retriever's, in float32, of a method on features."""
    retriever.eval()
    with autocast(retriever.device):
        return torch.cat([retriever.on_text(part).float() for part in text.split(batch)])


def frozen_models(retriever: Retriever) -> list[Retriever]:
    """A retriever's backbones, each alone and as it is."""
    backbones = [retriever.backbone, *([] if retriever.second is None else [retriever.second])]
    return [Retriever(backbone, None, words=retriever.words, impl=retriever.impl) for backbone in backbones]


def frozen_embeddings(retriever: Retriever, cache: FrameReader, progress: Progress | None = None) -> tuple[Tensor, Tensor]:
    """The frozen backbone's frame embeddings (M, F, D) and mask (M, F) of every row that is done; those of a second backbone beside them.

    Read from the embedding cache, or from ``embeddings/`` beside the cache, or computed and kept there.
    """
    parts = [stored_embeddings(model, cache, cache.path.parent / "embeddings", progress) for model in frozen_models(retriever)]
    return torch.cat([frames for frames, _ in parts], dim=-1), parts[0][1]


def stored_embeddings(retriever: Retriever, cache: FrameReader, folder: Path, progress: Progress | None = None) -> tuple[Tensor, Tensor]:
    """``embed_frames`` of every row that is done, read from ``folder`` where the same model has embedded the same frames.

    A frozen backbone's are read from its embedding cache, where `xmafast cache --level embeddings` made one of these frames. Those of a
    method on features follow from them in no time, and are not kept.
    """
    if retriever.on and retriever.kept and retriever.on_features:
        frames, mask = frozen_embeddings(retriever, cache, progress)
        return adapt_frames(retriever, frames, mask), mask
    if (cached := _cached(retriever, cache)) is not None:
        return cached
    path = folder / f"{cache.label.replace('/', '-')}-{_key(retriever, cache)}.safetensors"
    if path.is_file():
        try:
            tensors = load_file(path, device=str(retriever.device))
            return tensors["frames"], tensors["mask"]
        except (SafetensorError, OSError, KeyError):
            path.unlink()  # damaged: it can be had again
    frames, mask = embed_frames(retriever, cache, cache.rows, progress)
    tensors = {"frames": frames.cpu().contiguous(), "mask": mask.cpu().contiguous()}
    with contextlib.suppress(OSError):  # a folder that cannot be written to, or a full disk, only costs time the next time
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda partial: save_file(tensors, partial))
    return frames, mask


def _cached(retriever: Retriever, cache: FrameReader) -> tuple[Tensor, Tensor] | None:
    """What the backbone's embedding cache holds of these frames, where it has all of them."""
    if retriever.kept and retriever.on:
        return None
    path = feature_folder(cache.path.parent, retriever.backbone, "embeddings") / f"{cache.path.stem}.h5"
    if not path.is_file():
        return None
    features = FeatureCache(path).of(retriever.backbone)
    if not features.current(cache):
        return None
    frames, mask = features.read(cache.rows)
    return frames.to(retriever.device), mask.to(retriever.device)


def _key(retriever: Retriever, cache: FrameReader) -> str:
    """Everything that the embeddings depend on, as a short hash."""
    digest = hashlib.sha256(retriever.backbone.fingerprint.encode())
    if retriever.on:
        stream = retriever.stream.fingerprint if retriever.reads_stream and retriever.stream is not None else ""
        digest.update(f"{retriever.patch} {retriever.dataset or ''} {stream}".encode())
        for name, value in sorted(retriever.kept.items()):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    attributes = cache.attributes
    digest.update(repr([attributes.get(k) for k in ("source_sha256", "frames", "sampling", "size", "decoder")]).encode())
    for view in (cache.status, cache.num_frames, cache.bytes):
        digest.update(np.ascontiguousarray(view).tobytes())
    return digest.hexdigest()[:16]
