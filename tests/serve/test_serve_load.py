"""Fifty people at once who type into a library of 10,000 clips, for a minute. The figures go to the file that XMAFAST_LOAD_RECORD names."""

import asyncio
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from support import demo_split

from xmafast.index import Index
from xmafast.index.catalog import Adapter, Item
from xmafast.index.models import describe, model_of
from xmafast.index.writer import Writer

pytestmark = [pytest.mark.slow, pytest.mark.alone]
CLIPS, FRAMES = 10_000, 12
CLIENTS, EACH, SECONDS = 50, 2.0, 60.0  # 2 requests a second each: 100 in all


@pytest.fixture(scope="module")
def large(made, models, tmp_path_factory):
    """10,000 clips: the six real ones' embeddings, each time with other noise; their files are the six."""
    small, folder = Index(made[0], models), made[1]
    path = tmp_path_factory.mktemp("large") / "lib.xma"
    model = models["frozen"]
    adapter = Adapter("frozen", model_of(model), describe(model, "demo"))
    generator = np.random.default_rng(0)
    videos = [name for name in small.ids if name.endswith(".mp4")]
    items = []
    with Writer(path) as writer:
        for i in range(CLIPS):
            name = videos[i % len(videos)]
            known, whole = small.item(name), small.embeddings(name, "frozen").astype(np.float32)
            frames = np.resize(whole, (FRAMES, whole.shape[1]))
            frames = frames + 0.5 * frames.std() * generator.standard_normal(frames.shape, np.float32)
            unit = (frames / np.linalg.norm(frames, axis=1, keepdims=True)).mean(0)
            pictures = [small.thumbnail(name, j % len(small.times(name))) for j in range(FRAMES)]
            digest = hashlib.sha256(str(i).encode()).hexdigest()[:32]
            writer.add_content(digest, np.arange(FRAMES) / 4, pictures)
            writer.add_vectors(adapter.model, digest, frames.astype(np.float16), (unit / np.linalg.norm(unit)).astype(np.float16))
            items.append(Item(f"{i:05}/{name}", known.source, known.size, known.mtime, digest))
        meta = {"root": str(folder), "kind": "folder", "frames": FRAMES, "sampling": "fps", "size": 96, "xmafast_version": "0"}
        writer.publish(items, {"frozen": adapter}, {}, meta)
    return path


async def ask(reader, writer, path, more=""):
    """(status, body) of one request on a connection that is kept."""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{more}\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.split("content-length: ")[1].split("\r\n")[0])
    return int(head.split(" ")[1]), await reader.readexactly(length)


async def person(port, seed, begin, captions, found):
    """Type captions letter by letter, and look at pictures and videos of what is found; (what, seconds since it was due, status)."""
    chance = random.Random(seed)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    caption, typed, hits = chance.choice(captions), 1, []
    for step in range(int(SECONDS * EACH)):
        due = begin + (step + seed / CLIENTS) / EACH
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        kind = chance.choices(("search", "picture", "video", "library"), (70, 15, 10, 5))[0]
        if kind in ("picture", "video") and not hits:
            kind = "search"
        if kind == "search":
            path = f"/api/search?topk=24&q={quote(caption[:typed])}"
            typed += 1
            if typed > len(caption):
                caption, typed = chance.choice(captions), 1
        else:
            path = "/api/library" if kind == "library" else chance.choice(hits)["thumbnail" if kind == "picture" else "file"]
        status, body = await ask(reader, writer, path, "Range: bytes=0-65535\r\n" if kind == "video" else "")
        found.append((kind, time.perf_counter() - due, status))
        if kind == "search":
            hits = json.loads(body)["hits"]
            assert len(hits) == 24
    writer.close()


def busy():
    """Seconds of CPU that the whole machine has used."""
    numbers = [int(part) for part in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(numbers) - numbers[3] - numbers[4]) / os.sysconf("SC_CLK_TCK")


def used(pid):
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="only Linux says who used the processor")
def test_fifty_people_and_ten_thousand_clips(large):
    captions = sorted({text for video in demo_split("train", 450).videos for text in video.captions})
    command = [sys.executable, "-m", "xmafast.cli", "serve", large, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=large.parent) as process:
        try:
            port = int(process.stdout.readline().split("127.0.0.1:")[1].split("/")[0])
            found = []

            async def crowd():
                begin = time.perf_counter() + 0.2
                await asyncio.gather(*(person(port, seed, begin, captions, found) for seed in range(CLIENTS)))

            before, start = (busy(), used(process.pid), used(os.getpid())), time.perf_counter()
            asyncio.run(crowd())
            took = time.perf_counter() - start
            spent = [now - then for now, then in zip((busy(), used(process.pid), used(os.getpid())), before, strict=True)]
        finally:
            process.terminate()
            process.wait(30)
        assert "Traceback" not in process.stderr.read()
    times = np.array([seconds for _, seconds, _ in found]) * 1000
    searches = np.array([seconds for kind, seconds, _ in found if kind == "search"]) * 1000
    others = (spent[0] - spent[1] - spent[2]) / (took * (os.cpu_count() or 1))
    figures = {
        "requests": len(found),
        "errors": sum(status not in (200, 206) for *_, status in found),
        "seconds": round(took, 1),
        "milliseconds": {f"p{p}": round(float(np.percentile(times, p)), 1) for p in (50, 95, 99, 100)},
        "searches": {"count": len(searches), **{f"p{p}": round(float(np.percentile(searches, p)), 1) for p in (50, 95, 99)}},
        "server_cpu_seconds": round(spent[1], 1),
        "clients_cpu_seconds": round(spent[2], 1),
        "cores": os.cpu_count(),
        "share_of_the_machine_used_by_others": round(others, 2),
    }
    print(json.dumps(figures))
    if record := os.environ.get("XMAFAST_LOAD_RECORD"):
        Path(record).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    assert figures["requests"] == CLIENTS * int(SECONDS * EACH)
    assert figures["errors"] == 0
    if figures["milliseconds"]["p95"] >= 250 and others > 0.2:
        pytest.skip(f"no error, but other work took {others:.0%} of this machine, so its times say nothing: {figures['milliseconds']}")
    assert figures["milliseconds"]["p95"] < 250
