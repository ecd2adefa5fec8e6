"""What a run is made from: as the caller says, as another run's files say where the caller does not, and as config.json keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, cast

from xmafast import __version__
from xmafast.backbone import Backbone
from xmafast.cache.stream import StreamFile
from xmafast.errors import RunError, UsageError, unknown
from xmafast.methods import METHODS, Plug
from xmafast.methods.last_blocks import ALL
from xmafast.methods.memory import Memory
from xmafast.pretrained import backbone_for, load_backbone
from xmafast.retriever import CONFIG as ADAPTER_CONFIG
from xmafast.retriever import OWN_BACKBONE, WEIGHTS, Retriever, adapter_folder, best_device
from xmafast.training.recipe import Recipe, recipe_for
from xmafast.training.recipes import DEFAULT, NAMES, PAPER, published
from xmafast.training.split import Split, datasets_of

CONFIG, METRICS = "config.json", "metrics.json"  # a run's first file and its last
NOT_COMPARED = {"xmafast_version", "torch_version", "cache", "trainable", "processes"}  # of a run that is resumed: the cache by its content


class Unset(Enum):
    """Of an option for which None means something."""

    UNSET = "unset"


UNSET = Unset.UNSET


@dataclass(frozen=True)
class Settings:
    """What the caller wants; None (of the method, UNSET) is what was not said. recipe: fields of ``Recipe``, those that were said."""

    method: str | Unset | None = UNSET
    plugs: Sequence[Plug] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    header: str | None = None
    words: int | None = None
    temperature: float | None = None
    backbone: Backbone | str | None = None
    pretrained: str | None = None
    impl: str | None = None
    checkpointing: bool | None = None
    init: str | None = None
    stream: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    at_blocks: str | None = None
    tokens: bool | None = None

    def over(self, stored: Settings, whose: str) -> Settings:
        """These settings, filled up with stored ones. Raises UsageError for a method that is not theirs."""
        if self.method is not UNSET and self.method != stored.method:
            was, wanted = stored.method or "no method", self.method or "none"
            raise UsageError(f"{whose} trains {was}, not {wanted}; leave --method out, or begin a new run without it.")
        named = self.backbone is not None or self.pretrained is not None
        return Settings(
            method=stored.method,
            plugs=stored.plugs if self.plugs is None else self.plugs,
            options={**stored.options, **self.options},
            header=self.header or stored.header,
            words=stored.words if self.words is None else self.words,
            temperature=stored.temperature,
            backbone=self.backbone if self.backbone is not None else stored.backbone,
            pretrained=self.pretrained if named else stored.pretrained,
            impl=self.impl or stored.impl,
            checkpointing=stored.checkpointing if self.checkpointing is None else self.checkpointing,
            init=self.init or stored.init,
            stream=self.stream or stored.stream,
            recipe={**stored.recipe, **self.recipe},
            at_blocks=self.at_blocks or stored.at_blocks,
            tokens=stored.tokens if self.tokens is None else self.tokens,
        )

    def as_published(self, split: Split) -> Settings:
        """These settings, filled up with the published recipe where it is asked for. Raises UsageError where there is none."""
        if self.recipe.get("recipe", DEFAULT) not in NAMES:
            raise unknown("recipe", str(self.recipe["recipe"]), NAMES)
        if self.recipe.get("recipe") != PAPER:
            return self
        parts = ["cross-modal" if self.method is UNSET else str(self.method or "none")]
        parts += [plug if isinstance(plug, str) else plug[0] for plug in self.plugs or ()]
        attributes = split.cache.attributes
        found = published("+".join(parts), str(attributes.get("dataset")))
        frames = split.cache.shape[1]
        if frames != found.frames and "train_frames" not in self.recipe:
            raise UsageError(
                f"The published recipe has {found.frames} frames a video and {split.cache.path} holds {frames}; cache again with --frames "
                f"{found.frames} and another --out, or say how many a step takes with --train-frames (0: all)."
            )
        values = {"train_frames": 0, **found.values, **self.recipe}
        if "lr" in self.recipe and "backbone_lr" not in self.recipe and found.values.get("backbone_lr"):
            values["backbone_lr"] = found.values["backbone_lr"] * self.recipe["lr"] / found.values["lr"]  # in the published proportion
        return replace(
            self,
            options={**found.options, **self.options},
            words=found.words if self.words is None else self.words,
            backbone=found.backbone if self.backbone is None else self.backbone,
            recipe=values,
        )


def read_config(run: Path) -> dict[str, Any]:
    """The config.json of a run that can be gone on with. Raises RunError where there is none, or the run is finished."""
    if (run / METRICS).is_file():
        raise RunError(f"{run} is finished, so there is nothing to go on with; evaluate it with: xmafast eval {run}")
    if not run.exists():
        raise RunError(f"There is no run {run} to go on with; begin one with: xmafast train --out {run}")
    try:
        config = json.loads((run / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{run} holds no {CONFIG}, so no run was begun in it; begin one without --resume.") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{run / CONFIG} cannot be read ({error}); restore it, or begin anew without --resume.") from error
    if not isinstance(config, dict) or "cache_sha256" not in config:
        raise RunError(f"{run / CONFIG} is not of a run that can be resumed (an older version began it); begin anew without --resume.")
    return config


def settings_of_run(config: Mapping[str, Any], run: Path) -> Settings:
    """What config.json says. Raises RunError where it is no configuration."""
    try:
        return replace(
            _settings_of_model(config, [run / "last", run / "best"]),
            impl=config["impl"],
            checkpointing=config["checkpointing"],
            init=config["init"],
            stream=config.get("stream"),
            recipe=dict(config["recipe"]),
            tokens=config["token_cache"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{run / CONFIG} is damaged ({error}); restore it, or begin anew without --resume.") from error


def settings_of_adapter(run: str | Path) -> Settings:
    """The model of a run whose weights a new one begins with. Raises RunError where there is no such run."""
    folder = adapter_folder(run)
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        return replace(_settings_of_model(config, [folder]), init=str(Path(run).resolve()))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{folder / ADAPTER_CONFIG} is not an xmafast adapter configuration ({error}); name another run.") from error


def _settings_of_model(config: Mapping[str, Any], folders: Sequence[Path]) -> Settings:
    name, pretrained = config["backbone"]["name"], config["backbone"]["pretrained"]
    if name == OWN_BACKBONE:  # one that no name gives back lies beside the adapter
        name = next((str(folder / name) for folder in folders if (folder / name).is_dir()), name)
    return Settings(
        method=config["method"],
        plugs=[(str(plug), dict(options)) for plug, options in config["plugs"]],
        options=dict(config["options"]),
        header=config["header"],
        words=config["words"],
        temperature=config["temperature"],
        backbone=name,
        pretrained=pretrained,
        at_blocks=config.get("at_blocks"),
    )


def build(settings: Settings, split: Split) -> tuple[Retriever, Recipe]:
    """The model, on its device, and the recipe; what is still not said takes the cache's and the method's defaults.

    Call it after seeding torch. Raises UsageError, BackboneError.
    """
    attributes = split.cache.attributes
    backbone = settings.backbone
    if not isinstance(backbone, Backbone):
        named = backbone is not None and settings.pretrained is not None
        backbone = (
            load_backbone(cast(str, backbone), cast(str, settings.pretrained))
            if named
            else backbone_for(attributes, backbone, settings.pretrained)
        )
    options = {"frames": split.cache.shape[1], **settings.options}  # positions are made for so many
    stream = StreamFile(settings.stream) if settings.stream else None
    known = {"datasets": ",".join(datasets_of(split.cache))} | ({"stream_width": stream.width} if stream else {})
    if settings.temperature is not None:
        options["temperature"] = settings.temperature
    method = "cross-modal" if settings.method is UNSET else settings.method
    options = _filled(method, options, known)
    plugs = [(plug, {}) if isinstance(plug, str) else plug for plug in settings.plugs or ()]
    retriever = Retriever(
        backbone,
        method,
        settings.header,
        plugs=[(name, _filled(name, given, known)) for name, given in plugs],
        words=32 if settings.words is None else settings.words,
        impl=settings.impl or "auto",
        at_blocks=settings.at_blocks or ALL,
        **options,
    ).to(best_device())
    if not retriever.kept:
        raise UsageError("There is nothing to train: without a method, name a header that trains (--header seqTransf).")
    check_stream(retriever, stream, split)
    retriever.stream = stream
    recipe = recipe_for(attributes, retriever, settings.recipe)
    retriever.patch_drop = recipe.patch_drop
    if settings.checkpointing:
        check_checkpointing(retriever)
    return retriever, recipe


def _filled(method: str | None, options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a method, with what the data says of those that it has and was not given."""
    has = METHODS[method].known_options() if method in METHODS else {}
    return {**{name: value for name, value in known.items() if name in has}, **options}


