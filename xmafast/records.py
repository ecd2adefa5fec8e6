"""The record of an evaluation in a run's folder, ``eval-SPLIT.json``: what was measured and how, with the rank of every query.

Comparisons and reports read it, and encode nothing as long as the adapter and the cache are those that it was made of.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xmafast import __version__
from xmafast.cache import FrameReader
from xmafast.cache.stream import StreamFile
from xmafast.embeddings import Progress
from xmafast.errors import CacheError, RunError, UsageError
from xmafast.evaluation import BANK, Assessed, assess, counts, protocol
from xmafast.files import write_atomically
from xmafast.ranks import Ranks
from xmafast.rerank import Settings
from xmafast.retriever import CONFIG, WEIGHTS, Retriever, adapter_folder, best_device, load

FORM = 1  # of the file
MODELS = ("zero_shot", "adapted")
Bars = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Record:
    """An evaluation of a run and of its frozen model; ``data`` is what ``eval-SPLIT.json`` holds."""

    run: Path
    data: dict[str, Any]

    def ranks(self, model: str = "adapted") -> Ranks:
        of = self.data[model]
        optional = {key: None if of[key] is None else np.array(of[key], dtype=np.float64) for key in ("precision", "gain")}
        return Ranks(np.array(of["t2v"], float), np.array(of["v2t"], float), np.array(self.data["video_of"], dtype=np.int64), **optional)

    def found(self, direction: str, model: str = "adapted") -> list[list[int]]:
        """The best candidates of each query, best first: videos of texts (``t2v``), or texts of videos (``v2t``)."""
        found: list[list[int]] = self.data[model]["found"][direction]
        return found

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def queries(self) -> tuple[list[str], list[str], list[int]]:
        """What two records must share to be comparable query by query: ids of videos, captions, the video of each caption."""
        return self.data["ids"], self.data["captions"], self.data["video_of"]


def no_bar(label: str) -> AbstractContextManager[Progress]:
    return contextlib.nullcontext(lambda done, total: None)


def evaluate_run(
    run: str | Path,
    cache: FrameReader,
    *,
    patch: float = 1.0,
    impl: str = "auto",
    rerank_by: Sequence[str] = (),
    settings: Settings | None = None,
    bank: FrameReader | None = None,
    bank_videos: int = BANK,
    announce: Callable[[Retriever], None] | None = None,
    stream: str | Path | None = None,
    bars: Bars = no_bar,
) -> tuple[Record, Assessed, Assessed]:
    """Evaluate a run and its frozen model under the run's header, and write the record into the run's folder.

    stream: the file of another stream's features, for a run that reads one; None takes the one that it was trained with.
    bars: for each of the two models, a context that gives the progress's callback. Returns the record, and what was assessed, frozen and
    adapted. Other arguments as in ``xmafast.evaluation.assess``; raises what it raises, and RunError.
    """
    run = Path(run)
    retriever = load(run).to(best_device())
    retriever.impl, retriever.patch = impl, patch
    retriever.take_dataset(str(cache.attributes.get("dataset")))
    retriever.stream = stream_of(run, stream)
    if stream is not None and not retriever.reads_stream:
        raise UsageError(f"{run} reads no other stream of the videos, so --stream goes with another run.")
    if announce:
        announce(retriever)
    frozen = Retriever(retriever.backbone, None, retriever.pooling, words=retriever.words, temperature=retriever.temperature, impl=impl)
    with bars("zero-shot") as progress:
        before = assess(frozen, cache, store=cache.path.parent / "embeddings", progress=progress)
    with bars("adapted") as progress:
        after = assess(
            retriever,
            cache,
            rerank_by=rerank_by,
            settings=settings,
            bank=bank,
            bank_videos=bank_videos,
            store=run / "embeddings",
            progress=progress,
        )
    assert after.ranks.video_of is not None
    data: dict[str, Any] = {
        "form": FORM,
        "xmafast_version": __version__,
        "key": key_of(run, cache, patch, retriever.stream),
        "run": str(run),
        "cache": str(cache.path.resolve()),
        "split": cache.attributes.get("split"),
        "protocol": protocol(retriever, cache),
        "checkpoint_rule": _read(run / "metrics.json").get("checkpoint_rule"),
        "options": {
            "method": retriever.config().get("method"),
            "plugs": retriever.config().get("plugs"),
            **retriever.config().get("options", {}),
            "patch": patch,
            **({"stream": str(retriever.stream.path)} if retriever.stream is not None else {}),
            "impl": impl,
            "rerank": list(rerank_by),
            **(asdict(settings or Settings()) | {"bank_videos": bank_videos} if rerank_by else {}),
        },
        "recipe": _read(run / "config.json").get("recipe"),
        "trainable": retriever.trainable,
        "trainable_percent": 100 * retriever.trainable / retriever.backbone.shape.parameters,
        **counts(after.ranks, cache),
        "metrics": {"zero_shot": before.result(), "adapted": after.result()},
        "ids": after.ids,
        "rows": after.rows.tolist(),
        "captions": after.captions,
        "video_of": after.ranks.video_of.tolist(),
        **{name: _kept(of) for name, of in zip(MODELS, (before, after), strict=True)},
    }
    record = Record(run, data)
    with contextlib.suppress(OSError):  # a folder that cannot be written to only costs time the next time
        path = record_path(run, cache)
        write_atomically(path, lambda partial: partial.write_text(json.dumps(_plain(data), ensure_ascii=False) + "\n", encoding="utf-8"))
    return record, before, after


def recorded(run: str | Path, cache: FrameReader, *, bars: Bars = no_bar) -> Record:
    """The record of a run on a cache: the one in its folder where the adapter and the cache have not changed since, or a new one."""
    run = Path(run)
    data = _read(record_path(run, cache))
    if data.get("form") == FORM and data.get("key") == key_of(run, cache, stream=stream_of(run)):
        return Record(run, data)
    return evaluate_run(run, cache, bars=bars)[0]


def record_path(run: Path, cache: FrameReader) -> Path:
    """``RUN/eval-test.json``; of another cache than the run's own ``RUN/eval-msrvtt-test.json``."""
    own = _read(run / "config.json").get("cache")
    folder = cache.path.parent.resolve()
    alone = isinstance(own, str) and Path(own).resolve() in (folder, cache.path.resolve())
    name = cache.path.stem if alone else cache.label.replace("/", "-")
    return run / f"eval-{name}.json"


