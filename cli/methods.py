"""``xmafast methods``: what can be trained, how large it is and what it costs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from xmafast.cli.options import JSON
from xmafast.cli.output import note, out, print_json


def methods(
    backbone: Annotated[str, typer.Option(help="An open_clip model, or demo.")] = "ViT-B-32",
    bottleneck: Annotated[int | None, typer.Option(min=1, help="Width of the bottleneck (default: each method's).")] = None,
    shared: Annotated[int | None, typer.Option(min=0, help="Shared dimension (default: each method's).")] = None,
    json: JSON = False,
) -> None:
    """List the methods with their trainable parameters and GMACs on a backbone. Loads no weights."""
    from rich.table import Table

    from xmafast.errors import UsageError
    from xmafast.headers import SeqTransf
    from xmafast.macs import FRAMES, WORDS, count_macs
    from xmafast.methods import METHODS
    from xmafast.pretrained import meta_backbone

    clip = meta_backbone(backbone)
    shape, frozen = clip.shape, count_macs(clip)
    asked = {key: value for key, value in {"bottleneck": bottleneck, "shared": shared}.items() if value is not None}

    def row(kind: Any, name: str, trainable: int, macs: dict[str, int], **more: Any) -> dict[str, Any]:
        return {
            "name": name,
            "trainable": trainable,
            "share": 100 * trainable / shape.parameters,
            "gmacs": sum(macs.values()) / 1e9,
            "gmacs_video": macs["video"] / 1e9,
            "gmacs_text": macs["text"] / 1e9,
            "adapts": kind.adapts,
            "paper": kind.paper,
            "licence": kind.licence,
            **more,
        }

    rows, unfit = [], {}
    for name, method in METHODS.items():
        wanted: dict[str, Any] = {key: value for key, value in asked.items() if key in method.known_options()}
        try:
            built = method.build(shape, **wanted)
        except UsageError as error:
            unfit[name] = str(error)
            continue
        macs = count_macs(clip, name, **wanted)
        about = {"family": method.family, "header": method.default_header, "options": built.options()}
        rows.append(row(method, name, built.trainable, macs, **about))
    size, macs = sum(p.numel() for p in SeqTransf(shape).parameters()), count_macs(clip, None, "seqTransf")
    meant = [name for name, method in METHODS.items() if set(asked) & set(method.known_options())]
    if asked and all(name in unfit for name in meant):  # what was asked for fits nothing
        raise UsageError(unfit[meant[0]])
    rows.append(row(SeqTransf, "seqTransf", size, macs, family="header", header="seqTransf", options={}))
    if json:
        for name, reason in unfit.items():
            note(f"Left out: {name}. {reason}")
        print_json([{**row["options"], **row} for row in rows])
        return
    total, words = sum(frozen.values()) / 1e9, min(WORDS, shape.context_length) if shape.causal else shape.context_length
    out.print(f"{backbone}: {shape.parameters:,} parameters, frozen {total:.1f} GMACs for {FRAMES} frames and a caption of {words} words")
    for family in dict.fromkeys(r["family"] for r in rows):
        table = Table(family, box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for number in ("trainable", "share", "GMACs"):
            table.add_column(number, justify="right")
        table.add_column("header")
        for r in (r for r in rows if r["family"] == family):
            numbers = (f"{r['trainable']:,}", f"{r['share']:.3f} %", f"{r['gmacs']:.1f}")
            table.add_row(r["name"], *numbers, r["header"])
        out.print()
        out.print(table)
    for name, reason in unfit.items():
        out.print(f"\nLeft out: {name}. {reason}", soft_wrap=True)
    out.print()
    for r in rows:
        options = ", ".join(f"{key} {value}" for key, value in r["options"].items())
        out.print(f"{r['name']}: {r['adapts']}.", soft_wrap=True)
        if options:
            out.print(f"  options: {options}", soft_wrap=True)
        out.print(f"  {r['paper']} (licence of its code: {r['licence']})", soft_wrap=True)
