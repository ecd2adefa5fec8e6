"""Libraries for tests: a source without files, whose frames are random and whose model is a random projection."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
from pathlib import Path

import numpy as np

from xmafast.index import Index
from xmafast.index.catalog import Adapter, Item
from xmafast.index.sources import Entry, Frames
from xmafast.index.writer import Writer

SETTINGS = {"frames": 4, "sampling": "fps", "size": 8}


def adapter(name="made", dim=16, pooling="text-conditioned"):
    about = {"origin": name, "backbone": "demo", "pretrained": "demo", "backbone_sha256": "0" * 64, "method": None, "frozen": True}
    about |= {"header": pooling, "pooling": pooling, "temperature": 5.0, "words": 32, "patch": 1.0, "dim": dim, "image_size": 8}
    return Adapter(name, hashlib.sha256(f"{name}{dim}".encode()).hexdigest()[:16], about)


def made(name, dim=16, seed=0):
    """(frames (n, D), pooled (D,)) float16 of an item, by its name alone."""
    generator = np.random.default_rng([seed, *hashlib.sha256(name.encode()).digest()[:8]])
    frames = (3 * generator.standard_normal((int(generator.integers(1, 5)), dim))).astype(np.float16)
    wide = frames.astype(np.float32)
    unit = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).mean(0)
    return frames, (unit / np.linalg.norm(unit)).astype(np.float16)


def item(name, mtime=1_000_000_000):
    return Item(name, name, len(name), mtime, hashlib.sha256(name.encode()).hexdigest()[:32])


def fill(path: Path, names, *, adapters=None, keep=True):
    """Add items to a library, or make one; with ``keep`` False these are all that is left."""
    adapters = adapters or {"made": adapter()}
    with Writer(path) as writer:
        known = writer.contents()
        items = writer.items() if keep else {}
        for name in names:
            new = item(name)
            items[name] = new
            for one in adapters.values():
                frames, pooled = made(name, one.about["dim"])
                if new.hash not in known:
                    writer.add_content(new.hash, np.arange(len(frames)), [f"{name}/{i}".encode() for i in range(len(frames))])
                    known[new.hash] = None
                writer.add_vectors(one.model, new.hash, frames, pooled)
        meta = {"root": str(path.parent / "videos"), "kind": "folder", **SETTINGS, "xmafast_version": "0"}
        writer.publish(items.values(), adapters, {}, meta)


class Pictures:
    """A source of items as ``{"a": seed}``, whose frames are noise."""

    kind = "folder"

    def __init__(self, root: Path, seeds, settings=None):
        self.root, self.seeds, self.settings = root, dict(seeds), settings or {"frames": 3, "sampling": "fps", "size": 96}
        self.asked = []  # every item of which frames were asked for
        self.failing = {}

    def scan(self):
        entries = [Entry(name, name, 1, seed) for name, seed in sorted(self.seeds.items())]
        return entries, {}

    def digest(self, entry):
        return hashlib.sha256(str(self.seeds[entry.id]).encode()).hexdigest()[:32]

    def frames(self, entries, work):
        for entry in entries:
            self.asked.append(entry.id)
            if entry.id in self.failing:
                yield entry, self.failing[entry.id]
                continue
            generator = np.random.default_rng(self.seeds[entry.id])
            n = 1 + self.seeds[entry.id] % 3
            yield entry, Frames(generator.integers(0, 256, (n, 96, 96, 3), np.uint8), np.arange(n, dtype=np.float32))


def content(path: Path):
    """All that a library shows."""
    index = Index(path)
    found: dict = {"adapters": sorted(index.adapters)}
    for name in index.ids:
        times = index.times(name)
        thumbs = [index.thumbnail(name, i) for i in range(len(times))]
        found[name] = times, thumbs, [index.embeddings(name, one).tobytes() for one in index.adapters]
    return found


def before(folder: Path):
    fill(folder / "lib.xma", ["a", "b", "c", "d"], adapters={"made": adapter(), "old": adapter("old", 8)})


def change(folder: Path):
    """Items go, items come, an adapter goes, another comes, and so much is left unused that the files are written again."""
    fill(folder / "lib.xma", ["c", "e", "f"], adapters={"made": adapter(), "new": adapter("new", 8)}, keep=False)


class _Counted(sqlite3.Connection):
    step = staticmethod(lambda: None)

    def execute(self, *arguments):
        self.step()
        return super().execute(*arguments)

    def executemany(self, *arguments):
        self.step()
        return super().executemany(*arguments)


def change_until(folder: Path, last, report=None):
    """``change``, which kills itself with SIGKILL at its step ``last``: a statement, a write, or any change to a file's name."""
    taken = 0

    def step():
        nonlocal taken
        taken += 1
        if taken == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def stepwise(owner, attribute):
        original = getattr(owner, attribute)

        def counted(*arguments, **options):
            step()
            return original(*arguments, **options)

        setattr(owner, attribute, counted)

    _Counted.step = staticmethod(step)
    connect = sqlite3.connect
    sqlite3.connect = lambda *arguments, **options: connect(*arguments, factory=_Counted, **options)
    for owner, attribute in ((os, "fsync"), (Path, "unlink"), (Path, "replace"), (Path, "open"), (Writer, "_append")):
        stepwise(owner, attribute)
    change(folder)
    if report:
        report.send(taken)
