"""The Cross-Modal Adapter's ten tensors, stacked over blocks and sites: row 2i after block i's attention, 2i + 1 after its MLP."""

from __future__ import annotations

import torch

from xmafast.backbone import Backbone
from xmafast.errors import RunError
from xmafast.methods.cross_modal import SITES
from xmafast.official.clip import read_clip
from xmafast.official.tensors import Axis, Published
from xmafast.retriever import Retriever

UNIQUE, SHARED = "{}_adapter_up_unique_{}", "vt_adapter_up_share_{}"  # of an encoder; weight or bias
OURS = {"visual": "vision", "text": "text"}


def read(published: Published, named: Backbone | None = None) -> Retriever:
    """Raises RunError for encoders of unequal depth, which the published code cannot build, and for tensors that do not fit."""
    clip = read_clip(published, False, named)
    depth, text_depth = clip.depths.values()
    if depth != text_depth:
        raise RunError(
            f"The encoders have {depth} and {text_depth} blocks; the published Cross-Modal Adapter pairs "
            "encoders of equal depth, so this is no file of its."
        )
    widths = dict(zip(OURS, clip.widths.values(), strict=True))
    rows = 2 * depth
    layout: dict[str, tuple[Axis, ...]] = {}
    for encoder, width in widths.items():
        rest = ("shared width", -1, width)
        layout |= {f"{encoder}_adapter_down_weight": (rows, "bottleneck", width), f"{encoder}_adapter_down_bias": (rows, "bottleneck")}
        layout |= {UNIQUE.format(encoder, "weight"): (rows, rest, "bottleneck"), UNIQUE.format(encoder, "bias"): (rows, rest)}
    layout |= {SHARED.format("weight"): (rows, "shared width", "bottleneck"), SHARED.format("bias"): (rows, "shared width")}
    sizes = published.sizes(layout)
    r, s = sizes["bottleneck"], sizes["shared width"]
    if r < 1 or s > min(widths.values()):
        raise RunError(f"A bottleneck of {r} and {s} shared channels fit no encoders of widths {widths['visual']} and {widths['text']}.")
    none = [f"{encoder}_adapter_up_unique_{{}}" for encoder, width in widths.items() if width == s] + ([SHARED] if s == 0 else [])
    left_out = {pattern.format(part): (rows, 0, r)[:length] for pattern in none for part, length in (("weight", 3), ("bias", 2))}
    left_out = {name: lengths for name, lengths in left_out.items() if name not in published.tensors}  # what has no rows need not be there
    tensors = published.take({name: axes for name, axes in layout.items() if name not in left_out}, sizes)
    tensors |= {name: torch.empty(lengths) for name, lengths in left_out.items()}
    published.finish()

    biases = bool(clip.biases)
    retriever = Retriever(clip.build(), "cross-modal", "text-conditioned", temperature=5.0, bottleneck=r, shared=s, train_biases=biases)
    weights = clip.tuned
    for part in ("weight", "bias"):
        for row in range(rows):
            block, site = row // 2, SITES[row % 2]
            for encoder, ours in OURS.items():
                weights[f"{ours}.{block}.{site}.down_{part}"] = tensors[f"{encoder}_adapter_down_{part}"][row]
                weights[f"{ours}.{block}.{site}.up_{part}"] = tensors[UNIQUE.format(encoder, part)][row]
            if s:
                weights[f"shared.{block}.{site}.{part}"] = tensors[SHARED.format(part)][row]
    assert retriever.method is not None
    retriever.method.load_state_dict(weights)
    return retriever
