"""What TempMe's merging saves: the time to encode videos, beside the frozen model and plain LoRA, in one run.

    python benchmarks/merging.py [--backbone ViT-B-16] [--frames 12] [--videos 1] [--rounds 7] [--device cpu]

Random weights; forms interleaved, medians over rounds. Prints the measured share of the frozen model's time beside the share of its
multiply-accumulates, writes benchmarks/results/merging.json, and fails on a CPU where 12 frames on ViT-B/16 take more than 0.70 of it.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from machine import machine
from measure import interleaved
from rich.console import Console
from rich.table import Table

from xmafast import Retriever, load_backbone
from xmafast.macs import count_macs
from xmafast.pretrained import meta_backbone

PROMISED = 0.70
FORMS = {
    "frozen": (None, ()),
    "lora": ("lora", ()),
    "lora, merged": ("lora", ()),
    "tempme": ("tempme", ()),
    "lora + tempme": ("lora", ("tempme",)),
    "lora + disco": ("lora", ("disco",)),
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--backbone", default="ViT-B-16")
parser.add_argument("--frames", type=int, default=12)
parser.add_argument("--videos", type=int, default=1)
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--device", default="cpu")
parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "merging.json")
args = parser.parse_args()

backbone, meta = load_backbone(args.backbone, "none"), meta_backbone(args.backbone)
size = backbone.image_size
frames = torch.randint(0, 256, (args.videos, args.frames, size, size, 3), dtype=torch.uint8).to(args.device)
models, macs = {}, {}
for name, (method, plugs) in FORMS.items():
    torch.manual_seed(0)
    models[name] = Retriever(backbone, method, plugs=plugs, frames=args.frames).eval().to(args.device)
    if "merged" in name:
        models[name].merge()
    macs[name] = count_macs(meta, None if "merged" in name else method, plugs=plugs)["video"]  # of 12 frames
with torch.inference_mode():
    times = interleaved({name: lambda model=model: model.encode_frames(frames) for name, model in models.items()}, args.device, args.rounds)
rows = {name: {**times[name], "gmacs": macs[name] / 1e9, "time": times[name]["median_ms"] / times["frozen"]["median_ms"]} for name in FORMS}
table = Table(
    "",
    "ms",
    "of the frozen model's time",
    "GMACs, 12 frames",
    "of its GMACs",
    title=f"{args.videos} x {args.frames} frames, {args.backbone}",
)
for name, row in rows.items():
    share = row["gmacs"] / rows["frozen"]["gmacs"]
    table.add_row(name, f"{row['median_ms']:,.0f}", f"{row['time']:.2f}", f"{row['gmacs']:.1f}", f"{share:.2f}")
Console(width=140).print(table)
result = {"machine": machine(), "backbone": args.backbone, "frames": args.frames, "videos": args.videos, "rows": rows}
args.out.write_text(json.dumps(result, indent=1) + "\n")
promised = args.backbone == "ViT-B-16" and args.frames == 12 and args.device == "cpu"
if promised and rows["tempme"]["time"] > PROMISED:
    sys.exit(f"missed: tempme takes {rows['tempme']['time']:.2f} of the frozen model's time, and {PROMISED} was promised")
