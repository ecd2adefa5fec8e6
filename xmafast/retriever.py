"""Backbone + method + similarity header: the model, and the folder that holds what was trained of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from xmafast import __version__
from xmafast.backbone import LOCAL_CONFIG, Backbone
from xmafast.cache.stream import StreamFile
from xmafast.errors import BackboneError, RunError, UsageError, unknown
from xmafast.files import write_atomically
from xmafast.headers import POOLING, SeqTransf
from xmafast.kernels import similarity
from xmafast.kernels.dispatch import IMPLEMENTATIONS
from xmafast.methods import METHODS, Method, Plug, build_method
from xmafast.methods.base import Context
from xmafast.methods.combined import Combined
from xmafast.methods.last_blocks import ALL, above, adapted, check_blocks
from xmafast.methods.patch_coefficient import patched
from xmafast.methods.patch_dropping import check_dropping, dropping
from xmafast.methods.routed import Routed
from xmafast.pretrained import load_backbone

if TYPE_CHECKING:
    from xmafast.text_prefix import TextPrefix

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
OWN_BACKBONE = "./backbone"  # in a run's folder, where no name gives its backbone back


class Retriever(nn.Module):
    """A frozen backbone with a method in its places and a header over its embeddings.

    method: a name of ``xmafast.METHODS`` with its ``options`` (as ``bottleneck=8, shared=16``), or None for the frozen
        model alone. plugs: methods that act beside it, as ``["tempme", ("disco", {"vision_blocks": 2})]``. A method of two backbones takes
        ``second``, the other one in memory or its name.
    header: ``mean``, ``text-conditioned`` or ``seqTransf`` (``xmafast.headers``); None takes the method's own, ``text-conditioned``
        without one.
    words: the most tokens of a caption, the published recipes' 32; the attribute is the context length where that is shorter, and
        where the text encoder is not causal (SigLIP), as it reads every caption padded to that length.
    frames: the most frames of a video, for methods that are built for a number of them; None leaves it to them.
    temperature: the header's, on un-normalised embeddings.
    impl: which kernels run, ``auto``, ``eager`` or ``triton`` (``xmafast.kernels``); an attribute, free to change.
    at_blocks: where the method acts, ``all``, or ``last:K``: in the last K vision blocks and the text blocks that pair with them
        (``xmafast.methods.last_blocks``).

    Raises UsageError for an unknown method, option, header or impl.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: str | None = "cross-modal",
        header: str | None = None,
        *,
        plugs: Sequence[Plug] = (),
        words: int = 32,
        frames: int | None = None,
        temperature: float = 5.0,
        impl: str = "auto",
        at_blocks: str = ALL,
        **options: Any,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.words = min(words, backbone.context_length) if backbone.shape.causal else backbone.context_length
        known = {"words": self.words} | ({"frames": frames} if frames else {})
        if method is None and plugs:  # the first of them is the base
            method, given = (plugs[0], {}) if isinstance(plugs[0], str) else plugs[0]
            plugs, options = plugs[1:], {**given, **options}
        self.second: Backbone | None = None  # of a method that fuses two: its embeddings stand after those of the first
        if method in METHODS and "second" in METHODS[method].known_options():
            self.second, options = _second_backbone(METHODS[method], options)
        self.adapted = adapted(at_blocks, backbone.shape)  # which blocks the method acts on
        self.at_blocks = at_blocks if self.adapted else ALL
        self.method: Method | None = None
        if method is not None:
            shape = self.adapted.shape(backbone.shape)
            try:
                self.method = build_method(method, shape, plugs=plugs, known=known, **options)
            except UsageError as error:
                if not self.adapted:
                    raise
                build_method(method, backbone.shape, plugs=plugs, known=known, **options)  # raises where the blocks are not the reason
                left = (
                    f"--blocks {at_blocks} leaves it {shape.vision_depth} of the vision encoder and {shape.text_depth} of the text encoder"
                )
                raise UsageError(f"{str(error).removesuffix('.')}; {left}.") from error
        if self.adapted:
            check_blocks(self.method, at_blocks)
        if self.method is not None and self.method.tuned is not None:
            self.method.tuned.adopt(backbone.clip)
        self.header = header or (self.method.default_header if self.method else "text-conditioned")
        if self.header not in POOLING:
            raise unknown("header", self.header, POOLING)
        self.temporal: SeqTransf | None = None  # what the header trains
        if self.header == "seqTransf":
            self.temporal = SeqTransf(replace(backbone.shape, embed_dim=self.embed_dim))
            self.temporal.adopt(backbone.text)
        if impl not in IMPLEMENTATIONS:
            raise unknown("impl", impl, IMPLEMENTATIONS)
        self.impl = impl
        self.temperature = temperature
        self.enabled = True  # False switches off what is trained: the features are the frozen model's, to the bit
        self._patch, self._patch_drop = 1.0, 0.0
        self._dataset: str | None = None
        self.stream: StreamFile | None = None  # what a method that reads one reads, in training, evaluation and search
        self.text_prefix: TextPrefix | None = None  # captions up to the first block that is adapted, in training
        self._merged: dict[str, Tensor] | None = None

    @property
    def patch(self) -> float:
        """How much of what is trained acts, 0 to 1: 0 is the frozen model to the bit, 1 all of it (``xmafast.methods.patch_coefficient``).

        Setting it raises UsageError outside 0..1, and between them for methods that do more than add to features.
        """
        return self._patch

    @patch.setter
    def patch(self, share: float) -> None:
        if not 0 <= share <= 1:
            raise UsageError(f"A patch coefficient lies between 0 and 1, not at {share}.")
        if 0 < share < 1 and self.method is not None and not self.method.scalable:
            raise UsageError(f"{self.method.name!r} does more than add to features: its patch coefficient can only be 0 or 1.")
        if self._merged is not None:
            raise UsageError("The model is merged; call unmerge() before setting its patch coefficient.")
        self._patch = float(share)

    @property
    def patch_drop(self) -> float:
        """The share of each image's patches that is dropped in training (``xmafast.methods.patch_dropping``); 0 as published.

        Setting it raises UsageError outside 0..1, and where patches cannot be dropped.
        """
        return self._patch_drop

    @patch_drop.setter
    def patch_drop(self, share: float) -> None:
        check_dropping(share, self.backbone.shape, self.method)
        self._patch_drop = share

    @property
    def on(self) -> bool:
        """Whether what is trained acts at all."""
        return self.enabled and self.patch > 0

    @property
    def acting(self) -> Method | None:
        """The method, where it is switched on."""
        return self.method if self.on else None

    @property
    def reads_stream(self) -> bool:
        """Whether the method reads features of another stream of the videos."""
        return self.method is not None and self.method.reads_stream

    def read_stream(self, ids: Sequence[str]) -> tuple[Tensor, Tensor] | None:
        """What ``encode_frames`` takes as ``stream`` for the videos of these ids, from the file in ``stream``."""
        return self.stream.read(ids) if self.reads_stream and self.stream is not None else None

    @property
    def datasets(self) -> list[str]:
        """The data sets that the method has something of its own for; empty for nearly all methods."""
        return list(self.method.datasets) if self.method is not None else []

    @property
    def dataset(self) -> str | None:
        """Which of ``datasets`` acts; None is the mean of them, for data that was not trained on.

        Setting it raises UsageError for a name that is not among them.
        """
        return self._dataset

    @dataset.setter
    def dataset(self, name: str | None) -> None:
        if self._merged is not None:
            raise UsageError("The model is merged; call unmerge() before setting its data set.")
        if name is not None and name not in self.datasets:
            raise unknown("data set", name, self.datasets)
        if self.method is not None:
            self.method.route_to(name)
        self._dataset = name

    def take_dataset(self, name: str) -> None:
        """Let what was trained for that data set act, or the mean of all where it is another one."""
        self.dataset = name if name in self.datasets else None

    @torch.no_grad()
    def collapsed(self) -> Retriever:
        """A retriever like this one, whose routed updates are the plain ones of ``dataset``, on the same backbone.

        Raises UsageError where nothing is routed.
        """
        parts = _parts(self.method)
        if not any(isinstance(part, Routed) for part in parts):
            raise UsageError("There is nothing to collapse: the method has no inventory for several data sets.")
        made = [part.collapsed(self.adapted.shape(self.backbone.shape)) if isinstance(part, Routed) else part for part in parts]
        named = [(part.name, part.options()) for part in made]
        kept: dict[str, Any] = {"words": self.words, "temperature": self.temperature, "impl": self.impl, "at_blocks": self.at_blocks}
        plain = Retriever(self.backbone, named[0][0], self.header, plugs=named[1:], **kept, **named[0][1]).to(self.device)
        for own, part in zip(_parts(plain.method), made, strict=True):
            own.load_state_dict(part.state_dict())
        if plain.temporal is not None and self.temporal is not None:
            plain.temporal.load_state_dict(self.temporal.state_dict())
        plain.patch = self.patch
        return plain.train(self.training)

    @torch.no_grad()
    def merge(self) -> None:
        """Add low-rank updates to copies of the backbone's weights, so that they cost nothing when the model runs.

        The backbone itself is not touched, and ``unmerge`` brings back what was there, to the bit. Raises UsageError where nothing can be
        merged.
        """
        if self.method is None or self._merged is not None:
            raise UsageError("There is nothing to merge." if self.method is None else "The model is merged already.")
        own: dict[str, Tensor] = dict(self.backbone.clip.named_parameters())
        if self.method.tuned is not None:  # updates are added to what stands in for the backbone's own
            tuned = self.method.tuned.mapping().items()
            own |= {name.removeprefix("clip."): self._patched(name, value) for name, value in tuned}
        found = self.adapted.outside(self.method.fold(self.adapted.inside(own), self.patch))
        if not found:
            raise UsageError(f"{self.method.name!r} cannot be merged: it is no update of the backbone's weights.")
        self._merged = {f"clip.{name}": value.detach() for name, value in found.items()}

    def unmerge(self) -> None:
        """Undo ``merge``."""
        if self.method is not None:
            self.method.unfold()
        self._merged = None

    @property
    def pooling(self) -> str:
        """How frame embeddings pool into a score, as ``xmafast.kernels`` names it: ``mean`` or ``text-conditioned``."""
        return POOLING[self.header]

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, by the names of a run's file: the method's parameters, and the header's as ``header.NAME``."""
        own = dict(self.method.named_parameters()) if self.method else {}
        return own | {f"header.{name}": p for name, p in (self.temporal.named_parameters() if self.temporal else ())}

    @property
    def kept(self) -> dict[str, Tensor]:
        """What a run's file holds: what is trained, and what the method has found without training (its persistent buffers)."""
        buffers = dict(self.method.named_buffers()) if self.method else {}
        state = self.method.state_dict() if buffers and self.method else {}
        return {**self.trained, **{name: buffer for name, buffer in buffers.items() if name in state}}

    @property
    def on_features(self) -> bool:
        """Whether the backbone's embeddings are those of the frozen model, and all else is done to them."""
        return self.method is None or self.method.on_features

    @property
    def embed_dim(self) -> int:
        """D, the width of the embeddings."""
        return self.backbone.shape.embed_dim + (self.second.shape.embed_dim if self.second is not None else 0)

    @property
    def trainable(self) -> int:
        """The number of trained parameters."""
        return sum(p.numel() for p in self.trained.values())

    @property
    def device(self) -> torch.device:
        """Where its backbone lies, and with it all that it computes."""
        return self.backbone.mean.device

    def encode_frames(self, frames: Tensor, mask: Tensor | None = None, stream: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Frames of videos -> un-normalised frame embeddings (B, F, D).

        frames: uint8 (B, F, H, W, 3), resized to the backbone's input where they differ, normalised float (B, F, 3, H, W), or float
        (B, F, T, W), the tokens that enter the first vision block that is adapted, as a token cache holds them.
        mask: (B, F), true where a frame is real; None means all are. stream: features (B, S, W) and mask (B, S) of another stream of the
        same videos, for the method ``stream``; None means that no video has one. Raises UsageError for float frames where two backbones
        are to read them, each of which has its own size and scale, for a stream of another shape, and for tokens where no block is below.
        """
        b, f = frames.shape[:2]
        flat = frames.flatten(0, 1).to(self.device)
        given = None if stream is None else (stream[0].to(self.device), stream[1].bool().to(self.device))
        if given is not None and given[0].shape[:2] != (b, *given[1].shape[1:]):
            raise UsageError(
                f"A stream has features (B, S, W) and a mask (B, S) of the {b} videos, not {given[0].shape} and {given[1].shape}."
            )
        context = Context(f, None if mask is None else mask.bool().to(self.device), self.impl, stream=given)
        method, first = self.acting, self.adapted.first_vision
        places = None if method is None else above(first, lambda block: patched(method.vision_places(block, context), self.patch))
        if self.training and self.patch_drop:
            places = dropping(places, self.patch_drop, self.backbone.shape.prefix)
        if frames.ndim == 4:
            if not first or (self.training and self.patch_drop):
                raise UsageError("Tokens are taken where --blocks last:K leaves blocks below, and --patch-drop nothing out.")
            embeddings = self._backbone("encode_suffix", self.backbone.as_tokens(flat), first, places).view(b, f, -1)
        elif frames.dtype == torch.uint8:
            embeddings = self._backbone("encode_frames", flat, places, impl=self.impl).view(b, f, -1)
        else:
            embeddings = self._backbone("encode_image", flat, places).view(b, f, -1)
        if not self.on:
            return embeddings
        if self.second is not None:
            if frames.dtype != torch.uint8:
                raise UsageError(f"Two backbones normalise frames each in its own way; give uint8 frames to {self.second.name}.")
            own = self.second.encode_frames(flat, impl=self.impl).view(b, f, -1)
            embeddings = torch.cat([embeddings, own], dim=-1)
        return self.on_frames(embeddings, context.mask)

    def on_frames(self, embeddings: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the method and the header make of the encoder's frame embeddings (B, F, D), those of a second backbone beside them."""
        made = embeddings if self.method is None else self.method.on_frames(embeddings, mask)
        made = made if self.temporal is None else self.temporal(made, mask)
        return made if self.patch == 1 else embeddings + self.patch * (made - embeddings)

    def on_text(self, embeddings: Tensor) -> Tensor:
        """What the method makes of the encoder's text embeddings (N, D), those of a second backbone beside them."""
        made = embeddings if self.method is None else self.method.on_text(embeddings)
        return made if self.patch == 1 else embeddings + self.patch * (made - embeddings)

    def encode_text(self, texts: Sequence[str] | Tensor, *, image_level: bool = False) -> Tensor:
        """Captions, or their token ids (B, W) -> un-normalised embeddings (B, D). image_level: for a loss's image-level terms.

        Raises UsageError for token ids where two backbones are to read them, each of which has its own vocabulary.
        """
        method = self.acting
        texts = [texts] if isinstance(texts, str) else texts
        inserted = method.inserted if method else 0
        tokens = texts if isinstance(texts, Tensor) else self.backbone.tokenize(texts, self.words, inserted=inserted)
        if method is None:
            return self.backbone.encode_text(tokens.to(self.device))
        if inserted:  # of no word, and below every end of text, so that pooling finds the caption's own
            start = self.backbone.shape.start
            tokens = torch.cat([tokens[:, :start], tokens.new_zeros(len(tokens), inserted), tokens[:, start:]], dim=1)
        tokens = tokens.to(self.device)
        ends = self.backbone.text_ends(tokens)
        context = Context(impl=self.impl, positions=self.backbone.text_positions, ends=ends, image_level=image_level)
        first = self.adapted.first_text
        places = above(first, lambda block: patched(method.text_places(block, context), self.patch))
        known = None if self.text_prefix is None or not self.training or isinstance(texts, Tensor) else self.text_prefix.read(texts)
        if known is None:
            embeddings = self._backbone("encode_text", tokens, places)
        else:
            embeddings = self._backbone("encode_text_suffix", known.to(self.device), tokens, first, places)
        if self.second is not None:
            if isinstance(texts, Tensor):
                raise UsageError(f"Token ids are those of one vocabulary; give captions, which {self.second.name} reads too.")
            own = self.second.encode_text(self.second.tokenize(texts, self.words).to(self.device))
            embeddings = torch.cat([embeddings, own], dim=-1)
        return self.on_text(embeddings)

    @property
    def logit_scale(self) -> Tensor | float:
        """exp of CLIP's logit scale, at most 100: frozen, unless the method trains it."""
        tuned = self.acting.tuned if self.acting is not None else None
        if tuned is None or "logit_scale" not in tuned.names:
            return self.backbone.logit_scale
        return self._patched("clip.logit_scale", tuned["logit_scale"]).exp().clamp(max=100)

    def _patched(self, name: str, tuned: Tensor) -> Tensor:
        return tuned if self.patch == 1 else torch.lerp(self.backbone.get_parameter(name), tuned, self.patch)

    def _backbone(self, call: str, *arguments: Any, **options: Any) -> Tensor:
        """A call of the backbone, with the weights that the method trains in place of its own."""
        if self.acting is None or (self.acting.tuned is None and self._merged is None):
            result: Tensor = self.backbone(call, *arguments, **options)
            return result
        tuned = {} if self.acting.tuned is None else self.acting.tuned.mapping()
        tuned = {name: self._patched(name, value) for name, value in tuned.items()} | (self._merged or {})
        if not torch.is_grad_enabled():  # as the backbone's own weights are, so that PyTorch takes the same path through them
            tuned = {name: value.detach() for name, value in tuned.items()}
        result = functional_call(self.backbone, tuned, (call, *arguments), options)
        return result

    def similarity(self, text: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Cosines (N, M) of text embeddings (N, D) and frame embeddings (M, F, D) under the header; mask (M, F)."""
        mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device) if mask is None else mask.to(frames.device)
        return similarity(text, frames, mask, header=self.pooling, temperature=self.temperature, impl=self.impl)

    def forward(self, texts: Sequence[str] | Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Captions and frames -> cosines (N, M)."""
        return self.similarity(self.encode_text(texts), self.encode_frames(frames, mask), mask)

    def config(self) -> dict[str, Any]:
        """All that is needed, beside the trained tensors, to make this model again."""
        if not self.kept:
            raise RunError("A frozen backbone without a method or a trained header has nothing to save.")
        named = [(part.name, {key: value for key, value in part.options().items() if key != "words"}) for part in _parts(self.method)]
        return {
            "xmafast_version": __version__,
            "method": named[0][0] if named else None,
            "options": named[0][1] if named else {},
            "plugs": named[1:],
            "header": self.header,
            "temperature": self.temperature,
            "words": self.words,
            "at_blocks": self.at_blocks,
            "trainable": self.trainable,
            "backbone": _identity(self.backbone),
            **({} if self.second is None else {"second": _identity(self.second)}),
        }

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write what was trained or fitted, and how to load it, to ``folder`` (``adapter_model.safetensors``, ``adapter_config.json``).

        dtype: float32, the form that a run keeps and a training goes on from, or float16, half the file, to hand on: the Cross-Modal
        Adapter of MSR-VTT's setting takes 1.06 MB. It is computed with in float32 either way.
        The backbone is named, not written, unless it came with an imported adapter: then it goes to ``folder/backbone``.
        """
        folder = Path(folder)
        config = self.config()
        folder.mkdir(parents=True, exist_ok=True)
        if self.backbone.config is not None:
            self.backbone.save(folder / OWN_BACKBONE)
        elif Path(self.backbone.name) == (folder / OWN_BACKBONE).resolve():  # loaded from this very folder, which may be moved
            config["backbone"]["name"] = OWN_BACKBONE
        tensors = {key: stored_as(value.detach().cpu(), dtype).contiguous() for key, value in self.kept.items()}
        write_atomically(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
        write_atomically(folder / CONFIG, lambda path: path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8"))
        return folder

    @torch.no_grad()
    def restore(self, file: Path) -> None:
        """Take the trained tensors of a file that ``save`` wrote. Raises RunError where it is damaged or another method's."""
        try:
            tensors, own = load_file(file, device=str(self.device)), self.kept
            if wrong := sorted(set(tensors) ^ set(own)):
                state = "an unknown" if wrong[0] in tensors else "no"
                raise RunError(f"{file} has {state} tensor {wrong[0]!r}; train again or restore the file.")
            for name, parameter in own.items():
                if tensors[name].shape != parameter.shape:
                    shapes = f"{tuple(tensors[name].shape)}, not {tuple(parameter.shape)}"
                    raise RunError(f"{file}: the tensor {name!r} is {shapes}; train again or restore the file.")
                parameter.copy_(tensors[name])
        except (OSError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise RunError(f"{file} cannot be loaded ({reason}); train again or restore the file.") from error


def stored_as(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in the type of a file, where it is no count. Raises UsageError for what float16 cannot hold."""
    if dtype == value.dtype or not value.is_floating_point():
        return value
    found = value.to(dtype)
    if not torch.equal(found.isfinite(), value.isfinite()):
        raise UsageError(f"These weights reach {float(value.abs().max()):g}, which {dtype} cannot hold; save them in float32.")
    return found


def _parts(method: Method | None) -> list[Method]:
    """The methods that one is combined of, or itself."""
    if isinstance(method, Combined):
        return list(method.parts.values())  # type: ignore[arg-type]
    return [] if method is None else [method]


def _identity(backbone: Backbone) -> dict[str, str]:
    name = backbone.name if backbone.config is None else OWN_BACKBONE
    return {"name": name, "pretrained": backbone.pretrained, "sha256": backbone.fingerprint}


def _second_backbone(method: type[Method], options: Mapping[str, Any]) -> tuple[Backbone, dict[str, Any]]:
    """(the second backbone, the options with its names in them), where ``second`` is one in memory, a name, or the method's default."""
    known = method.known_options()
    second = options.get("second", known["second"])
    if not isinstance(second, Backbone):
        method.check_options(options)
        try:
            second = load_backbone(second, options.get("second_pretrained", known["second_pretrained"]))
        except BackboneError as error:
            choice = "--set second=NAME second_pretrained=FILE, or second=demo"
            raise BackboneError(f"{method.name} needs a second backbone, which is named with {choice}. {error}") from error
    return second, {**options, "second": second.name, "second_pretrained": second.pretrained}


def _check_weights(folder: Path, backbone: Backbone, wanted: dict[str, str]) -> None:
    """Raise RunError unless these are the weights of the training."""
    if backbone.fingerprint != wanted["sha256"]:
        raise RunError(
            f"{folder} was trained on other weights than the {backbone.name} ({backbone.pretrained}) at hand: "
            f"sha256 {wanted['sha256'][:12]}… and not {backbone.fingerprint[:12]}…."
        )


def best_device() -> torch.device:
    """The GPU where CUDA has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def adapter_folder(folder: str | Path) -> Path:
    """The folder that holds the adapter: ``folder`` itself, or a run's ``best/``. Raises RunError where there is none."""
    folder = Path(folder)
    for candidate in (folder, folder / "best"):
        if (candidate / CONFIG).is_file():
            return candidate
    state = "holds no" if folder.exists() else "does not exist, so there is no"
    raise RunError(f"{folder} {state} {CONFIG}; name the folder of a run that `xmafast train` wrote.")


def load(folder: str | Path, backbone: Backbone | None = None, second: Backbone | None = None) -> Retriever:
    """The retriever that ``Retriever.save`` or ``xmafast train`` wrote to ``folder`` (for a run, its best epoch).

    backbone: one that is already in memory, to share it between adapters; its weights must be those of the training. second: likewise,
        for a method of two backbones.
    Raises RunError for a folder that is no run, a damaged file, or a backbone with other weights.
    """
    folder = adapter_folder(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        wanted = config["backbone"]
        options, method = config["options"], config["method"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder / CONFIG} is not an xmafast adapter configuration ({error}); train again or restore the file.") from error
    if backbone is None:
        name = wanted["name"]
        if name == OWN_BACKBONE:
            name = str(folder / name)
            if not (Path(name) / LOCAL_CONFIG).is_file():
                raise RunError(f"{folder} holds no backbone/{LOCAL_CONFIG}, the backbone that it was saved with; restore the folder.")
        backbone = load_backbone(name, wanted["pretrained"])
    _check_weights(folder, backbone, wanted)
    if second is not None:
        options = {**options, "second": second}
    try:
        plugs = [(str(name), dict(given)) for name, given in config.get("plugs", ())]
        kept = {"words": config["words"], "temperature": config["temperature"], "at_blocks": config.get("at_blocks", ALL)}
        retriever = Retriever(backbone, method, config["header"], plugs=plugs, **kept, **options)
    except (KeyError, UsageError) as error:
        raise RunError(f"{folder / CONFIG} does not describe a method that this version knows: {error}") from error
    if retriever.second is not None:
        _check_weights(folder, retriever.second, config.get("second", {"sha256": ""}))
    retriever.restore(folder / WEIGHTS)
    return retriever.eval()
