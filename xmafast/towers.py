"""Image towers: open_clip's own ViT, and timm's (SigLIP, PE-Core, EVA-02).

A tower is a view of open_clip's module, made where it is used and not kept: a module that a ``Backbone`` knew by two names would
not be put back by ``torch.func.functional_call``. Its parts one after the other (``embed``, ``run`` without places, ``head``) give
what the module gives, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from xmafast.blocks import FAMILIES, Places, run_blocks
from xmafast.errors import BackboneError


class Tower:
    """Attributes: ``blocks``; ``width``; ``prefix``, the tokens before the patches; ``grid``, the patches' rows and columns."""

    blocks: list[nn.Module]
    width: int
    prefix: int
    grid: tuple[int, int]
    rotary = False
    reads: int | None = None  # the token that ``head`` reads, where it reads one alone

    @property
    def tokens(self) -> int:
        """Of an image, in every block."""
        return self.prefix + self.grid[0] * self.grid[1]

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> the tokens (B, T, W) that enter block 0."""
        raise NotImplementedError

    def run(self, x: Tensor, places: Callable[[int], Places] | None, first: int = 0, last: int | None = None) -> Tensor:
        """Blocks ``first`` up to ``last``, not included; ``places(i)`` counts from the first of the whole tower.

        In training it may be the token alone that ``head`` reads, (B, 1, W) (``run_blocks``).
        """
        reads = self.reads if last is None else None
        return run_blocks(self.blocks[first:last], x, self._rope(), places and (lambda i: places(first + i)), reads)

    def head(self, x: Tensor) -> Tensor:
        """Tokens that leave the last block -> embeddings (B, D)."""
        raise NotImplementedError

    def _rope(self) -> Tensor | None:
        return None


class ClipTower(Tower):
    """open_clip's own ViT."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.blocks, self.width = list(visual.transformer.resblocks), visual.transformer.width
        self.prefix, self.grid = 1, visual.grid_size
        self.reads = 0 if visual.attn_pool is None and visual.pool_type == "tok" else None

    def embed(self, images: Tensor) -> Tensor:
        x: Tensor = self.visual._embeds(images)
        return x

    def embed_patches(self, patches: Tensor) -> Tensor:
        """Patches (B, P, 3 p p), flat as the convolution's weights are -> the tokens that enter block 0."""
        visual = self.visual
        x = nn.functional.linear(patches, visual.conv1.weight.flatten(1))
        # from here on what open_clip's _embeds does after its convolution
        first = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1) + visual.positional_embedding.to(x.dtype)
        tokens: Tensor = visual.ln_pre(visual.patch_dropout(x))
        return tokens

    def head(self, x: Tensor) -> Tensor:
        pooled, _ = self.visual._pool(x)
        embedding: Tensor = pooled if self.visual.proj is None else pooled @ self.visual.proj
        return embedding


class TimmTower(Tower):
    """timm's VisionTransformer or Eva inside open_clip's TimmModel."""

    def __init__(self, visual: Any) -> None:
        self.visual, self.trunk = visual, visual.trunk
        self.blocks, self.width = list(self.trunk.blocks), self.trunk.embed_dim
        self.prefix, self.grid = self.trunk.num_prefix_tokens, self.trunk.patch_embed.grid_size
        self.rotary = getattr(self.trunk, "rope", None) is not None

    def embed(self, images: Tensor) -> Tensor:
        x = self.trunk._pos_embed(self.trunk.patch_embed(images))
        # Eva's has beside the tokens the rotary positions, which _rope makes for whatever block comes first
        x = x[0] if isinstance(self.trunk, Eva) else self.trunk.patch_drop(x)
        tokens: Tensor = self.trunk.norm_pre(x)
        return tokens

    def head(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.visual.head(self.trunk.forward_head(self.trunk.norm(x)))
        return embedding

    def _rope(self) -> Tensor | None:
        """As Eva's _pos_embed makes them."""
        rope = getattr(self.trunk, "rope", None)
        if rope is None:
            return None
        known = hasattr(rope, "feat_shape") and not self.trunk.dynamic_img_size
        positions: Tensor = rope.get_embed() if known else rope.get_embed(shape=self.grid)
        return positions


def tower_of(visual: Any) -> Tower:
    """The tower that open_clip's image module is. Raises BackboneError for a module of another kind."""
    if isinstance(visual, VisionTransformer):
        return ClipTower(visual)
    trunk = getattr(visual, "trunk", visual)
    known = isinstance(visual, TimmModel) and type(trunk) in (TimmVisionTransformer, Eva)
    if not known or getattr(trunk, "rope_mixed", False) or any(type(block) not in FAMILIES for block in trunk.blocks):
        raise BackboneError(f"The image tower {type(trunk).__name__} has blocks that xmafast does not know; use a plain ViT or EVA.")
    return TimmTower(visual)
