"""The model card of an adapter: ``README.md`` with the front matter that the Hugging Face hub reads, filled from a run's own files.

Whatever the files do not say, the card says that they do not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import EvalResult, ModelCardData

from xmafast import __version__
from xmafast.cache import FrameReader, open_splits
from xmafast.errors import RunError, XmafastError
from xmafast.methods import METHODS
from xmafast.records import FORM, Record, key_of, stream_of
from xmafast.retriever import OWN_BACKBONE

SAMPLES = 10_000  # of the intervals
TOPK = (1, 5, 10)
NO_RESULTS = (
    "No evaluation of this adapter as it is now is recorded. `xmafast eval RUN CACHE`, and an export of the run after it, fill this in."
)
OWN_DATA = ("demo", "folder")  # data sets that the hub has no page for
# the identifiers that the hub knows; another one is given as `license: other` with its name
LICENCES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0 artistic-2.0
    bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
    gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa
    unlicense zlib pddl
    """.split()  # noqa: SIM905 - one a line would be half a page
)


@dataclass(frozen=True)
class Facts:
    """What a run's files say.

    config: ``adapter_config.json``. training: ``config.json``, and metrics: ``metrics.json``, both empty where nothing was trained here.
    records: the evaluations that hold, and whether each was checked against its cache. remarks: what was left out, and why.
    """

    name: str
    config: dict[str, Any]
    training: dict[str, Any]
    metrics: dict[str, Any]
    records: list[tuple[Record, bool]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def facts_of(run: Path, config: dict[str, Any]) -> Facts:
    """What the files of a run say, ``config`` being its adapter's own."""
    facts = Facts(run.resolve().name, config, _read(run / "config.json"), _read(run / "metrics.json"))
    for path in sorted(run.glob("eval-*.json")):
        data = _read(path)
        try:
            holds = _holds(run, data)
            if holds is not False:
                _results(record := Record(run, data), True, record.ranks().metrics(TOPK), {}, 0)
        except (KeyError, TypeError, ValueError, AttributeError):
            holds = False
        if holds is False:
            facts.remarks.append(f"{path.name} is not of this adapter and its cache as they are now; evaluate again: xmafast eval {run}")
        else:
            facts.records.append((Record(run, data), bool(holds)))
    return facts


def _holds(run: Path, data: dict[str, Any]) -> bool | None:
    """Whether a record is of the adapter and the cache at hand; None where its cache is not here to tell."""
    if data.get("form") != FORM:
        return False
    cache = _cache(Path(data["cache"]))
    if cache is None:
        return None
    try:
        return bool(data["key"] == key_of(run, cache, data["options"]["patch"], stream_of(run, data["options"].get("stream"))))
    except RunError:
        return False
    except XmafastError:  # the file of another stream has gone
        return None


def _cache(path: Path) -> FrameReader | None:
    try:
        return next(iter(open_splits(path).values()))
    except XmafastError:
        return None


def card(
    facts: Facts,
    *,
    licence: str | None = None,
    repo: str | None = None,
    dtype: str = "float32",
    merged: bool = False,
    routed_to: str | None = None,
    own_vocabulary: bool = False,
    samples: int = SAMPLES,
) -> str:
    """The card's text.

    licence: one of the hub's identifiers or any name; None is said to be unspecified. repo: where it will lie, ``user/name``. merged: the
    card of a plain open_clip model that the updates were added to, of the data set ``routed_to``. own_vocabulary: whether the backbone
    has another vocabulary than CLIP's. samples: of the intervals; 0 leaves them out.
    """
    name = repo or facts.name
    found = [(record, checked, record.ranks()) for record, checked in facts.records]
    shown = [(record, checked, ranks.metrics(TOPK), ranks.intervals(TOPK, samples) if samples else {}) for record, checked, ranks in found]
    matter = _front_matter(facts, name, licence, merged, [(record, metrics) for record, _, metrics, _ in shown])
    what = "the backbone with the updates added to its weights, a plain open_clip model" if merged else "an adapter on a frozen CLIP"
    method = _methods(facts.config)
    parts = [
        f"---\n{matter}\n---",
        f"# {escape(name)}",
        f"Text-video and text-image retrieval with {escape(method)}: {what}. Made by xmafast {__version__}; this card was filled from the "
        "run's files.",
        "## How to load it",
        _merged_use(facts, repo, own_vocabulary) if merged else _use(facts, repo),
        "## Results",
        *([_results(*row, samples) for row in shown] or [NO_RESULTS]),
        "## The model",
        _table(_model(facts, dtype, merged, routed_to)),
        "## Training",
        _table(_training(facts)) if facts.training else "The files do not say how it was trained: it was not trained by this program.",
        "## Licence",
        _licence(licence),
    ]
    return "\n\n".join(parts) + "\n"


def escape(text: object) -> str:
    """Text that Markdown, tables and HTML show as it is, on one line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return re.sub(r"([\\`*_\[\]#|<>~&$]|:(?=//)|(?<!\w)@)", r"\\\1", line)


def _front_matter(facts: Facts, name: str, licence: str | None, merged: bool, shown: Sequence[tuple[Record, dict[str, Any]]]) -> str:
    given = (licence or "unknown").strip()
    listed = given.lower() in LICENCES
    own: dict[str, Any] = {"license": given.lower() if listed or licence is None else "other"}
    if licence is not None and not listed:
        own["license_name"] = re.sub(r"[^a-z0-9.-]+", "-", given.lower()).strip("-.") or "own"
    base = hub_id(facts.config["backbone"])
    names = sorted({str(record.data["protocol"].get("dataset")) for record, _ in shown})
    results = [
        EvalResult(
            task_type=task,
            dataset_type=str(record.data["protocol"].get("dataset")),
            dataset_name=str(record.data["protocol"].get("dataset")),
            dataset_split=str(record.data["protocol"].get("split")),
            metric_type=metric,
            metric_name=metric,
            metric_value=round(value, 2),
        )
        for record, metrics in shown
        for task, side in (("text-to-video-retrieval", "t2v"), ("video-to-text-retrieval", "v2t"))
        for metric, value in metrics[side].items()
    ]
    if base:
        own |= {"base_model": base, "base_model_relation": "finetune" if merged else "adapter"}
    data = ModelCardData(
        library_name="open_clip" if merged else "xmafast",
        tags=["text-video-retrieval", "video-retrieval", "clip", "open_clip", "xmafast", *_methods(facts.config).split(" + ")],
        datasets=[name for name in names if name not in OWN_DATA] or None,
        metrics=["recall"] if results else None,
        eval_results=results or None,
        model_name=name if results else None,
        **own,
    )
    return data.to_yaml().strip()


def hub_id(backbone: Mapping[str, str]) -> str | None:
    """The hub's repository of a backbone's weights, as open_clip's own table names it."""
    tag = open_clip.get_pretrained_cfg(backbone["name"], backbone["pretrained"]) or {}
    parts = str(tag.get("hf_hub") or "").split("/")
    return "/".join(parts[:2]) if len(parts) >= 2 else None


def needs_own_file(backbone: Mapping[str, str]) -> bool:
    """Whether no name and no folder gives the backbone back, so that whoever loads the adapter has to bring it."""
    name, pretrained = backbone["name"], backbone["pretrained"]
    if name in ("demo", OWN_BACKBONE):
        return pretrained not in ("demo", "local", "none")
    return pretrained != "none" and not open_clip.get_pretrained_cfg(name, pretrained)


def _use(facts: Facts, repo: str | None) -> str:
    where, backbone = json.dumps(repo or "USER/NAME"), facts.config["backbone"]
    note = "" if repo else "    # this repository's name, or the path of the folder"
    lines = ["import xmafast", f"retriever = xmafast.load({where}){note}"]
    said = "Then `retriever.encode_text` of captions, `retriever.encode_frames` of frames and `retriever.similarity` of both."
    if needs_own_file(backbone):
        name, pretrained = backbone["name"], backbone["pretrained"]
        call = json.dumps(name) if pretrained == "local" else f"{json.dumps(name)}, {json.dumps(pretrained)}"
        lines[1] = f"retriever = xmafast.load({where}, backbone=xmafast.load_backbone({call})){note}"
        said = f"Its backbone is in no public place that the files name; bring the weights of sha256 {backbone['sha256']}. {said}"
    return "```python\n" + "\n".join(lines) + f"\n```\n\n{said}"


def _merged_use(facts: Facts, repo: str | None, own_vocabulary: bool) -> str:
    config = facts.config
    header = f"The header of the run is {escape(config['header'])}"
    header += f" with temperature {config['temperature']:g}" if config["header"] == "text-conditioned" else ""
    header += f", on captions of up to {config['words']} tokens; how frame embeddings pool into a score is no part of the weights."
    where = json.dumps(f"hf-hub:{repo}" if repo else "local-dir:FOLDER")
    lines = ["import open_clip", f"model, _, preprocess = open_clip.create_model_and_transforms({where})"]
    if own_vocabulary:
        header = (
            f"The vocabulary is its own, bpe.txt.gz, which `xmafast.load_backbone` of the folder reads and open_clip does not. {header}"
        )
    return "```python\n" + "\n".join(lines) + f"\n```\n\n`xmafast.load_backbone` takes the folder too. {header}"


def _results(record: Record, checked: bool, metrics: dict[str, Any], intervals: dict[str, Any], samples: int) -> str:
    data, columns = record.data, [*(f"R@{k}" for k in TOPK), "MdR", "MnR"]
    columns += [name for name in ("mAP", "nDCG") if name in metrics["v2t"]]
    frozen = data["metrics"]["zero_shot"]
    rows = []
    for side, label in (("t2v", "text to video"), ("v2t", "video to text")):
        rows.append([label, "zero-shot", *(_number(frozen[side].get(name)) for name in columns)])
        ends = intervals.get(side, {})
        rows.append(["", "adapted", *(_number(metrics[side].get(name), ends.get(name)) for name in columns)])
    protocol = data["protocol"]
    lost = data["missing"] + data["failed"]
    lines = [
        f"### {escape(protocol.get('dataset'))}, {escape(protocol.get('split'))}",
        "\n".join(
            [
                "| " + " | ".join(["", "", *columns]) + " |",
                "|" + " --- |" * (len(columns) + 2),
                *("| " + " | ".join(r) + " |" for r in rows),
            ]
        ),
        f"{data['queries']} queries, {data['candidates']} videos"
        + (f" ({lost} of the split missing or failed)" if lost else "")
        + ". R@K, mAP and nDCG in percent."
        + (f" In parentheses: 95 % intervals of {samples:,} draws of the videos." if samples else "")
        + ("" if checked else " The record's cache was not at hand when this card was written, so it was not checked against it."),
        _table(
            [
                ("Queries", protocol.get("queries")),
                ("Frames", f"{protocol.get('frames')}, {protocol.get('sampling')}, cached at {protocol.get('size')} px"),
                ("Preprocessing", f"{protocol.get('preprocessing')}; decoder {protocol.get('decoder')}"),
                ("Words", protocol.get("words")),
                ("Header", f"{protocol.get('header')}, temperature {protocol.get('temperature')}"),
                ("Video to text", protocol.get("v2t")),
                *([("Routed to", protocol["routed_to"])] if "routed_to" in protocol else []),
                *([("Share that acts", f"{protocol['patch']:g} (it loads with 1)")] if protocol.get("patch", 1) != 1 else []),
                ("Re-ranking", protocol.get("rerank")),
                ("Evaluated with", f"xmafast {data.get('xmafast_version')}"),
            ]
        ),
    ]
    return "\n\n".join(lines)


def _model(facts: Facts, dtype: str, merged: bool, routed_to: str | None) -> list[tuple[str, object]]:
    config = facts.config
    share = next((record.data.get("trainable_percent") for record, _ in facts.records), None)
    trained = f"{config['trainable']:,}" + (f", {share:.2f} % of the backbone's" if isinstance(share, (int, float)) else "")
    options = ", ".join(f"{key} {value}" for key, value in config["options"].items()) or "none"
    rows: list[tuple[str, object]] = [("Backbone", _backbone(config["backbone"]))]
    if "second" in config:
        rows.append(("Second backbone", _backbone(config["second"])))
    rows += [("Method", _methods(config)), ("Options", options)]
    rows += [(f"Options of {name}", ", ".join(f"{k} {v}" for k, v in given.items()) or "none") for name, given in config.get("plugs", ())]
    papers = [METHODS[name].paper for name in _names(config) if name in METHODS and METHODS[name].paper]
    rows += [("Paper", paper) for paper in papers]
    rows += [
        ("Header", config["header"]),
        ("Words", f"up to {config['words']} tokens"),
        ("Trained parameters", trained),
        ("Stored as", dtype + ("" if dtype == "float32" else "; the results are those of the float32 weights")),
    ]
    if merged:
        rows.append(("Merged", f"of the data set {routed_to}" if routed_to else "all of the updates"))
    return rows


def _training(facts: Facts) -> list[tuple[str, object]]:
    training, metrics = facts.training, facts.metrics
    caches = training.get("cache")
    names = [_cache_name(str(path)) for path in (caches if isinstance(caches, list) else [caches] if caches else [])]
    recipe, unknown = training.get("recipe"), "not recorded"
    return [
        ("Trained on", ", ".join(names) or unknown),
        (
            "Videos",
            f"{training.get('train_videos', unknown)}, and {training.get('validation_videos', unknown)} for validation",
        ),
        ("Validation", training.get("validation", unknown)),
        ("Checkpoint rule", metrics.get("checkpoint_rule", unknown)),
        ("Best epoch", metrics.get("best_epoch", unknown)),
        ("Recipe", ", ".join(f"{key} {value}" for key, value in recipe.items()) if isinstance(recipe, dict) else unknown),
        *([("Begun with", Path(training["init"]).name)] if training.get("init") else []),
        *([("Other stream", f"sha256 {training.get('stream_sha256')}")] if training.get("stream") else []),
        ("Data's sha256", training.get("cache_sha256", unknown)),
        ("Trained with", f"xmafast {training.get('xmafast_version')}, torch {training.get('torch_version')}"),
    ]


def _licence(licence: str | None) -> str:
    if licence is None:
        return (
            "Unspecified: whoever exported this named no licence (`xmafast export --license`), so this card grants none. The backbone and "
            "the training data have licences of their own."
        )
    return f"Named by whoever exported it: {escape(licence)}. The backbone and the training data have licences of their own."


def _backbone(backbone: Mapping[str, str]) -> str:
    name, pretrained = backbone["name"], backbone["pretrained"]
    what = {
        "demo": "demo, the one that xmafast embeds",
        OWN_BACKBONE: "its own, in the folder backbone",
    }.get(name, f"{name}, random weights from a fixed seed" if pretrained == "none" else f"{name}, weights {pretrained}")
    return f"{what}; sha256 {backbone['sha256']}"


def _names(config: Mapping[str, Any]) -> list[str]:
    return [str(name) for name in [config.get("method"), *(plug[0] for plug in config.get("plugs", ()))] if name]


def _methods(config: Mapping[str, Any]) -> str:
    return " + ".join(_names(config)) or str(config["header"])


def _cache_name(path: str) -> str:
    """The last of a path, or of a split's file the last two, whichever system it was written on: the rest is of a private machine."""
    parts = re.split(r"[\\/]", path.rstrip("\\/"))
    return "/".join(parts[-2:]) if parts[-1].endswith(".h5") else parts[-1]


def _table(rows: Sequence[tuple[str, object]]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {escape(value)} |" for key, value in rows)])


def _number(value: float | None, ends: Sequence[float] | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" + (f" ({ends[0]:.1f} to {ends[1]:.1f})" if ends else "")


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
