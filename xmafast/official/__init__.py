"""Adapters trained with the published repositories, by their tensors' names.

Nothing of those repositories' code is here: names, shapes and formulas are facts. A file has a whole model, adapters and CLIP; every
size is read off the shapes, as by the majority of the tensors that have it, so that the one that does not fit can be named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xmafast.backbone import Backbone
from xmafast.errors import UsageError, unknown
from xmafast.official import cross_modal, mv_adapter
from xmafast.official.tensors import Published
from xmafast.retriever import Retriever

METHODS = ("cross-modal", "mv-adapter")

__all__ = ["METHODS", "import_official"]


def import_official(
    method: str,
    state_dict: Mapping[str, Any],
    *,
    backbone: Backbone | None = None,
    tying: str | None = None,
) -> Retriever:
    """The retriever of a state dict that a method's official repository made.

    method: ``cross-modal`` (its ten stacked tensors, and CLIP as OpenAI names it) or ``mv-adapter`` (its adapter in every block, and
        CLIP as that repository names it). Names may begin with ``module.`` and ``clip.``; the mapping may lie in another one as
        ``state_dict``, ``model`` or ``model_state_dict``. Half precision becomes float32. Both repositories' CLIP has QuickGELU
        and width // 64 heads.
    backbone: None takes the file's CLIP, whatever its size, which ``Retriever.save`` then writes beside the adapter. Where it is one
        that has a name, as ``load_backbone("ViT-B-16")``, give it: the run is as small as any, and a file with nothing but what was
        trained, as MV-Adapter's code saves it, can be read. CLIP biases that differ are loaded as trained ones (``train_biases``).
    tying: of MV-Adapter, where a shape cannot say whether the down- or the up-projection is tied: ``down-in`` or ``up-out`` for
        a projection as wide as the encoder, ``down-out`` or ``up-in`` for one as wide as the bottleneck. None takes the first of each,
        the paper's and the released one.

    Frames, words (of the Cross-Modal Adapter 32, which its file does not say) and all other sizes are those of the file.

    Raises UsageError for another method, RunError naming the tensor that is unknown, missing, or of another shape.
    """
    if method not in METHODS:
        raise unknown("method with an official file", method, METHODS)
    published = Published(state_dict)
    if method == "mv-adapter":
        return mv_adapter.read(published, backbone, tying).eval()
    if tying is not None:
        raise UsageError("tying is mv-adapter's; a cross-modal file has no such choice.")
    return cross_modal.read(published, backbone).eval()
