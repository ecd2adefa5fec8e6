"""A frozen dual encoder from open_clip, with named places where methods plug in."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from open_clip.transformer import text_global_pool
from safetensors.torch import save_file
from torch import Tensor, nn

from xmafast.blocks import Places, causal_mask, run_blocks
from xmafast.errors import UsageError
from xmafast.files import write_atomically
from xmafast.kernels import patches
from xmafast.kernels.dispatch import use_triton
from xmafast.towers import ClipTower, Tower, tower_of

LOCAL_CONFIG, LOCAL_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"  # a folder in open_clip's local format
PlacesOf = Callable[[int], Places]


@dataclass(frozen=True)
class Shape:
    """What a method may know of a backbone: widths, depths, how many parameters are frozen, and their names and shapes."""

    vision_width: int
    vision_depth: int
    text_width: int
    text_depth: int
    embed_dim: int
    parameters: int
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    context_length: int = 77  # positions of the text encoder
    prefix: int = 1  # tokens that stand before an image's patches: class token and registers
    start: int = 1  # tokens that stand before a caption's words: the start of text, where the vocabulary has one
    rotary: bool = False  # an image's patches have rotary positions, which each attention needs in their places
    causal: bool = True  # each token of a caption sees those before it alone; else every caption is padded to the context length


class Backbone(nn.Module):
    """A frozen, pretrained dual encoder in eval mode.

    Attributes: ``name`` and ``pretrained`` (how it was asked for), ``shape``, ``image_size`` (pixels), ``context_length``
    (tokens), ``logit_scale`` (the frozen temperature exp(s), a float), ``clip`` (open_clip's model, untouched), ``config``
    (open_clip's description of one that no name and no folder gives back; what is trained on it is saved with it).
    """

    clip: Any  # open_clip ships no types
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        pretrained: str,
        clip: Any,
        tokenizer: Callable[..., Tensor],
        preprocess: dict[str, Any],
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.pretrained, self.config = name, pretrained, config
        self.clip = clip.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.shape = _shape_of(clip)
        self.image_size = int(clip.visual.image_size[0])
        self.context_length = int(self.text.context_length)
        self.logit_scale = math.nan if clip.logit_scale.is_meta else float(clip.logit_scale.exp().clamp(max=100))
        self.register_buffer("mean", torch.tensor(preprocess["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess["std"]).view(1, 3, 1, 1), persistent=False)
        self.eval()

    @property
    def text(self) -> Any:
        """open_clip's text encoder. Not an attribute: a module known by two names is not put back by ``functional_call``."""
        return self.clip.text if hasattr(self.clip, "text") else self.clip

    @property
    def tower(self) -> Tower:
        """The image encoder's parts; made anew for the same reason."""
        return tower_of(self.clip.visual)

    def train(self, mode: bool = True) -> Backbone:
        """A frozen backbone stays in eval mode, whatever the model around it does."""
        return super().train(False)

    def forward(self, call: str, *arguments: Any, **options: Any) -> Tensor:
        """``encode_frames`` or another of its methods, by name: the way for ``torch.func.functional_call`` with trained weights."""
        result: Tensor = getattr(self, call)(*arguments, **options)
        return result

    def encode_image(self, images: Tensor, places: PlacesOf | None = None) -> Tensor:
        """Normalised images (B, 3, H, W) -> un-normalised embeddings (B, D).

        Without ``places`` equal to open_clip's ``encode_image`` to the bit.
        """
        return self._encode_tokens(self.tower.embed(images), places)

    def encode_frames(self, frames: Tensor, places: PlacesOf | None = None, *, impl: str = "auto") -> Tensor:
        """Frames uint8 (B, H, W, 3) of any size -> un-normalised embeddings (B, D).

        Where the kernel runs, the tower is open_clip's own and the frames have the backbone's size, bytes become the first
        convolution's patches in one pass, and the convolution a product; else it is ``encode_image`` of ``normalise``.
        """
        return self._encode_tokens(self._embed(frames, impl), places)

    def encode_prefix(self, frames: Tensor, block: int, *, impl: str = "auto") -> Tensor:
        """Frames uint8 (B, H, W, 3) -> the tokens (B, T, W) that enter vision block ``block``, counted from 0."""
        return self.tower.run(self._embed(frames, impl), None, last=block)

    def encode_suffix(self, tokens: Tensor, block: int, places: PlacesOf | None = None) -> Tensor:
        """Tokens (B, T, W) that enter vision block ``block`` -> un-normalised embeddings (B, D).

        ``places(i)`` counts blocks from the first of the whole tower. With ``encode_prefix`` before it, equal to ``encode_frames``.
        """
        return self._encode_tokens(tokens, places, block)

    def as_tokens(self, stored: Tensor) -> Tensor:
        """Stored tokens in the type that they have between blocks: open_clip's own tower keeps autocast's there, timm's its weights'."""
        kind = stored.device.type
        if isinstance(self.tower, ClipTower) and torch.is_autocast_enabled(kind):
            return stored.to(torch.get_autocast_dtype(kind))
        return stored.to(self.mean.dtype)

    def feature_shape(self, level: str) -> tuple[int, ...]:
        """Of an image's ``tokens`` at a block, (T, W), or its ``embeddings``, (D,)."""
        return (self.shape.embed_dim,) if level == "embeddings" else (self.tower.tokens, self.shape.vision_width)

    def _embed(self, frames: Tensor, impl: str) -> Tensor:
        """Frames uint8 (B, H, W, 3) -> the tokens that enter the first block."""
        tower, size = self.tower, (self.image_size, self.image_size)
        if not isinstance(tower, ClipTower) or frames.shape[1:3] != size or not use_triton(impl, frames):
            return tower.embed(self.normalise(frames))
        kind, weight = frames.device.type, tower.visual.conv1.weight
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        return tower.embed_patches(patches(frames, tower.visual.patch_size[0], self.mean, self.std, dtype=dtype, impl=impl))

    def _encode_tokens(self, x: Tensor, places: PlacesOf | None, first: int = 0) -> Tensor:
        tower = self.tower
        return tower.head(tower.run(x, places, first))

    def encode_text(self, tokens: Tensor, places: PlacesOf | None = None) -> Tensor:
        """Token ids (B, W) -> un-normalised embeddings (B, D). W is at most the context length; equal to it where the encoder is not
        causal (``shape.causal``), as its words see the padding.

        Without ``places``, and with W the full context length, equal to open_clip's ``encode_text`` to the bit.
        """
        return self.encode_text_suffix(self.encode_text_prefix(tokens, 0), tokens, 0, places)

    def encode_text_prefix(self, tokens: Tensor, block: int) -> Tensor:
        """Token ids (B, W), as ``encode_text`` takes them -> the tokens (B, W, D) that enter text block ``block``, counted from 0."""
        text, length = self.text, tokens.shape[1]
        if length > self.context_length:
            raise UsageError(f"{length} tokens do not fit the {self.context_length} of {self.name}; use fewer words.")
        if length < self.context_length and not self.shape.causal:
            raise UsageError(f"{self.name} reads captions padded to {self.context_length} tokens, not {length}; do not cut the padding.")
        dtype = text.transformer.get_cast_dtype()
        x = text.token_embedding(tokens).to(dtype) + text.positional_embedding[:length].to(dtype)
        return run_blocks(list(text.transformer.resblocks)[:block], x, causal_mask(text.attn_mask, length), None)

    def encode_text_suffix(self, x: Tensor, tokens: Tensor, block: int, places: PlacesOf | None = None) -> Tensor:
        """Tokens (B, W, D) that enter text block ``block``, and the ids (B, W) that they are of -> un-normalised embeddings (B, D).

        ``places(i)`` counts from the encoder's first block. With ``encode_text_prefix`` before it, equal to ``encode_text``.
        """
        text, mask = self.text, causal_mask(self.text.attn_mask, tokens.shape[1])
        above = places if places is None or not block else lambda i: places(block + i)
        pool, eos = _pooling(text)
        reads = self.text_ends(tokens) if pool in ("first", "last", "argmax", "eos") else None
        whole = x.shape[1]
        x = text.ln_final(run_blocks(list(text.transformer.resblocks)[block:], x, mask, above, reads))
        x = x.squeeze(1) if x.shape[1] < whole else text_global_pool(x, tokens, pool, eos_token_id=eos)
        if isinstance(text.text_projection, nn.Linear):
            x = text.text_projection(x)
        elif text.text_projection is not None:
            x = x @ text.text_projection
        return x

    def normalise(self, frames: Tensor) -> Tensor:
        """Frames uint8 (B, H, W, 3) -> normalised float images (B, 3, H, W); other sizes are resized to the backbone's."""
        x = frames.permute(0, 3, 1, 2).float().div_(255)
        if x.shape[-2:] != (self.image_size, self.image_size):
            x = nn.functional.interpolate(x, (self.image_size, self.image_size), mode="bicubic", antialias=True).clamp_(0, 1)
        return (x - self.mean) / self.std

    def tokenize(self, texts: Sequence[str], words: int | None = None, *, inserted: int = 0) -> Tensor:
        """Captions -> token ids (N, words), cut to the context length; a longer caption keeps its end-of-text token.

        inserted: how many tokens a method adds, for which room is left. Where the text encoder is not causal, ids always fill the
        context length. Raises BackboneError where the tokenizer's files have to be downloaded and cannot be, UsageError where the
        tokenizer knows more tokens than the backbone.
        """
        room = self.context_length - inserted
        tokens = self.tokenizer(list(texts), context_length=min(words or room, room) if self.shape.causal else room)
        vocabulary = self.text.token_embedding.num_embeddings
        if tokens.numel() and int(tokens.max()) >= vocabulary:
            raise UsageError(f"{self.name} knows {vocabulary} tokens, fewer than its tokenizer makes; give token ids in place of texts.")
        return tokens

    def text_ends(self, tokens: Tensor) -> Tensor:
        """Where the token stands that a text's embedding is read at, (B,), of token ids (B, W)."""
        pool, eos = _pooling(self.text)
        if pool == "first":
            return torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        if pool == "last":
            return torch.full((len(tokens),), tokens.shape[1] - 1, device=tokens.device)
        return (tokens == eos).int().argmax(dim=-1) if pool == "eos" else tokens.argmax(dim=-1)

    @property
    def text_positions(self) -> Tensor:
        """The positional embedding of the text encoder, (context length, W)."""
        positions: Tensor = self.text.positional_embedding
        return positions

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the weights: what an adapter or a cache made with this backbone is bound to."""
        digest = hashlib.sha256()
        for key, value in sorted(self.clip.state_dict().items()):
            digest.update(f"{key} {tuple(value.shape)}".encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write a backbone that has a ``config`` as a folder in open_clip's local format, which ``load_backbone`` takes."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.config, indent=2) + "\n"
        weights = {name: value.detach().cpu().contiguous() for name, value in self.clip.state_dict().items()}
        write_atomically(folder / LOCAL_WEIGHTS, lambda path: save_file(weights, path, metadata={"format": "pt"}))
        write_atomically(folder / LOCAL_CONFIG, lambda path: path.write_text(text, encoding="utf-8"))


def _shape_of(clip: Any) -> Shape:
    text, tower = clip.text if hasattr(clip, "text") else clip, tower_of(clip.visual)
    return Shape(
        vision_width=tower.width,
        vision_depth=len(tower.blocks),
        text_width=text.transformer.width,
        text_depth=len(text.transformer.resblocks),
        embed_dim=_embed_dim(text),
        parameters=sum(p.numel() for p in clip.parameters()),
        tensors={name: tuple(p.shape) for name, p in clip.named_parameters()},
        context_length=int(text.context_length),
        prefix=tower.prefix,
        start=_start_tokens(text),
        causal=text.attn_mask is not None,
        rotary=tower.rotary,
    )


def _pooling(text: Any) -> tuple[str, int]:
    """How a text encoder pools, and its end-of-text token, whichever of open_clip's two classes holds it."""
    pool = text.text_pool_type if hasattr(text, "text_pool_type") else text.pool_type
    return pool, text.text_eos_id if hasattr(text, "text_eos_id") else text.eos_id


def _start_tokens(text: Any) -> int:
    """0 where captions begin with their first word: SigLIP's, which pools the last position, and T5's, whose end of text is 1."""
    pool, eos = _pooling(text)
    return 0 if pool == "last" or (pool == "eos" and eos == 1) else 1


def _embed_dim(text: Any) -> int:
    projection = text.text_projection
    if projection is None:
        return int(text.transformer.width)
    return int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1])
