"""Backbones by name: the embedded one, open_clip's models, folders in its format; with weights, or without any, to count with."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from timm.models import is_model_in_modules
from torch import Tensor, nn

from xmafast.backbone import LOCAL_CONFIG, LOCAL_WEIGHTS, Backbone, Shape
from xmafast.errors import BackboneError, UsageError, unknown
from xmafast.hub import HubTokenizer, first_line, reachable

DEMO = Path(__file__).parent / "demo" / "backbone"


def own_backbone(name: str, model: dict[str, Any], weights: Mapping[str, Tensor]) -> Backbone:
    """A backbone of open_clip's configuration ``model`` with these weights, by open_clip's names: one that is saved with a run.

    Its pixels are normalised and its texts are tokenised as OpenAI's CLIP has it.
    """
    preprocess = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    clip = _build(model)
    clip.load_state_dict(weights)
    tokenizer = SimpleTokenizer(context_length=model["text_cfg"]["context_length"])
    return Backbone(name, "local", clip, tokenizer, preprocess, {"model_cfg": model, "preprocess_cfg": preprocess})


def load_backbone(name: str, pretrained: str = "openai") -> Backbone:
    """A frozen dual encoder.

    name: ``demo`` (the embedded one), an open_clip model whose image tower is a ViT, open_clip's own or timm's, and whose text tower
        is open_clip's, as ``ViT-B-32``, ``ViT-B/32`` or ``ViT-B-16-SigLIP``, or the path of a folder in open_clip's local format
        (``open_clip_config.json``, ``open_clip_model.safetensors``; CLIP's tokenizer, unless there is a ``bpe.txt.gz``).
    pretrained: an open_clip tag (downloaded once by open_clip), a local weights file, or ``none`` for random weights from a
        fixed seed. ``demo`` and a folder bring their own weights, whatever tag is named. A tag's activation (QuickGELU or GELU) is
        set from the tag; a file cannot say, so name the model: ``ViT-B-32-quickgelu`` for OpenAI's weights.

    Raises UsageError for an unknown name or tag, BackboneError for weights that cannot be had or do not fit.
    """
    if (folder := _local(name)) is not None:
        return _load_local("demo" if folder == DEMO else str(folder.resolve()), folder, pretrained)

    config = _config(name)
    name = name.replace("/", "-")
    preprocess = _preprocess(name)
    if pretrained == "none" or Path(pretrained).is_file():
        clip = _load_file(_build(config), pretrained, name)
    else:
        tags = open_clip.list_pretrained_tags_by_model(name)
        tag = open_clip.get_pretrained_cfg(name, pretrained)
        if not tag:
            if {"/", "\\", "."} & set(pretrained):
                raise BackboneError(f"There is no weights file {pretrained}.")
            raise unknown(f"weights tag for {name}", pretrained, [*tags, "none"])
        preprocess |= {key: tag[key] for key in ("mean", "std") if tag.get(key)}
        clip = _download(name, pretrained, tag)
    return Backbone(name, pretrained, clip, _tokenizer(name, config, pretrained), preprocess)


def backbone_for(attributes: Mapping[str, Any], name: str | None = None, pretrained: str | None = None) -> Backbone:
    """The backbone that was named, or the default of a cache with these attributes; weights that were not named follow the name."""
    default = str(attributes["default_backbone"])
    name = name or default
    return load_backbone(name, pretrained or (str(attributes["default_pretrained"]) if name == default else "openai"))


def meta_backbone(name: str) -> Backbone:
    """A backbone without weights and without memory, to count with. Its tokenizer gives ids of no word."""
    config = _config(name)

    def tokenizer(texts: Sequence[str], context_length: int) -> Tensor:
        return torch.zeros(len(texts), context_length, dtype=torch.long)

    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    with torch.device("meta"):
        return Backbone(name, "none", _class_of(config)(**_arguments(config)), tokenizer, preprocess)


def backbone_shape(name: str) -> Shape:
    """The widths and depths of a backbone; builds it without memory and loads no weights."""
    return meta_backbone(name).shape


def _config(name: str) -> dict[str, Any]:
    """open_clip's configuration of a model that xmafast can take, or the reason why it cannot."""
    if (folder := _local(name)) is not None:
        own: dict[str, Any] = _local_config(folder)["model_cfg"]
        return own
    config: dict[str, Any] | None = open_clip.get_model_config(name.replace("/", "-"))
    if config is None and Path(name).is_dir():
        raise BackboneError(f"The folder {name} holds no {LOCAL_CONFIG}; name a folder that does, or a model, as ViT-B-32.")
    if config is None:
        raise unknown("backbone", name, ["demo", *usable_backbones()])
    if reason := _why_not(config):
        raise UsageError(
            f"Backbone {name!r} cannot be used: {reason}. "
            "Use a model with a ViT image tower and open_clip's own text tower, as ViT-B-32 or ViT-B-16-SigLIP."
        )
    return config


def _local(name: str) -> Path | None:
    """The folder in open_clip's local format that a name stands for, the embedded one's or a path; None for a model's name."""
    if name == "demo":
        return DEMO
    return Path(name) if (Path(name) / LOCAL_CONFIG).is_file() else None


def _local_config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / LOCAL_CONFIG).read_text(encoding="utf-8"))
        reason = _why_not(config["model_cfg"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackboneError(f"{folder / LOCAL_CONFIG} does not describe an open_clip model ({first_line(error)}); restore it.") from error
    if reason:
        raise UsageError(f"The backbone in {folder} cannot be used: {reason}. Use a model with open_clip's own ViT and text blocks.")
    return config


def _load_local(name: str, folder: Path, pretrained: str) -> Backbone:
    """The backbone of a folder with its own weights, unless a file or ``none`` is asked for."""
    if pretrained != "none" and not Path(pretrained).is_file():
        pretrained = "demo" if folder == DEMO else "local"
    config = _local_config(folder)
    try:
        clip = _build(config["model_cfg"])
        context = config["model_cfg"]["text_cfg"].get("context_length", 77)
        preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD} | config.get("preprocess_cfg", {})
    except Exception as error:  # open_clip raises whatever its layers do
        raise BackboneError(f"{folder / LOCAL_CONFIG} does not describe an open_clip model ({first_line(error)}); restore it.") from error
    clip = _load_file(clip, str(folder / LOCAL_WEIGHTS) if pretrained in ("demo", "local") else pretrained, name)
    bpe = folder / "bpe.txt.gz"
    tokenizer = SimpleTokenizer(bpe_path=str(bpe), context_length=context) if bpe.is_file() else SimpleTokenizer(context_length=context)
    return Backbone(name, pretrained, clip, tokenizer, preprocess)


def usable_backbones() -> list[str]:
    """The open_clip models that ``load_backbone`` takes."""
    return [name for name in open_clip.list_models() if not _why_not(open_clip.get_model_config(name))]


# what a timm image tower that is no plain ViT is, by how its name begins
_OTHER_TOWERS = {
    "convnext": "a ConvNeXt",
    "swin": "a Swin Transformer",
    "vitamin": "a ViTamin, half of it convolutions",
    "fastvit": "a FastViT, most of it convolutions",
    "vit_relpos": "a ViT with relative positions inside its attention",
    "vit_base_mci": "a ViT whose patches come from a stack of convolutions",
}


def _why_not(config: dict[str, Any]) -> str | None:
    """Why a model of open_clip cannot be a backbone here; None where it can."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    tower = vision.get("timm_model_name")
    reason = None
    if tower and not is_model_in_modules(tower, ("vision_transformer", "eva")):
        kind = next((kind for start, kind in _OTHER_TOWERS.items() if tower.startswith(start)), "no plain ViT")
        reason = f"its image tower is timm's {tower}, {kind}"
    elif not tower and not isinstance(vision.get("layers"), int):
        reason = "its image tower is a ResNet"
    elif text.get("hf_model_name"):
        reason = f"its text tower is {text['hf_model_name']}, which is not open_clip's own"
    elif "multimodal_cfg" in config or vision.get("attentional_pool") or text.get("embed_cls"):
        reason = "it is a captioning model"
    return reason


def _preprocess(name: str) -> dict[str, Any]:
    """Mean and standard deviation of the model's first tag, which all its tags share but for a few; OpenAI's where it has none."""
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    for tag in open_clip.list_pretrained_tags_by_model(name)[:1]:
        found = open_clip.get_pretrained_cfg(name, tag)
        preprocess |= {key: found[key] for key in preprocess if found.get(key)}
    return preprocess


def _tokenizer(name: str, config: dict[str, Any], pretrained: str) -> Callable[..., Tensor]:
    """The model's tokenizer; one from the hub is loaded when it is needed, or comes with a local weights file."""
    source = config["text_cfg"].get("hf_tokenizer_name")
    if not source:
        found: Callable[..., Tensor] = open_clip.get_tokenizer(name)
        return found
    folder = Path(pretrained).parent
    beside = Path(pretrained).is_file() and (folder / "open_clip_config.json").is_file()
    return HubTokenizer(name, source, folder if beside else None)


def _class_of(config: dict[str, Any]) -> type[nn.Module]:
    kind: type[nn.Module] = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    return kind


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "custom_text"}


