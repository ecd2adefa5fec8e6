"""CLIP as the published repositories name its tensors: OpenAI's names, and MV-Adapter's, which has attention in parts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from open_clip.transformer import QuickGELU
from torch import Tensor

from xmafast.backbone import Backbone
from xmafast.errors import RunError, UsageError
from xmafast.methods.common.tuned import biases
from xmafast.official.tensors import Layout, Published
from xmafast.pretrained import own_backbone

ENCODERS = {"visual.": "vision width", "": "text width"}  # what a block's name begins with -> the size of its width
OUTSIDE: Layout = {
    "visual.class_embedding": ("vision width",),
    "visual.positional_embedding": ("image tokens", "vision width"),
    "visual.conv1.weight": ("vision width", 3, "patch size", "patch size"),
    **{f"visual.{norm}.{part}": ("vision width",) for norm in ("ln_pre", "ln_post") for part in ("weight", "bias")},
    "visual.proj": ("vision width", "embedding width"),
    "positional_embedding": ("context length", "text width"),
    "token_embedding.weight": ("vocabulary", "text width"),
    "ln_final.weight": ("text width",),
    "ln_final.bias": ("text width",),
    "text_projection": ("text width", "embedding width"),
    "logit_scale": (),
}
SPLIT_NORMS = {"ln_1": "attn.ln", "ln_2": "mlp.ln"}


def block_prefix(encoder: str, block: int) -> str:
    return f"{encoder}transformer.resblocks.{block}."


def block_layout(width: str, split: bool) -> Layout:
    """A block's tensors. split: as MV-Adapter's repository has them."""
    norms = SPLIT_NORMS.values() if split else SPLIT_NORMS
    parts = [f"attn.{part}_proj" for part in "qkv"]
    attention: Layout = (
        {f"{part}.weight": (width, width) for part in parts} | {f"{part}.bias": (width,) for part in parts}
        if split
        else {"attn.in_proj_weight": ((width, 3, 0), width), "attn.in_proj_bias": ((width, 3, 0),)}
    )
    return {
        **attention,
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        **{f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")},
        "mlp.c_fc.weight": ((width, 4, 0), width),
        "mlp.c_fc.bias": ((width, 4, 0),),
        "mlp.c_proj.weight": (width, (width, 4, 0)),
        "mlp.c_proj.bias": (width,),
    }


@dataclass(frozen=True)
class Clip:
    """A file's CLIP, read and checked but not built: ``widths`` and ``depths`` by the beginnings of the encoders' names.

    ``biases``: those that were trained beside the adapters of a named backbone, by open_clip's names; the file's own backbone has them.
    """

    widths: dict[str, int]
    depths: dict[str, int]
    context_length: int
    build: Callable[[], Backbone]
    biases: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tuned(self) -> dict[str, Tensor]:
        """The trained biases by the names of a method's ``tuned`` parameters."""
        return {f"tuned.{name.replace('.', '/')}": value for name, value in self.biases.items()}


def read_clip(published: Published, split: bool, named: Backbone | None) -> Clip:
    """named: the backbone to take; None is the file's own. Raises RunError for tensors that do not fit it."""
    return _own(published, split) if named is None else _named(published, split, named)


