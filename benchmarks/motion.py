"""A retrieval task that needs time: still sprites moved by a renderer, and captions that say how.

    python benchmarks/motion.py FOLDER [--train 1600] [--val 160] [--test 512] [--frames 4] [--seed 0] [--sheet FILE.png]

Writes FOLDER/train.h5, val.h5 and test.h5, real frame caches of ``xmafast`` that train, eval and verify take. Nothing is downloaded: the
sprites are the first frames of eight of the demo's training clips, cut from their white ground. Everything is drawn from the seed.

A clip is one of
    one    a dog moving left; a dog turning clockwise slowly
    then   a dog moving left, then growing
    two    a dog moving left and a fish growing, each in its half
    back   a dog moving left and back
    still  a dog standing still

The first three need time: each has a twin that is drawn in the same way and played backwards, "a dog moving right" or "a dog shrinking,
then moving right". Both are in the same split, and their frames, in any order, are alike but for each clip's own small offsets: what looks
at single frames, however well, tells a clip from its twin in half of the cases. ``back`` and ``still`` look the same backwards, and single
frames tell them. No caption is in two splits, so that every combination of the test split is new, of sprites and movements that are not.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter

from xmafast import __version__
from xmafast.cache import FrameCache, Status
from xmafast.cache.build import finish
from xmafast.cache.decode import decode, resolve_decoder
from xmafast.cache.file import checksum
from xmafast.cache.frames import create
from xmafast.datasets import demo

SIZE, FRAMES = 96, 4
SECONDS = 2.0
COUNTS = {"train": 1600, "val": 160, "test": 512}
SPRITES = {  # of the demo's training clips, so that none of its test emoji is seen here
    "blue heart": "1f499",
    "rocket": "1f680",
    "dog": "1f415",
    "fish": "1f41f",
    "owl": "1f989",
    "umbrella": "2602-fe0f",
    "crab": "1f980",
    "unicorn": "1f984",
}
REVERSED = {
    "moving left": "moving right",
    "moving up": "moving down",
    "growing": "shrinking",
    "turning clockwise": "turning counterclockwise",
}
REVERSED |= {after: before for before, after in REVERSED.items()}
MOVEMENTS = tuple(sorted(REVERSED))
LEVEL = tuple(name for name in MOVEMENTS if name not in ("moving up", "moving down"))  # of two sprites, each stays in its half
SLOW = 0.45  # of the way, in the same time
SHIFT, GROWTH, TURN = 0.44, 0.45, 60.0  # from the middle: of half the frame's side, of the size's logarithm, in degrees
WIDTH, WIDTH_OF_TWO = 0.5, 0.4  # of a sprite, as a share of the frame's side
KINDS = {"one": 0.25, "then": 0.35, "two": 0.2, "back": 0.15, "still": 0.05}
NEED_TIME = ("one", "then", "two")
MISSES = 500  # captions in a row that are there already, for none to be left to speak of
TWINS = "ab"  # an id ends in one of them where the clip has a twin


@dataclass(frozen=True)
class Program:
    """What a clip shows. sprites and movements: one each, or two; ``then`` has one sprite and two movements, ``still`` none."""

    kind: str
    sprites: tuple[str, ...]
    movements: tuple[str, ...] = ()
    slow: bool = False

    @property
    def caption(self) -> str:
        (one, *other), moves = [f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in self.sprites], self.movements
        if self.kind == "still":
            return f"{one} standing still"
        if self.kind == "two":
            return f"{one} {moves[0]} and {other[0]} {moves[1]}"
        end = {"then": f", then {moves[-1]}", "back": " and back"}.get(self.kind, "")
        return f"{one} {moves[0]}{end}{' slowly' if self.slow else ''}"

    @property
    def backwards(self) -> Program:
        """What the same clip shows when it is played backwards."""
        if self.kind not in NEED_TIME:
            return self
        turned = tuple(REVERSED[name] for name in self.movements)
        return replace(self, movements=turned[::-1] if self.kind == "then" else turned)


@dataclass(frozen=True)
class Clip:
    id: str
    program: Program
    noise: int  # seeds the clip's own offsets


def twin_of(clip_id: str) -> str | None:
    """The id of the clip that is told from this one by time alone; None where there is none."""
    return clip_id[:-1] + TWINS[1 - TWINS.index(clip_id[-1])] if clip_id[-1] in TWINS else None


def plan(counts: dict[str, int] = COUNTS, seed: int = 0) -> dict[str, list[Clip]]:
    """The clips of each split, twins after each other. Raises ValueError where there are not so many different captions."""
    rng = np.random.default_rng([seed, 0])
    seen: set[str] = set()
    splits: dict[str, list[Clip]] = {}
    number = 0
    for name in ("test", "val", "train"):  # the small ones first, so that they stay the same where more is trained on
        clips: list[Clip] = []
        misses = 0
        while len(clips) < counts[name]:
            if misses > MISSES:
                raise ValueError(f"There are not {sum(counts.values())} different captions; ask for fewer clips.")
            program = _draw(rng)
            both = [program, program.backwards] if program.kind in NEED_TIME else [program]
            if program.caption in seen or len(clips) + len(both) > counts[name]:
                misses += 1
                continue
            misses = 0
            number += 1
            for one, letter in zip(both, TWINS if len(both) > 1 else "x", strict=False):
                seen.add(one.caption)
                clips.append(Clip(f"m{number:05d}{letter}", one, 2 * number + TWINS.find(letter)))
        splits[name] = clips
    return splits


def _draw(rng: np.random.Generator) -> Program:
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    sprites = tuple(str(name) for name in rng.choice(list(SPRITES), 2, replace=False))
    if kind == "still":
        return Program(kind, sprites[:1])
    if kind == "two":
        return Program(kind, sprites, tuple(str(name) for name in rng.choice(LEVEL, 2)))
    first, slow = str(rng.choice(MOVEMENTS)), bool(rng.random() < 0.35)
    if kind == "then":
        second = str(rng.choice([name for name in MOVEMENTS if name not in (first, REVERSED[first])]))
        return Program(kind, sprites[:1], (first, second), slow)
    return Program(kind, sprites[:1], (first,), slow)


def states(program: Program, frames: int) -> np.ndarray:
    """(frames, sprites, 4): x to the right and y down in half sides from the middle, logarithm of size, degrees clockwise."""
    time = np.linspace(0.0, 1.0, frames)
    out = np.zeros((frames, len(program.sprites), 4))
    if program.kind == "two":
        out[:, 0, 1], out[:, 1, 1] = -0.45, 0.45
    for i, name in enumerate(program.movements):
        if program.kind == "then":
            way = np.clip(2 * time - i, 0, 1) * 2 - 1
        elif program.kind == "back":
            way = 1 - np.abs(2 * time - 1)
        else:
            way = 2 * time - 1
        way *= SLOW if program.slow else 1.0
        out[:, i if program.kind == "two" else 0, _AXIS[name][0]] += _AXIS[name][1] * way
    return out


_AXIS = {
    "moving right": (0, SHIFT),
    "moving left": (0, -SHIFT),
    "moving down": (1, SHIFT),
    "moving up": (1, -SHIFT),
    "growing": (2, GROWTH),
    "shrinking": (2, -GROWTH),
    "turning clockwise": (3, TURN),
    "turning counterclockwise": (3, -TURN),
}


def render(program: Program, noise: int, frames: int = FRAMES, seed: int = 0) -> np.ndarray:
    """(frames, SIZE, SIZE, 3) uint8. noise: which of the offsets that are the same in all frames of a clip."""
    rng = np.random.default_rng([seed, 1, noise])
    where = states(program, frames)
    where += rng.uniform(-1, 1, (1, where.shape[1], 4)) * (0.06, 0.06, 0.06, 8.0)
    ground = rng.uniform(0.88, 1.0, 3)
    picture = torch.from_numpy(ground.astype(np.float32)).view(1, 3, 1, 1).repeat(frames, 1, SIZE, SIZE)
    width = WIDTH if len(program.sprites) == 1 else WIDTH_OF_TWO
    for i, name in enumerate(program.sprites):
        x, y, growth, degrees = torch.from_numpy(where[:, i].T.astype(np.float32))
        scale, angle = 1 / (width * growth.exp()), torch.deg2rad(degrees)
        cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale  # from the frame's places to the sprite's
        theta = torch.stack([cos, sin, -(cos * x + sin * y), -sin, cos, sin * x - cos * y], 1).view(frames, 2, 3)
        grid = F.affine_grid(theta, [frames, 4, SIZE, SIZE], align_corners=False)
        drawn = F.grid_sample(sprite(name).expand(frames, -1, -1, -1), grid, align_corners=False)
        picture = drawn[:, :3] + picture * (1 - drawn[:, 3:])
    return (picture.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


@cache
def sprite(name: str) -> torch.Tensor:
    """(1, 4, SIZE, SIZE) float in 0..1, premultiplied, fitted to its frame, so that its middle is the frame's."""
    path = demo.ROOT / "clips" / f"{SPRITES[name]}.mp4"
    still = Image.fromarray(decode(path, frames=1, sampling="uniform", size=SIZE, decoder=resolve_decoder("auto")[0]).images[0])
    outside = still.copy()
    for corner in ((0, 0), (0, SIZE - 1), (SIZE - 1, 0), (SIZE - 1, SIZE - 1)):
        ImageDraw.floodfill(outside, corner, (255, 0, 255), thresh=24)
    alpha = Image.fromarray(((np.asarray(outside) != (255, 0, 255)).any(-1) * 255).astype(np.uint8))
    left, top, right, bottom = alpha.getbbox() or (0, 0, SIZE, SIZE)
    side = max(right - left, bottom - top)
    box = ((left + right - side) // 2, (top + bottom - side) // 2)
    soft = alpha.filter(ImageFilter.GaussianBlur(0.7))
    cut = Image.merge("RGBA", (*still.split(), soft)).crop((*box, box[0] + side, box[1] + side)).resize((SIZE - 4, SIZE - 4), Image.BICUBIC)
    rgba = torch.from_numpy(np.array(cut)).permute(2, 0, 1).float() / 255
    rgba = F.pad(rgba, (2, 2, 2, 2))
    return torch.cat([rgba[:3] * rgba[3:], rgba[3:]])[None]


def build(folder: Path, counts: dict[str, int] = COUNTS, frames: int = FRAMES, seed: int = 0) -> None:
    """Write the splits that are not there yet. A file gets its name when it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, clips in plan(counts, seed).items():
        path = folder / f"{name}.h5"
        if not path.is_file():
            write_cache(path, [clip.id for clip in clips], [(clip.program.caption,) for clip in clips], name, frames, seed, clips)


def write_cache(
    path: Path, ids: Sequence[str], captions: Sequence[tuple[str, ...]], split: str, frames: int, seed: int, clips: Sequence[Clip]
) -> None:
    attributes = {
        "frames": frames,
        "sampling": "uniform",
        "size": SIZE,
        "codec": "raw",
        "dataset": "motion",
        "split": split,
        "root": str(demo.ROOT),
        "decoder": "benchmarks/motion.py",
        "decoder_version": f"seed {seed}",
        "xmafast_version": __version__,
        "captions_per_epoch": "one",
        "epochs": 4,
        "batch_size": 32,
        "train_frames": 0,
        "lr": json.dumps({}),
        "default_backbone": "demo",
        "default_pretrained": "demo",
    }
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    create(partial, ids, captions, attributes)
    cache_file = FrameCache(partial, writable=True)
    times = np.linspace(0.0, SECONDS, frames, dtype=np.float32)
    for row, clip in enumerate(clips):
        cache_file.frames[row] = pictures = render(clip.program, clip.noise, frames, seed)
        cache_file.num_frames[row], cache_file.timestamps[row] = frames, times
        cache_file.checksum[row] = checksum([pictures], times)
        cache_file.status[row] = Status.DONE
    cache_file.flush()
    finish(cache_file, path)


def sheet(clips: Sequence[Clip], path: Path, frames: int = FRAMES, seed: int = 0) -> None:
    """A picture of some clips, a row each, with their captions, to look at."""
    image = Image.new("RGB", (frames * (SIZE + 4) + 320, len(clips) * (SIZE + 4)), "white")
    draw = ImageDraw.Draw(image)
    for row, clip in enumerate(clips):
        for i, frame in enumerate(render(clip.program, clip.noise, frames, seed)):
            image.paste(Image.fromarray(frame), (i * (SIZE + 4), row * (SIZE + 4)))
        draw.text((frames * (SIZE + 4) + 8, row * (SIZE + 4) + 40), f"{clip.id}: {clip.program.caption}", "black")
    image.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, count in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="also draw the first twelve test clips, to look at")
    args = parser.parse_args()
    counts = {name: getattr(args, name) for name in COUNTS}
    build(args.folder, counts, args.frames, args.seed)
    if args.sheet:
        sheet(plan(counts, args.seed)["test"][:12], args.sheet, args.frames, args.seed)
    print(f"{args.folder}: " + ", ".join(f"{len(clips)} {name}" for name, clips in plan(counts, args.seed).items()))


if __name__ == "__main__":
    main()
