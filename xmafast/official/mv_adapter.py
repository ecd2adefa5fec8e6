"""MV-Adapter's tensors: an adapter in every block of both encoders, and the factors of its tied blocks.

The K-th tied blocks of both encoders share ``prompt.K``, which each also has as its own ``shared_factor``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xmafast.backbone import Backbone
from xmafast.errors import RunError, UsageError, unknown
from xmafast.methods.base import pair_blocks
from xmafast.methods.mv_adapter import KRONECKER, TYINGS
from xmafast.official.clip import block_prefix, read_clip
from xmafast.official.tensors import Axis, Published, Sizes
from xmafast.retriever import Retriever

OURS = {"visual.": "vision", "": "text"}
PROJECTION, FACTOR = ("md_proj.weight", "md_proj.bias"), "shared_factor"
RENAMED = {  # beginnings of the published names -> ours, of a block's adapter
    "down.": "down_",
    "up.": "up_",
    "positional_embedding": "positions",
    "cc": "cc",
    "ln_in.": "norm.",
    "ln_pre.": "norm_pre.",
    "block.ln_1.": "transformer.norm1.",
    "block.ln_2.": "transformer.norm2.",
    "block.attn.in_proj_": "transformer.attention.in_",
    "block.attn.out_proj.": "transformer.attention.out_",
    "block.mlp.c_fc.": "transformer.fc1.",
    "block.mlp.c_proj.": "transformer.fc2.",
    "conv_rf_c.g.": "calibration.context.",
    "conv_rf_c.a.": "calibration.hidden.",
    "conv_rf_c.b.": "calibration.out.",
    "md_proj.": "tie.",
}


@dataclass(frozen=True)
class Adapters:
    """What is known of a file's adapters before they are read.

    ``prefixes``: of each encoder's blocks; ``widths``: the encoders'; ``ties``: its tied (vision, text) blocks, ``pairs``: ours.
    """

    prefixes: dict[str, list[str]]
    widths: dict[str, int]
    pairs: list[tuple[int, int]]
    ties: list[tuple[int, int]]

    def tied(self, pair: tuple[int, int]) -> Iterator[tuple[str, str, int]]:
        """A pair's two blocks: the encoder, the beginning of its adapter's names, the block."""
        for encoder, block in zip(self.prefixes, pair, strict=True):
            yield encoder, self.prefixes[encoder][block], block

    @property
    def last(self) -> list[tuple[int, int]]:
        """The pairs from the first that is tied on."""
        return self.pairs[self.pairs.index(self.ties[0]) :] if self.ties else []


def read(published: Published, named: Backbone | None = None, tying: str | None = None) -> Retriever:
    """tying: None reads it off the shapes, as far as they say. Raises RunError for tensors that do not fit, UsageError for the tying."""
    if tying is not None and tying not in (known := [name for name in TYINGS if name != KRONECKER]):
        raise unknown("tying", tying, known)
    clip = read_clip(published, True, named)
    prefixes = {
        encoder: [block_prefix(encoder, block) + "mlp.adapter." for block in range(depth)] for encoder, depth in clip.depths.items()
    }
    pairs = pair_blocks(*clip.depths.values())
    file = Adapters(prefixes, clip.widths, pairs, _ties(published, prefixes, pairs))

    norm = any(name.endswith("adapter.ln_in.weight") for name in published.tensors)
    layout = {
        prefix + name: axes
        for encoder, beginnings in prefixes.items()
        for prefix in beginnings
        for name, axes in _adapter(encoder, file.widths[encoder], norm).items()
    }
    sizes = published.sizes(layout)
    bottleneck = _check(published, file, sizes, clip.context_length)
    tying = _tying(published, file, bottleneck, tying)
    ties = _tie_layout(published, file, tying, bottleneck)
    sizes |= published.sizes(ties)
    tensors = published.take(layout | ties, sizes)
    published.finish()

    retriever = Retriever(
        clip.build(),
        "mv-adapter",
        "mean",
        words=sizes["words"],
        bottleneck=bottleneck,
        tied=len(file.last),
        tying=tying,
        frames=sizes["frames"],
        factor=sizes.get("factor", 1),
        norm=norm,
        calibration=sizes["calibration"],
        train_biases=bool(clip.biases),
    )
    assert retriever.method is not None
    weights = clip.tuned
    for encoder, beginnings in prefixes.items():
        for block, prefix in enumerate(beginnings):
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            weights |= {f"{OURS[encoder]}.{block}.{_ours(name)}": value for name, value in own.items() if name != FACTOR}
    for i, pair in enumerate(file.last):
        weights |= _factor(published, file, i, pair, tensors, (tying, bottleneck, sizes["factor"]))
    retriever.method.load_state_dict(weights)
    return retriever


def _check(published: Published, file: Adapters, sizes: Sizes, context_length: int) -> int:
    """The bottleneck of both encoders. Raises RunError for sizes that no mv-adapter here can have."""
    bottleneck, other = sizes["video bottleneck"], sizes["text bottleneck"]
    if bottleneck != other:
        raise RunError(
            f"The tensors {published.full(file.prefixes['visual.'][0] + 'down.weight')!r} and "
            f"{published.full(file.prefixes[''][0] + 'down.weight')!r} have bottlenecks of {bottleneck} and {other}; "
            "xmafast's mv-adapter has one for both encoders."
        )
    if sizes["words"] > context_length:
        name = published.full(file.prefixes[""][0] + "positional_embedding")
        raise RunError(f"The tensor {name!r} has {sizes['words']} rows, more than the {context_length} positions of its text encoder.")
    return bottleneck


def _adapter(encoder: str, width: int, norm: bool) -> dict[str, tuple[Axis, ...]]:
    """A block's adapter without its tie."""
    video = encoder == "visual."
    d = "video bottleneck" if video else "text bottleneck"
    layout: dict[str, tuple[Axis, ...]] = {
        "down.weight": (d, width),
        "down.bias": (d,),
        "up.weight": (width, d),
        "up.bias": (width,),
        "positional_embedding": (("frames", 2, 1) if video else "words", d),
        "block.attn.in_proj_weight": ((d, 3, 0), d),
        "block.attn.in_proj_bias": ((d, 3, 0),),
        "block.attn.out_proj.weight": (d, d),
        "block.attn.out_proj.bias": (d,),
        "block.mlp.c_fc.weight": ((d, 4, 0), d),
        "block.mlp.c_fc.bias": ((d, 4, 0),),
        "block.mlp.c_proj.weight": (d, (d, 4, 0)),
        "block.mlp.c_proj.bias": (d,),
    }
    layout |= {f"{part}.{end}": (d,) for part in ("ln_pre", "block.ln_1", "block.ln_2") for end in ("weight", "bias")}
    if norm:
        layout |= {"ln_in.weight": (width,), "ln_in.bias": (width,)}
    if video:
        layout |= {
            "cc": (d,),
            "conv_rf_c.g.weight": (d, d),
            "conv_rf_c.g.bias": (d,),
            "conv_rf_c.a.weight": ("calibration", (d, 2, 0)),
            "conv_rf_c.a.bias": ("calibration",),
            "conv_rf_c.b.weight": (d, "calibration"),
        }
    return layout