def stream_of(run: Path, named: str | Path | None = None) -> StreamFile | None:
    """The features of another stream that was named, or those that the run was trained with; None where it reads none."""
    path = named or _read(run / "config.json").get("stream")
    try:
        return None if path is None else StreamFile(path)
    except CacheError as error:
        raise CacheError(f"{error} {run} reads another stream of the videos; name the file of its features with --stream.") from error


def key_of(run: Path, cache: FrameReader, patch: float = 1.0, stream: StreamFile | None = None) -> str:
    """Everything that the ranks depend on, as a short hash: the adapter, the cache, another stream, and how much of the adapter acts."""
    folder = adapter_folder(run)
    digest = hashlib.sha256(f"{FORM} {patch} {stream.fingerprint if stream else ''}".encode())
    for name in (WEIGHTS, CONFIG):
        try:
            digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
        except OSError as error:
            raise RunError(f"{folder} holds no {name}; name the folder of a run that `xmafast train` wrote.") from error
    a = cache.attributes
    digest.update(json.dumps([a.get("dataset"), a.get("frames"), a.get("size"), cache.ids, cache.captions]).encode())
    for view in (cache.status, cache.num_frames, cache.checksum):
        digest.update(np.ascontiguousarray(view).tobytes())
    return digest.hexdigest()[:16]


def _kept(of: Assessed) -> dict[str, Any]:
    ranks = of.ranks
    return {
        "t2v": ranks.t2v.tolist(),
        "v2t": ranks.v2t.tolist(),
        "precision": None if ranks.precision is None else ranks.precision.tolist(),
        "gain": None if ranks.gain is None else ranks.gain.tolist(),
        "found": {"t2v": of.t2v.tolist(), "v2t": of.v2t.tolist()},
    }


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _plain(value: Any) -> Any:
    """What JSON can hold: no NaN, no numbers of numpy's."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
