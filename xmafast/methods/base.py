"""The contract that every method keeps."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from xmafast.backbone import Shape
from xmafast.blocks import Places
from xmafast.errors import UsageError
from xmafast.methods.common.tuned import Tuned

if TYPE_CHECKING:
    from xmafast.retriever import Retriever


@dataclass
class Layout:
    """How the tokens of the batch stand in the block that runs; a method that moves them keeps it, and others read it.

    clips: sequences of a video, 0 as long as none has been moved; prefix: class tokens of each, tokens: of a frame at the start. size:
    (sequences, T), how many of a frame's tokens each stands for, 0 for padding. metric: what tokens are compared by.
    """

    clips: int = 0
    prefix: int = 0
    tokens: int = 0
    size: Tensor | None = None
    metric: Tensor | None = None


@dataclass(frozen=True)
class Context:
    """What a method may know of the batch that passes: how its B images group into videos, and which kernels are wanted.

    frames: F, the frames of each video (1 for single images and for text); mask: (B // F, F) bool, true where a frame is real.
    impl: auto, eager or triton, to be handed to ``xmafast.kernels``. positions: of text, its positional embedding (context length, W).
    ends: of text, where its embedding is read (B,). image_level: of text, that this pass is for the image-level terms of a loss.
    stream: of video, features of another stream (videos, S, W) and their mask (videos, S), where they were given. layout: see ``Layout``.
    """

    frames: int = 1
    mask: Tensor | None = None
    impl: str = "auto"
    positions: Tensor | None = None
    ends: Tensor | None = None
    image_level: bool = False
    stream: tuple[Tensor, Tensor] | None = None
    layout: Layout = field(default_factory=Layout)


@dataclass(frozen=True)
class Batch:
    """What a method's own loss terms may use: texts, frames and stream as they came, their embeddings, mask (N, F), groups (N,)."""

    retriever: Retriever
    texts: list[str]
    frames: Tensor
    mask: Tensor
    text: Tensor
    video: Tensor
    groups: Tensor
    stream: tuple[Tensor, Tensor] | None = None


class Method(nn.Module):
    """Trained parameters, and what they put at which places of the frozen blocks.

    A method is built from the backbone's ``Shape`` and nothing else, and its ``places`` may use the tensors of one item
    only, so that an item's embedding does not depend on the other items of its batch.
    """

    name: ClassVar[str]
    family: ClassVar[str]  # adapter, prompt, tuning
    adapts: ClassVar[str]  # where, in a few words
    paper: ClassVar[str]  # its citation
    licence: ClassVar[str]  # of the published code, none of which is here
    default_header: ClassVar[str]
    fixed_tokens: ClassVar[bool] = False  # it needs every token of a frame in its place
    needs_grid: ClassVar[bool] = False  # it needs every patch of an image, as a picture or frame by frame
    moves_tokens: ClassVar[bool] = False  # it merges or drops some
    rewrites_attention: ClassVar[bool] = False  # it gives tokens other results than the attention's own
    apart: ClassVar[str] = ""  # why it goes with no other method, as the rest of a sentence
    all_blocks: ClassVar[str] = (
        ""  # why it cannot act in the last blocks alone (``xmafast.methods.last_blocks``), as the rest of a sentence
    )
    scalable: ClassVar[bool] = True  # all that it does is additive, so that a patch coefficient can scale it
    reads_stream: ClassVar[bool] = False  # it reads features of another stream of the videos
    on_features: ClassVar[bool] = False  # it acts on final embeddings alone, and is trained on those of the frozen backbone
    default_lr: ClassVar[float]  # for AdamW with float32 masters, where the data set names none; the published rates do not carry over

    def __init__(self) -> None:
        super().__init__()
        self.tuned: Tuned | None = None  # copies of backbone weights that the method trains
        self.datasets: list[str] = []  # that it has something of its own for
        self.inserted = 0  # tokens that stand after the start of every text, for the method to replace

    @classmethod
    def known_options(cls) -> dict[str, Any]:
        """Names and defaults."""
        parameters = inspect.signature(cls.__init__).parameters
        return {name: p.default for name, p in parameters.items() if name not in ("self", "shape")}

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise UsageError for an option that the method does not have, or a value of another type than its default."""
        known = cls.known_options()
        for option, value in options.items():
            if option not in known:
                has = f"it has: {', '.join(known)}" if known else "it has none"
                raise UsageError(f"Method {cls.name!r} has no option {option!r}; {has}.")
            wanted = type(known[option])
            if type(value) is not wanted and not (wanted is float and type(value) is int):
                raise UsageError(f"Option {option!r} of method {cls.name!r} is {wanted.__name__}, as {known[option]!r}, not {value!r}.")

    @classmethod
    def build(cls, shape: Shape, **options: Any) -> Method:
        cls.check_options(options)
        return cls(shape, **options)  # type: ignore[call-arg]  # each method's own __init__ takes the shape

    def options(self) -> dict[str, Any]:
        """What ``build`` needs, beside the shape, to make this method again."""
        raise NotImplementedError

    def vision_places(self, block: int, context: Context) -> Places:
        raise NotImplementedError

    def text_places(self, block: int, context: Context) -> Places:
        raise NotImplementedError

    def extra_loss(self, batch: Batch) -> Tensor | None:
        """Terms that training adds to the contrastive loss."""
        return None

    def route_to(self, dataset: str | None) -> None:
        """Let what was trained for that data set act, in a method that has something of its own for each."""

    def fold(self, own: Mapping[str, Tensor], patch: float = 1.0) -> dict[str, Tensor]:
        """Put what can be merged into the backbone's weights, and let it rest.

        own: the backbone's tensors. Returns those that change, by name; empty where nothing can be merged.
        """
        return {}

    def unfold(self) -> None:
        """Take up again what ``fold`` let rest."""

    def on_frames(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """What it makes of the encoder's frame embeddings (B, F, D), before the header; mask (B, F), true where a frame is real."""
        return frames

    def on_text(self, text: Tensor) -> Tensor:
        """What it makes of the encoder's text embeddings (N, D)."""
        return text

    @property
    def trainable(self) -> int:
        """The number of trained parameters; one shared by both encoders counts once."""
        return sum(p.numel() for p in self.parameters())


def at_least_one(name: str, value: int) -> None:
    """Raise UsageError for a size below 1; ``bottleneck`` is named as the command line's option."""
    if value < 1:
        raise UsageError(f"{'--' if name == 'bottleneck' else ''}{name} must be at least 1, not {value}.")


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def pair_blocks(vision_depth: int, text_depth: int) -> list[tuple[int, int]]:
    """Which (vision, text) blocks share: text block i of Lt with vision block (i + 1) Lv / Lt - 1, the last with the last."""
    n = min(vision_depth, text_depth)
    return [((i + 1) * vision_depth // n - 1, (i + 1) * text_depth // n - 1) for i in range(n)]
