"""Pretrain the demo backbone, a small ViT dual encoder, on still emoji.

    python -m xmafast.demo.pretrain                      # fetches the stills with `npm pack`, about 40 minutes on two cores
    python -m xmafast.demo.pretrain --stills FOLDER      # FOLDER already holds the three unpacked packages
    python -m xmafast.demo.pretrain --leave-out-test --out FOLDER   # a variant that never sees the demo's test emoji, in any design

Images: the 64-pixel stills of the npm packages emoji-datasource-google and emoji-datasource-twitter (one design each).
Texts: labels and tags of emojibase-data. Loss: symmetric InfoNCE. No frame of the demo clips (a third design, Fluent) is read,
here or for choosing the step that is kept: that step is the best on stills held out from training, where an emoji's
other design was trained on. Writes `backbone/` beside this file in open_clip's local-folder format, with fp16 weights and
open_clip's BPE cut to the merges that the texts use.
"""

import argparse
import copy
import gzip
import json
import math
import random
import subprocess
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from PIL import Image
from safetensors.torch import save_file

PACKAGES = {
    "google": "emoji-datasource-google@16.0.0",
    "twitter": "emoji-datasource-twitter@16.0.0",
    "texts": "emojibase-data@17.0.0",
}
SIZE, PATCH, CONTEXT = 96, 16, 32
MODEL = {
    "embed_dim": 192,
    "quick_gelu": True,
    "vision_cfg": {"image_size": SIZE, "layers": 6, "width": 192, "head_width": 64, "patch_size": PATCH},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 0, "width": 192, "heads": 3, "layers": 3},
}
PREPROCESS = {
    "size": SIZE,
    "mode": "RGB",
    "mean": list(open_clip.OPENAI_DATASET_MEAN),
    "std": list(open_clip.OPENAI_DATASET_STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
DEFAULT_OUT = Path(__file__).parent / "backbone"
HELD_OUT = 300  # stills of either design, each of an emoji whose other design is trained on
TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")


def fetch_stills(folder: Path, packages: dict[str, str] = PACKAGES) -> None:
    """Unpack npm packages into ``folder``, each under its name: ``google``, ``twitter`` and ``texts``."""
    for name, package in packages.items():
        target = folder / name
        if target.exists():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            subprocess.run(["npm", "pack", "--silent", package], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
            with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
                archive.extractall(target, filter="data")


def test_emoji() -> set[str]:
    """Code points of the emoji that the demo's test clips show, as ``read_stills`` has them."""
    with (Path(__file__).parent / "fluent-clips" / "captions.jsonl").open(encoding="utf-8") as lines:
        return {row["id"].replace("-fe0f", "") for row in map(json.loads, lines) if row["split"] == "test"}


def read_stills(folder: Path, leave_out: Collection[str] = ()) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """Emoji with both designs: their texts, and images (E, 2, 4, 64, 64) uint8 RGBA. leave_out: code points without fe0f, lower case."""
    rows = json.loads((folder / "texts/package/en/data.json").read_text(encoding="utf-8"))
    files = [{p.stem.replace("-fe0f", ""): p for p in (folder / d / f"package/img/{d}/64").glob("*.png")} for d in ("google", "twitter")]
    emoji, images = [], []
    for row in rows:
        key = row["hexcode"].lower().replace("-fe0f", "")
        if row["hexcode"] in TONES or "group" not in row or not all(key in f for f in files) or key in leave_out:
            continue
        pair = [np.asarray(Image.open(f[key]).convert("RGBA").resize((64, 64))) for f in files]
        images.append(np.stack(pair))
        emoji.append({"label": row["label"], "tags": row.get("tags", []), "mirror": row["group"] < 6})
    return emoji, torch.from_numpy(np.stack(images)).permute(0, 1, 4, 2, 3).contiguous()


def cut_bpe(emoji: list[dict[str, Any]], path: Path) -> None:
    """Keep the merges of open_clip's BPE that words of two emoji or more use; any other word still encodes, in smaller pieces."""
    counts = Counter(w for e in emoji for w in {w for text in [e["label"], *e["tags"]] for w in text.lower().split()})
    tokenizer = SimpleTokenizer()
    used: set[tuple[str, str]] = set()
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode("utf-8").split("\n")
    rank = tokenizer.bpe_ranks
    whole = {a + b: (a, b) for a, b in sorted(rank, key=lambda m: -rank[m])}

    def add(token: str) -> None:
        if token in whole and whole[token] not in used:
            used.add(whole[token])
            for part in whole[token]:
                add(part)

    for word in (w for w, n in counts.items() if n > 1):
        for index in tokenizer.encode(word):
            add(tokenizer.decoder[index])
    kept = [line for line in lines[1:48895] if tuple(line.split()) in used]
    with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as f:
        f.write("\n".join(["#cut from open_clip's bpe_simple_vocab_16e6 (MIT)", *kept]).encode("utf-8"))


def augment(rgba: torch.Tensor, mirror: torch.Tensor) -> torch.Tensor:
    """Geometric and colour augmentation: (B, 4, 64, 64) uint8 -> (B, 3, SIZE, SIZE) float in 0..1."""
    n = len(rgba)

    def u(low: float, high: float) -> torch.Tensor:
        return torch.empty(n).uniform_(low, high)

    angle, scale = u(-0.35, 0.35), u(0.85, 1.5)
    flip = torch.where(mirror & (torch.rand(n) < 0.5), -1.0, 1.0)
    shear = u(-0.15, 0.15)
    stretch = u(0.88, 1.12)
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.stack(
        [cos * flip * scale * stretch, (shear - sin) * scale, u(-0.2, 0.2), sin * flip * scale, cos * scale / stretch, u(-0.2, 0.2)], 1
    ).view(n, 2, 3)
    x = rgba.float() / 255
    x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)  # premultiplied, so that edges do not darken
    x = F.grid_sample(x, F.affine_grid(theta, [n, 4, SIZE, SIZE], align_corners=False), align_corners=False)
    rgb, alpha = x[:, :3], x[:, 3:]
    v = (n, 1, 1, 1)
    # shading, hue, saturation, contrast and sharpness of the sprite: another artist's hand
    ramp = torch.linspace(-1, 1, SIZE)
    shade = 1 + u(-0.3, 0.3).view(v) * ramp.view(1, 1, -1, 1) + u(-0.15, 0.15).view(v) * ramp
    rgb = rgb * shade * (1 + torch.empty(n, 3, 1, 1).uniform_(-0.15, 0.15))
    grey = rgb.mean(1, keepdim=True)
    rgb = grey + (rgb - grey) * u(0.5, 1.5).view(v)
    rgb = rgb * u(0.8, 1.15).view(v) + alpha * u(-0.08, 0.08).view(v)
    plain = (torch.rand(n) < 0.6).view(v)
    ground = torch.where(plain, torch.ones(n, 3, 1, 1), torch.rand(n, 3, 1, 1))
    x = (rgb + ground * (1 - alpha)).clamp(0, 1)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return (x + (x - soft) * u(-1, 1.5).view(v)).clamp(0, 1)


def normalise(x: torch.Tensor) -> torch.Tensor:
    return (x - torch.tensor(PREPROCESS["mean"]).view(1, 3, 1, 1)) / torch.tensor(PREPROCESS["std"]).view(1, 3, 1, 1)


def caption(row: dict[str, Any]) -> str:
    """The label, the label with some tags, or some tags alone."""
    tags = random.sample(row["tags"], min(len(row["tags"]), random.randint(1, 6)))
    kind = random.random()
    if kind < 0.45 or not tags:
        return str(row["label"])
    return ", ".join(tags if kind > 0.8 else [row["label"], *tags])


def on_white(images: torch.Tensor) -> torch.Tensor:
    """(B, 4, 64, 64) uint8 RGBA -> (B, 3, SIZE, SIZE) float in 0..1."""
    rgba = images.float() / 255
    return F.interpolate(rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:], SIZE, mode="bicubic").clamp(0, 1)


def new_model(vocab_size: int) -> tuple[dict[str, Any], open_clip.CLIP]:
    """The configuration and the model with random weights."""
    config: dict[str, Any] = copy.deepcopy(MODEL)
    config["text_cfg"]["vocab_size"] = vocab_size
    return config, open_clip.CLIP(**config)


def held_out(count: int, vocab_size: int) -> torch.Tensor:
    """Which of ``count`` emoji are held out, where the seed has just been set: the model's weights are drawn before them."""
    new_model(vocab_size)
    return torch.randperm(count)[:HELD_OUT]


@torch.no_grad()
def held_out_recall(model: open_clip.CLIP, images: torch.Tensor, tokens: torch.Tensor) -> dict[str, float]:
    model.eval()
    sim = model.encode_text(tokens, normalize=True) @ model.encode_image(normalise(on_white(images)), normalize=True).T
    model.train()
    own = sim.diagonal()
    t2i = (sim > own[:, None]).sum(1)
    i2t = (sim > own[None]).sum(0)
    return {f"{n}_R@{k}": (r < k).float().mean().item() * 100 for n, r in (("t2i", t2i), ("i2t", i2t)) for k in (1, 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stills", type=Path, help="where the three packages are, or will be, unpacked")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--leave-out-test", action="store_true", help="leave out every emoji of the demo's test clips, images and texts")
    args = parser.parse_args()
    if args.leave_out_test and args.out.resolve() == DEFAULT_OUT.resolve():
        parser.error("--leave-out-test makes another backbone than the demo's; name a folder for it with --out")
    stills = args.stills or Path(tempfile.mkdtemp(prefix="xmafast-stills-"))
    fetch_stills(stills)
    args.out.mkdir(parents=True, exist_ok=True)
    random.seed(args.seed)
    torch.manual_seed(args.seed)

    left_out = test_emoji() if args.leave_out_test else set()
    emoji, images = read_stills(stills, left_out)
    cut_bpe(emoji, args.out / "bpe.txt.gz")
    tokenizer = SimpleTokenizer(bpe_path=str(args.out / "bpe.txt.gz"), context_length=CONTEXT)
    config, model = new_model(tokenizer.vocab_size)
    decay = 0.998
    average = copy.deepcopy(model).requires_grad_(False)
    print(f"{len(emoji)} emoji, vocabulary {tokenizer.vocab_size}, {sum(p.numel() for p in model.parameters()):,} parameters")

    held = torch.randperm(len(emoji))[:HELD_OUT]
    held_design = torch.arange(HELD_OUT) % 2
    held_images = images[held, held_design]
    held_tokens = tokenizer([emoji[i]["label"] for i in held.tolist()])
    closed = {(e, d) for e, d in zip(held.tolist(), held_design.tolist(), strict=True)}
    mirror = torch.tensor([e["mirror"] for e in emoji])

    named = list(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for _, p in named if p.ndim > 1], "weight_decay": 0.2},
            {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0},
        ],
        lr=args.lr,
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    warmup = 150
    log, best, start = [], -1.0, time.time()
    for step in range(1, args.steps + 1):
        for group in optimizer.param_groups:
            x = max(0.0, (step - warmup) / (args.steps - warmup))
            group["lr"] = args.lr * min(step / warmup, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * x)))
        rows = torch.randperm(len(emoji))[: args.batch]
        design = torch.tensor(
            [1 - d if (e, d) in closed else d for e, d in zip(rows.tolist(), torch.randint(2, (args.batch,)).tolist(), strict=True)]
        )
        batch = normalise(augment(images[rows, design], mirror[rows]))
        tokens = tokenizer([caption(emoji[i]) for i in rows.tolist()])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            v, t = model.encode_image(batch), model.encode_text(tokens)
        v, t = F.normalize(v.float(), dim=-1), F.normalize(t.float(), dim=-1)
        logits = model.logit_scale.exp() * t @ v.T
        target = torch.arange(args.batch)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
            keep = min(decay, step / (step + 10))
            for a, p in zip(average.parameters(), model.parameters(), strict=True):
                a.lerp_(p, 1 - keep)
        if step % 100 == 0 or step == args.steps:
            row = {"step": step, "loss": loss.item(), **held_out_recall(average, held_images, held_tokens), "seconds": time.time() - start}
            log.append(row)
            print(json.dumps({k: round(v, 3) for k, v in row.items()}), flush=True)
            score = sum(v for k, v in row.items() if "R@" in k)
            if score > best:
                best = score
                save_file({k: v.half().contiguous() for k, v in average.state_dict().items()}, args.out / "open_clip_model.safetensors")
                (args.out / "open_clip_config.json").write_text(
                    json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}, indent=2) + "\n"
                )
                record = {
                    "packages": PACKAGES,
                    "steps": args.steps,
                    "batch": args.batch,
                    "lr": args.lr,
                    "seed": args.seed,
                    "torch": torch.__version__,
                    **({"left_out": sorted(left_out)} if left_out else {}),
                }
                (args.out / "pretrain.json").write_text(json.dumps({**record, "kept": row, "held_out": log}, indent=1) + "\n")


if __name__ == "__main__":
    main()
