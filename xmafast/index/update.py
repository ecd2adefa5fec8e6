"""Bringing a library up to date with its source: what is unchanged is neither decoded nor encoded again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xmafast import __version__
from xmafast.errors import CacheError, DataError, UsageError, unknown
from xmafast.index.catalog import THUMBS, WORK, Adapter, Item
from xmafast.index.models import Models, describe, keep_copy, model_of
from xmafast.index.scoring import pooled_of
from xmafast.index.sources import Entry, Frames, Progress, Source, same_place, thumbnails
from xmafast.index.writer import Writer
from xmafast.precision import autocast
from xmafast.retriever import Retriever, best_device

KEEP_EVERY = 64  # items, after which what was done is brought to disk
THUMB = 160  # pixels


@dataclass
class Updated:
    """What one update did, in items. problems: (id, reason) of those that failed."""

    path: Path
    items: int = 0
    added: int = 0
    changed: int = 0
    moved: int = 0
    deleted: int = 0
    unchanged: int = 0
    failed: int = 0
    encoded: int = 0
    adapters: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        return {**vars(self), "path": str(self.path), "problems": [{"id": name, "reason": reason} for name, reason in self.problems]}


def update(
    path: Path,
    source: Source,
    *,
    add: Mapping[str, tuple[Retriever, str]] | None = None,
    drop: Sequence[str] = (),
    rebuild: bool = False,
    damaged: Mapping[str, set[str]] | None = None,
    progress: Progress | None = None,
) -> Updated:
    """Make the library ``path`` hold what its source holds, with embeddings of every adapter it has.

    add: adapters by the name they get, each a retriever and where it came from. drop: names of adapters to take out. rebuild: an
    adapter that is there under a name of ``add``, with other weights, is replaced. damaged: contents to make
    anew, as ``Snapshot.damaged`` names them. progress: called with (items done, items to do).

    Until the end readers see the library as it was; an update that was interrupted goes on where it stopped. Raises UsageError for other
    settings than the library's, DataError and CacheError for a source that is missing or empty, of which nothing can be read, or of
    another folder.
    """
    with Writer(path) as writer:
        _check_source(writer, source)
        adapters = _adapters(writer, add or {}, drop, rebuild)
        entries, odd = source.scan()
        given = {name: retriever for name, (retriever, _) in (add or {}).items()}
        models = Models(path, best_device(), given)
        return _update(writer, source, entries, odd, adapters, models, damaged or {}, progress)


def _check_source(writer: Writer, source: Source) -> None:
    """Raise where the library is of another source, or of other settings."""
    meta = writer.meta
    if writer.fresh:
        return
    if meta["kind"] != source.kind or (not same_place(meta["root"], source.root) and Path(meta["root"]).exists()):
        raise UsageError(f"{writer.path} is an index of {meta['root']}, not of {source.root}; name another --out.")
    other = [f"{key} {meta[key]}" for key, value in source.settings.items() if value != meta[key]]
    if other:
        asked = ", ".join(f"{key} {value}" for key, value in source.settings.items())
        raise UsageError(f"{writer.path} was indexed with {', '.join(other)}, and now {asked} is asked; name another --out.")


def _adapters(writer: Writer, add: Mapping[str, tuple[Retriever, str]], drop: Sequence[str], rebuild: bool) -> dict[str, Adapter]:
    """What the library is to have; the copies of new ones are put in place, where nothing looks for them yet."""
    found = dict(writer.adapters)
    for name in drop:
        if name not in found:
            raise unknown("adapter", name, found)
        del found[name]
    for name, (retriever, origin) in add.items():
        model = model_of(retriever.eval())
        if name in found and found[name].model != model and not rebuild:
            raise CacheError(
                f"{writer.path}: {name!r} was indexed with other weights than {origin} holds now. Add --rebuild to encode everything "
                "again with these, or give the new ones another --name."
            )
        keep_copy(writer.path, model, retriever)
        found[name] = Adapter(name, model, describe(retriever, origin))
    if not found:
        raise UsageError(f"{writer.path} would have no adapter left; name a model with --run RUN or --backbone NAME.")
    return found


@dataclass
class _Plan:
    """What is to be done. items: all there will be; work: an entry of each content to decode, its hash, and for which models."""

    items: dict[str, Item] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)  # id -> added, changed, moved or unchanged
    work: list[tuple[Entry, str, list[str]]] = field(default_factory=list)


def _plan(
    writer: Writer, source: Source, entries: list[Entry], models: list[str], damaged: Mapping[str, set[str]], odd: dict[str, str]
) -> _Plan:
    live, contents = writer.items(), _sound(writer, damaged)
    stored = {model: {digest for digest in writer.vectors(model) if model not in damaged.get(digest, ())} for model in models}
    present = {entry.id for entry in entries}
    gone = {item.hash for name, item in live.items() if name not in present}
    plan, begun = _Plan(), set()
    for entry in entries:
        was = live.get(entry.id)
        same = was is not None and (was.size, was.mtime) == (entry.size, entry.mtime) and entry.hash in ("", was.hash)
        try:
            digest = was.hash if same and was is not None else source.digest(entry)
        except OSError as error:
            odd[entry.id] = f"it cannot be read ({error.strerror})"
            continue
        new = "moved" if digest in gone else "added"
        plan.kinds[entry.id] = new if was is None else "unchanged" if was.hash == digest else "changed"
        plan.items[entry.id] = Item(entry.id, entry.source, entry.size, entry.mtime, digest, entry.split, entry.captions)
        lacking = [model for model in models if digest not in contents or digest not in stored[model]]
        if lacking and digest not in begun:
            begun.add(digest)
            plan.work.append((entry, digest, lacking))
    return plan


def _sound(writer: Writer, damaged: Mapping[str, set[str]]) -> set[str]:
    """The contents whose thumbnails are there."""
    return {digest for digest in writer.contents() if THUMBS not in damaged.get(digest, ())}


def _update(
    writer: Writer,
    source: Source,
    entries: list[Entry],
    odd: dict[str, str],
    adapters: dict[str, Adapter],
    models: Models,
    damaged: Mapping[str, set[str]],
    progress: Progress | None,
) -> Updated:
    summary = Updated(writer.path, adapters=list(adapters))
    by_model = {adapter.model: adapter for adapter in adapters.values()}
    plan = _plan(writer, source, entries, list(by_model), damaged, odd)
    known = _sound(writer, damaged)
    failed: dict[str, str] = {}  # by hash
    wanted = {entry.id: (digest, lacking) for entry, digest, lacking in plan.work}
    if wanted:
        for adapter in adapters.values():  # before an hour of decoding: weights that cannot be had
            if any(adapter.model in lacking for _, lacking in wanted.values()):
                models.of(adapter)
    if progress:
        progress(0, len(wanted))
    for count, (entry, found) in enumerate(source.frames([entry for entry, _, _ in plan.work], writer.path / WORK), 1):
        digest, lacking = wanted[entry.id]
        if isinstance(found, str):
            failed[digest] = found
        else:
            reason = _encode(writer, digest, found, [by_model[model] for model in lacking], models, digest in known)
            if reason:
                failed[digest] = reason
            else:
                summary.encoded += 1
        if count % KEEP_EVERY == 0:
            writer.keep()
        if progress:
            progress(count, len(wanted))
    items = [item for item in plan.items.values() if item.hash not in failed]
    odd |= {item.id: failed[item.hash] for item in plan.items.values() if item.hash in failed}
    summary.items, summary.failed, summary.problems = len(items), len(odd), sorted(odd.items())
    if not items:
        name, reason = summary.problems[0]
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise DataError(f"Nothing in {source.root} can be indexed: {name}: {reason}{more}. Nothing was changed.")
    for item in items:
        setattr(summary, plan.kinds[item.id], getattr(summary, plan.kinds[item.id]) + 1)
    summary.deleted = max(0, len(set(writer.items()) - {entry.id for entry in entries}) - summary.moved)
    meta = {"root": str(source.root.absolute()), "kind": source.kind, **source.settings, "xmafast_version": __version__}
    if not _nothing_new(writer, items, adapters, odd, meta):
        writer.publish(items, adapters, odd, meta)
    return summary


def _nothing_new(writer: Writer, items: list[Item], adapters: dict[str, Adapter], failures: dict[str, str], meta: dict[str, Any]) -> bool:
    """Whether the library says all this already: then it is not written, and no reader has to open it again."""
    same = writer.adapters == adapters and {**meta, "revision": writer.meta.get("revision")} == writer.meta
    return not writer.fresh and same and writer.items() == {item.id: item for item in items} and writer.failures() == failures


@torch.inference_mode()
def _encode(writer: Writer, digest: str, found: Frames, adapters: list[Adapter], models: Models, known: bool) -> str:
    """Put what is made of a content's frames into the library; why not, where it cannot be.

    A content is encoded by itself, never in a batch with others, so that its embeddings are the same to the bit whatever it came with.
    """
    vectors = {}
    for adapter in adapters:
        frames, pooled = embed(models.of(adapter), found.images)
        if not np.isfinite(frames).all():
            return "its embeddings do not fit float16"
        vectors[adapter.model] = (frames, pooled)
    if not known:
        writer.add_content(digest, found.times.tolist(), thumbnails(found.images, THUMB))
    for model, made in vectors.items():
        writer.add_vectors(model, digest, *made)
    return ""


@torch.inference_mode()
def embed(retriever: Retriever, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames (n, H, W, 3) uint8 -> un-normalised embeddings (n, D) and the mean header's unit vector (D,), both float16."""
    with autocast(retriever.device):
        frames = retriever.encode_frames(torch.from_numpy(images)[None])[0].float().cpu()
    kept = frames.half()
    return kept.numpy(), pooled_of(kept.float()).half().numpy()