def check_stream(retriever: Retriever, stream: StreamFile | None, split: Split) -> None:
    """Raise UsageError where a method that reads another stream has none, or the other way round."""
    if retriever.reads_stream and stream is None:
        raise UsageError("What is trained reads another stream of the videos; name the file of its features with --stream FILE.")
    if stream is None:
        return
    if not retriever.reads_stream:
        raise UsageError(f"Nothing here reads {stream.path}; --stream goes with --plug stream.")
    if not any(split.cache.ids[row] in stream for row in split.rows):
        example = split.cache.ids[split.rows[0]]
        raise UsageError(f"{stream.path} has no video of the training set by its id, as {example!r}; name them as the cache does.")


def check_checkpointing(retriever: Retriever) -> None:
    """Raise UsageError where blocks cannot be run again in the backward pass, or none is run."""
    if retriever.on_features:
        raise UsageError("--checkpointing has nothing to save: what is trained here reads the frozen model's embeddings.")
    if retriever.method is not None and retriever.method.moves_tokens:
        raise UsageError(f"--checkpointing cannot be used with {retriever.method.name!r}, whose blocks depend on those run before them.")


def begin_with(retriever: Retriever, run: str | Path) -> None:
    """Take the weights of another run. Raises UsageError, RunError where they are not of this model."""
    if isinstance(retriever.method, Memory):
        raise UsageError("--init has nothing to give to a memory, which is fitted to its own training set.")
    folder = adapter_folder(run)
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if retriever.backbone.fingerprint != config["backbone"]["sha256"]:
        raise RunError(f"{run} was trained on other weights than the {retriever.backbone.name} at hand; name its backbone.")
    retriever.restore(folder / WEIGHTS)


