"""Which model made a set of embeddings: its hash, its copy in the library, and loading it again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from xmafast.backbone import Backbone
from xmafast.errors import BackboneError, CacheError, RunError
from xmafast.index.catalog import ADAPTERS, Adapter
from xmafast.pretrained import load_backbone
from xmafast.retriever import Retriever, load


def model_of(retriever: Retriever) -> str:
    """A hash of all that embeddings and queries depend on: weights, method, options, words, header, patch."""
    digest = hashlib.sha256(retriever.backbone.fingerprint.encode())
    kept = retriever.kept if retriever.on else {}
    about: dict[str, Any] = {"header": retriever.header, "temperature": retriever.temperature, "words": retriever.words}
    if kept:
        config = retriever.config()
        about |= {key: config[key] for key in ("method", "options", "plugs")} | {"patch": retriever.patch}
        if retriever.second is not None:
            digest.update(retriever.second.fingerprint.encode())
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for name, value in sorted(kept.items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def describe(retriever: Retriever, origin: str) -> dict[str, Any]:
    """What a library notes of a model. origin: the run that it came from, for people to read."""
    backbone = retriever.backbone
    return {
        "origin": origin,
        "backbone": backbone.name,
        "pretrained": backbone.pretrained,
        "backbone_sha256": backbone.fingerprint,
        "method": retriever.method.name if retriever.method is not None and retriever.on else None,
        "frozen": not (retriever.kept and retriever.on),
        "header": retriever.header,
        "pooling": retriever.pooling,
        "temperature": retriever.temperature,
        "words": retriever.words,
        "patch": retriever.patch,
        "dim": retriever.embed_dim,
        "image_size": backbone.image_size,
    }


def keep_copy(library: Path, model: str, retriever: Retriever) -> None:
    """Put what was trained into the library, so that it needs the run no more; the backbone is named, not copied."""
    if retriever.kept and retriever.on:
        retriever.save(library / ADAPTERS / model)


class Models:
    """The retrievers of a library's adapters, each loaded when it is first needed; adapters of one backbone share it.

    given: retrievers that are in memory already, by the name of their adapter.
    """

    def __init__(self, library: Path, device: torch.device, given: dict[str, Retriever] | None = None) -> None:
        self.library, self.device = library, device
        self._given = dict(given or {})
        self._loaded: dict[str, Retriever] = {}
        self._backbones: dict[str, Backbone] = {}
        for retriever in self._given.values():
            self._backbones.setdefault(retriever.backbone.fingerprint, retriever.backbone)

    def of(self, adapter: Adapter) -> Retriever:
        """Raises CacheError where the weights at hand are not those that the embeddings were made with."""
        if adapter.model not in self._loaded:
            self._loaded[adapter.model] = self._checked(adapter, self._load(adapter)).to(self.device).eval()
        return self._loaded[adapter.model]

    def _load(self, adapter: Adapter) -> Retriever:
        if adapter.name in self._given:
            return self._given[adapter.name]
        about = adapter.about
        backbone = self._backbones.get(str(about["backbone_sha256"]))
        folder = self.library / ADAPTERS / adapter.model
        try:
            if not about["frozen"]:
                retriever = load(folder, backbone)
            else:
                backbone = backbone or load_backbone(str(about["backbone"]), str(about["pretrained"]))
                header, words, temperature = str(about["header"]), int(about["words"]), float(about["temperature"])
                retriever = Retriever(backbone, None, header, words=words, temperature=temperature)
        except BackboneError as error:
            made = f"{about['backbone']} ({about['pretrained']})"
            raise BackboneError(f"{self.library} was indexed with {made}, which is needed here. {error}") from error
        except RunError as error:
            if backbone is None and "other weights" in str(error):
                raise self._other(adapter) from error
            raise
        self._backbones.setdefault(retriever.backbone.fingerprint, retriever.backbone)
        if not about["frozen"]:
            retriever.patch = float(about["patch"])
        return retriever

    def _checked(self, adapter: Adapter, retriever: Retriever) -> Retriever:
        if model_of(retriever) != adapter.model:
            raise self._other(adapter)
        return retriever

    def _other(self, adapter: Adapter) -> CacheError:
        about = adapter.about
        return CacheError(
            f"{self.library}: the embeddings {adapter.name!r} were made with other weights than the {about['backbone']} "
            f"({about['pretrained']}) at hand: sha256 {str(about['backbone_sha256'])[:12]}… of the backbone is wanted. Bring those weights "
            f"back, or index again with: xmafast index {self.library} --name {adapter.name} --rebuild"
        )