def _own(published: Published, split: bool) -> Clip:
    if not {"visual.conv1.weight", "visual.proj", "token_embedding.weight"} & set(published.tensors):
        raise RunError(
            f"The state dict has no tensor {published.full('visual.conv1.weight')!r} nor other weights of CLIP, only what was trained; "
            'name the backbone as well (backbone=load_backbone("ViT-B-16"), or --backbone ViT-B-16).'
        )
    depths = {encoder: _depth(published, encoder, split) for encoder in ENCODERS}
    layout = _layout(depths, split)
    sizes = published.sizes(layout)
    grid = math.isqrt(max(0, sizes["image tokens"] - 1))
    if grid < 1 or grid**2 + 1 != sizes["image tokens"]:
        raise published.misfit("visual.positional_embedding", "with one row more than a square of patches")
    weights = published.take(layout, sizes)
    heads = {width: max(1, sizes[width] // 64) for width in ENCODERS.values()}
    for width, count in heads.items():
        if sizes[width] < 1 or sizes[width] % count:
            raise RunError(f"The {width} of {sizes[width]} cannot be split into {count} heads, one for every 64 channels.")
    model = {
        "embed_dim": sizes["embedding width"],
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": grid * sizes["patch size"],
            "layers": depths["visual."],
            "width": sizes["vision width"],
            "head_width": sizes["vision width"] // heads["vision width"],
            "patch_size": sizes["patch size"],
        },
        "text_cfg": {
            "context_length": sizes["context length"],
            "vocab_size": sizes["vocabulary"],
            "width": sizes["text width"],
            "heads": heads["text width"],
            "layers": depths[""],
        },
    }
    weights = _as_open_clip(weights) if split else weights
    widths = {encoder: sizes[width] for encoder, width in ENCODERS.items()}
    return Clip(widths, depths, sizes["context length"], lambda: own_backbone("imported", model, weights))


def _named(published: Published, split: bool, named: Backbone) -> Clip:
    shape = named.shape
    for width, encoder in ((shape.vision_width, named.clip.visual), (shape.text_width, named.text)):
        block, heads = encoder.transformer.resblocks[0], max(1, width // 64)
        if not isinstance(block.mlp.gelu, QuickGELU) or block.attn.num_heads != heads:
            raise UsageError(
                f"{named.name} ({named.pretrained}) is not built as OpenAI's CLIP, with QuickGELU and here {heads} heads, "
                "which both repositories train on; name a model with OpenAI's weights, or its -quickgelu form."
            )
    widths = {"visual.": shape.vision_width, "": shape.text_width}
    depths = {"visual.": shape.vision_depth, "": shape.text_depth}
    layout = _layout(depths, split)
    own = {name.removeprefix("text."): value.cpu() for name, value in named.clip.state_dict().items()}
    known = _as_split(own) if split else own
    present = {name: tuple(known[name].shape) for name in layout if name in known and name in published.tensors}
    weights = published.take(present)
    for name, value in weights.items():
        if not name.endswith("bias") and not torch.equal(value.half(), known[name].half()):  # a file may have rounded it
            raise RunError(
                f"The tensor {published.full(name)!r} has other values than {named.name} ({named.pretrained}); "
                "name the backbone that was trained on, or none, to take the file's."
            )
    found = {name: value for name, value in weights.items() if name.endswith("bias")}
    if all(torch.equal(value.half(), known[name].half()) for name, value in found.items()):
        return Clip(widths, depths, named.context_length, lambda: named)
    for name in layout:
        if name.endswith("bias") and name not in found:
            raise RunError(f"The state dict has no tensor {published.full(name)!r}, though others of CLIP's biases; restore the file.")
    trained = _as_open_clip(found) if split else found
    tuned = {name: trained[name.removeprefix("text.")] for name in biases(shape.tensors)}
    return Clip(widths, depths, named.context_length, lambda: named, tuned)


def _layout(depths: dict[str, int], split: bool) -> Layout:
    blocks = {
        block_prefix(encoder, block) + name: axes
        for encoder, width in ENCODERS.items()
        for block in range(depths[encoder])
        for name, axes in block_layout(width, split).items()
    }
    return {**OUTSIDE, **blocks}


def _depth(published: Published, encoder: str, split: bool) -> int:
    """How many blocks an encoder has: up to the last that has most of its tensors, so that one that is missing is missed."""
    names = block_layout("", split)
    beginning = f"{encoder}transformer.resblocks."
    found: Counter[int] = Counter()
    for name in published.tensors:
        block, _, rest = name.removeprefix(beginning).partition(".")
        if name.startswith(beginning) and block.isdecimal() and rest in names:
            found[int(block)] += 1
    whole = [block for block, count in found.items() if 2 * count > len(names)]
    if not whole:
        first = published.full(f"{beginning}0.{next(iter(names))}")
        raise RunError(f"The state dict has no tensor {first!r}, nor a whole block of that encoder; restore the file.")
    return max(whole) + 1


def _as_open_clip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """MV-Adapter's names -> open_clip's, which are OpenAI's."""
    renamed = {}
    for name, value in weights.items():
        for ours, theirs in SPLIT_NORMS.items():
            name = name.replace(f".{theirs}.", f".{ours}.")
        if ".attn.q_proj." in name:
            parts = [weights[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            renamed[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
        elif ".attn.k_proj." not in name and ".attn.v_proj." not in name:
            renamed[name] = value
    return renamed


def _as_split(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names -> MV-Adapter's."""
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        for ours, theirs in SPLIT_NORMS.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        if ".attn.in_proj_" in name:
            renamed |= {name.replace("in_proj_", f"{part}_proj."): piece for part, piece in zip("qkv", value.chunk(3), strict=True)}
        else:
            renamed[name] = value
    return renamed