def _ours(name: str) -> str:
    beginning = next(b for b in RENAMED if name.startswith(b))
    return RENAMED[beginning] + name.removeprefix(beginning)


def _ties(published: Published, prefixes: dict[str, list[str]], pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The (vision, text) blocks that are tied, from the first to the last. Raises RunError where they are no pairs of ours."""
    parts = (*PROJECTION, FACTOR)
    tied = {
        encoder: [block for block, prefix in enumerate(beginnings) if any(prefix + part in published.tensors for part in parts)]
        for encoder, beginnings in prefixes.items()
    }
    if len(tied["visual."]) != len(tied[""]):
        more, fewer = sorted(tied, key=lambda encoder: -len(tied[encoder]))
        block = next((b for b in tied[more] if b not in tied[fewer] and b < len(prefixes[fewer])), 0)
        name = published.full(prefixes[fewer][block] + PROJECTION[0])
        counts = f"{len(tied[more])} blocks of one encoder are tied and {len(tied[fewer])} of the other"
        raise RunError(f"The state dict has no tensor {name!r}, so that {counts}; restore the file.")
    found = list(zip(tied["visual."], tied[""], strict=True))
    for pair in found:
        if pair not in pairs:
            raise RunError(f"The file ties image block {pair[0]} to text block {pair[1]} (from 0); xmafast ties the pairs {pairs} alone.")
    return found


def _tying(published: Published, file: Adapters, bottleneck: int, given: str | None) -> str:
    """Which projection is tied, and at which end: by most of the projections' sizes, the published ones first."""
    votes = dict.fromkeys([name for name in TYINGS if name != KRONECKER] if given is None else [given], 0)
    for pair in file.ties:
        for encoder, prefix, _ in file.tied(pair):
            for part in PROJECTION:
                rows = published.tensors.get(prefix + part, torch.empty(0)).shape[:1]
                for tying in votes:
                    votes[tying] += rows == (_channels(tying, file.widths[encoder], bottleneck),)
    tying = max(votes, key=lambda name: votes[name])
    if file.ties and given is not None and not votes[tying]:
        raise UsageError(f"The file's ties are not {given!r}, its projections have other sizes; leave tying out, or name the other end.")
    return tying


def _channels(tying: str, width: int, bottleneck: int) -> int:
    return width if tying in ("down-in", "up-out") else bottleneck


def _tie_layout(published: Published, file: Adapters, tying: str, bottleneck: int) -> dict[str, tuple[Axis, ...]]:
    """The ties' tensors: a module's state dict names a factor three times, a list of its parameters once."""
    layout: dict[str, tuple[Axis, ...]] = {}
    thrice = any(name.endswith(f"adapter.{FACTOR}") for name in published.tensors)
    for k, pair in enumerate(file.ties):
        layout[f"prompt.{k}"] = ("factor",)
        for encoder, prefix, _ in file.tied(pair):
            channels = _channels(tying, file.widths[encoder], bottleneck)
            layout |= {prefix + PROJECTION[0]: (channels, "factor"), prefix + PROJECTION[1]: (channels,)}
            if thrice:
                layout[prefix + FACTOR] = ("factor",)
    return layout


def _factor(
    published: Published, file: Adapters, i: int, pair: tuple[int, int], tensors: dict[str, Tensor], sizes: tuple[str, int, int]
) -> dict[str, Tensor]:
    """The factor of the i-th of the last pairs, by our names; a pair that is not tied itself gets a tie that scales by one."""
    tying, bottleneck, length = sizes
    if pair in file.ties:
        name = f"prompt.{file.ties.index(pair)}"
        for copy in (prefix + FACTOR for _, prefix, _ in file.tied(pair)):
            if copy in tensors and not torch.equal(tensors[copy], tensors[name]):
                names = f"{published.full(name)!r} and {published.full(copy)!r}"
                raise RunError(f"The tensors {names} differ, and are one factor in the published model; restore the file.")
        return {f"shared.{i}": tensors[name]}
    weights = {f"shared.{i}": torch.zeros(length)}
    for encoder, _, block in file.tied(pair):
        channels = _channels(tying, file.widths[encoder], bottleneck)
        weights[f"{OURS[encoder]}.{block}.tie.weight"] = torch.zeros(channels, length)
        weights[f"{OURS[encoder]}.{block}.tie.bias"] = torch.ones(channels)
    return weights