def _build(config: dict[str, Any]) -> nn.Module:
    """The model with random weights from a fixed seed, so that two machines agree on ``none``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _class_of(config)(**_arguments(config))


def _download(name: str, pretrained: str, tag: dict[str, Any]) -> nn.Module:
    """A model with the weights of an open_clip tag, from open_clip's own store or from the network."""
    logging.disable(logging.CRITICAL)  # a failure becomes one sentence, not the log of its retries
    try:
        if tag.get("hf_hub") and not reachable(tag["hf_hub"]):
            raise ConnectionError("the model hub cannot be reached")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: nn.Module = open_clip.create_model(name, pretrained, force_quick_gelu=bool(tag.get("quick_gelu")))
            return model
    except Exception as error:
        raise BackboneError(
            f"The weights {pretrained!r} of {name} are not on this machine and could not be downloaded: {first_line(error)}. "
            "Give a local file with --pretrained FILE, or use --backbone demo, which needs no download."
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def _load_file(clip: nn.Module, path: str, name: str) -> nn.Module:
    if path == "none":
        return clip
    try:
        open_clip.load_checkpoint(clip, path)
    except Exception as error:
        raise BackboneError(f"{path} does not hold the weights of {name}: {first_line(error)}.") from error
    return clip


def backbone_input(name: str) -> int:
    """The side of a backbone's square input, in pixels."""
    size = _config(name)["vision_cfg"].get("image_size", 224)
    return int(size if isinstance(size, int) else size[0])