def config_of(
    retriever: Retriever, recipe: Recipe, settings: Settings, caches: Sequence[Path], split: Split, tokens: bool = False
) -> dict[str, Any]:
    """What config.json holds: all that a run is made from, so that it can be resumed and read. tokens: trained from a token cache."""
    import torch

    return {
        "xmafast_version": __version__,
        "torch_version": torch.__version__,
        "cache": [str(cache.resolve()) for cache in caches] if len(caches) > 1 else str(caches[0].resolve()),
        "cache_sha256": split.fingerprint,
        "train_videos": len(split.rows),
        "validation_videos": len(split.val_rows),
        "validation": "the cache's val split" if split.val_cache is not split.cache else "cut from train",
        "recipe": asdict(recipe),
        "impl": retriever.impl,
        "checkpointing": bool(settings.checkpointing),
        "init": settings.init,
        **({"stream": settings.stream, "stream_sha256": retriever.stream.fingerprint} if retriever.stream is not None else {}),
        "token_cache": tokens,
        **retriever.config(),
    }


def check_same(run: Path, stored: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise UsageError unless a run that was begun with ``stored`` is the one that ``config`` describes."""
    new = json.loads(json.dumps(config))
    leave = "leave the option out to go on with it, or begin a new run with another --out."
    if stored["cache_sha256"] != new["cache_sha256"]:
        where = "has changed since" if stored["cache"] == new["cache"] else f"is another than {stored['cache']}, or has changed since"
        raise UsageError(f"{run} cannot be gone on with: the cache {new['cache']} {where}; begin a new run with another --out.")
    for name in ("backbone", "second"):
        was, now = stored.get(name) or {}, new.get(name) or {}
        if was.get("sha256") != now.get("sha256"):
            shown = [f"{it.get('name')} ({it.get('pretrained')}, sha256 {str(it.get('sha256'))[:12]}…)" for it in (was, now)]
            raise UsageError(f"{run} was begun on the weights of {shown[0]}, not {shown[1]}; {leave}")
    was, now = _flat(stored), _flat(new)
    for name in sorted(set(was) | set(now)):
        if was.get(name) != now.get(name):
            raise UsageError(f"{run} was begun with {name.replace('_', ' ')} {was.get(name)}, not {now.get(name)}; {leave}")


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is compared, the recipe's and the method's options by their own names."""
    found = {key: value for key, value in config.items() if key not in {*NOT_COMPARED, "recipe", "options", "backbone", "second"}}
    return {**found, **config["options"], **config["recipe"]}
