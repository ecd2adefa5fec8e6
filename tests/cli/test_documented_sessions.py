"""What README and docs show in blocks is run, page by page and top to bottom, in a reader's workspace: offline, on few clips.

Commands are typed as they stand, but for what no machine without a network and a few minutes has: real CLIPs become the embedded one, and
epochs, batches, processes and shards become few. What a page says of a data set is run on clips in that data set's layout.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import official
import pytest
import torch
from documented import NUMBERS, PAGES, blocks, forms, python_blocks
from PIL import Image
from support import demo_split

import xmafast
from xmafast import sharing
from xmafast.cache import build_cache
from xmafast.cli import main
from xmafast.datasets import demo
from xmafast.records import evaluate_run
from xmafast.training import train

FEW = {
    "cache": {"--limit": "8", "--frames": "4", "--sampling": "uniform", "--workers": "2"},
    "train": {"--epochs": "1", "--batch-size": "4"},
    "index": {"--frames": "4", "--workers": "2"},
    "serve": {"--port": "0"},
}
INSTEAD = {"ViT-B-32": "demo", "ViT-B-16": "demo", "8192": "8", "1024": "8", "128": "2", "64": "2", "8": "2", "3/1000": "2/3"}
PLACES = {"RUN": "runs/mine", "CACHE": "caches/demo", "NAME": "lora", "FOLDER": "out", "BRANCH": "main", "TAG": "main"}
ELSEWHERE = {  # blocks that are run by another test, or that no test can run
    "make ": "the targets of the Makefile, which .ci/run calls",
    "#!/bin/bash": "a Slurm job, which needs a cluster; its command is the torchrun line above it",
    "xmafast.load_backbone ": "a list of calls",
}
RUNS = {"xmafast", "torchrun", "curl", "pip", "python3", ".", "#SBATCH"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A reader's home: clips of their own, caches of demo, msrvtt and didemo, a finished and an interrupted run, files to search by."""
    home = tmp_path_factory.mktemp("home")
    clips, work = home / "clips", home / "work"
    clips.mkdir()
    rows = [("video", "caption", "split")]
    for split, count in (("train", 8), ("test", 4)):
        for video in demo_split(split, count).videos:
            name = shutil.copy(video.path, clips)
            rows.append((Path(name).name, video.captions[0], split))
    (clips / "captions.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    msrvtt(work / "datasets" / "msrvtt")
    for name in ("demo", "msrvtt", "didemo"):
        for split, count in (("train", 8), ("test", 6)):
            made = replace(demo_split(split, count), dataset=name)
            build_cache(made, work / "caches" / name / f"{split}.h5", frames=12, sampling="uniform", size=demo.FRAME_SIZE, workers=2)
    settings = {"epochs": 1, "batch_size": 4}
    for name, method in (("mine", "cross-modal"), ("lora", "lora")):
        train(work / "caches" / "demo", work / "runs" / name, method=method, **settings)
        evaluate_run(work / "runs" / name, xmafast.FrameCache(work / "caches" / "demo" / "test.h5"))
    Image.fromarray(xmafast.FrameCache(work / "caches" / "demo" / "test.h5").read([0])[0][0, 0].numpy()).save(work / "dog.jpg")
    np.save(work / "sim.npy", np.random.default_rng(0).normal(size=(40, 40)) + 2 * np.eye(40))
    torch.save(official.cross_modal(image=32), work / "pytorch_model.bin.4")
    return home


def msrvtt(root):
    """MSR-VTT's files, with embedded clips for videos."""
    (root / "videos").mkdir(parents=True)
    sentences, ids = [], []
    for number, video in enumerate(demo_split("train", 12).videos):
        ids.append(f"video{number}")
        shutil.copy(video.path, root / "videos" / f"{ids[-1]}.mp4")
        sentences += [{"video_id": ids[-1], "caption": caption} for caption in video.captions]
    (root / "MSRVTT_train.9k.csv").write_text("\n".join(["video_id", *ids[:8]]) + "\n")
    first = {s["video_id"]: s["caption"] for s in reversed(sentences)}
    (root / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(["video_id,sentence", *(f'{i},"{first[i]}"' for i in ids[8:])]) + "\n")
    (root / "MSRVTT_data.json").write_text(json.dumps({"sentences": sentences}))


@pytest.fixture
def reader(home, tmp_path, monkeypatch):
    """A copy of that home, in whose workspace commands are run."""
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path / "home" / "work")
    monkeypatch.setattr(sharing, "hub_client", lambda: Hub(tmp_path / "hub"))
    whole = demo.load

    def eight(root, name):
        split = whole(root, name)
        return replace(split, videos=split.videos[:8], epochs=1)

    monkeypatch.setattr(demo, "load", eight)
    return tmp_path / "home" / "work"


class Hub:
    """A hub whose repositories are folders; one of them is somebody's."""

    def __init__(self, root):
        self.root = root

    def create_repo(self, repo, **_):
        return f"https://hub.example/{repo}"

    def create_branch(self, repo, **_): ...

    def upload_folder(self, *, repo_id, folder_path, **_):
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def snapshot_download(self, *, repo_id, **_):
        if not (self.root / repo_id).exists():
            shutil.copytree("runs/mine/best", self.root / repo_id)
        return str(self.root / repo_id)


def few(words: list[str]) -> list[str]:
    """The words of a command, offline and in seconds."""
    words = [INSTEAD.get(word, word) for word in words]
    name, *rest = [str(Path("~/clips").expanduser()) if word in ("~/clips", "/videos") else word for word in words]
    places = PLACES | ({"RUN": "runs/lora"} if "--merged" in rest else {})
    rest = [places.get(word, word.replace("runs/RUN", "runs/mine")) for word in rest]
    if "--out" in rest:  # a new one: nothing is overwritten
        at = rest.index("--out") + 1
        rest[at] = next(free for n in range(100) if not Path(free := rest[at] + f"-{n}" * bool(n)).exists() or free.endswith(".xma"))
    if "msrvtt" in rest and "--backbone" not in rest:  # whose own is a CLIP that has to be downloaded
        rest += ["--backbone", "demo"]
    if "--help" not in rest:
        for option, value in FEW.get(name, {}).items():
            if option not in rest and not (name == "index" and any(word.endswith(".xma") for word in rest[:1])) and "--resume" not in rest:
                rest += [option, value]
    return [name, *rest]


def typed(words, capfd):
    """Run xmafast, which must succeed and say something; what it said."""
    capfd.readouterr()
    try:
        main(words)
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    out, err = capfd.readouterr()
    assert code == 0, f"xmafast {' '.join(words)} ended with {code}:\n{err}"
    assert out.strip() or err.strip(), words
    return out


def interrupted(work):
    """A training that SIGINT stopped after its first step."""
    code = (
        "import os, signal, sys\n"
        "from xmafast.training import loop\n"
        "from xmafast.cli import main\n"
        "first = loop.batch_loss\n"
        "def stop(*a, **k):\n    os.kill(os.getpid(), signal.SIGINT)\n    return first(*a, **k)\n"
        "loop.batch_loss = stop\n"
        "main(sys.argv[1:])\n"
    )
    command = ["train", "caches/demo", "--epochs", "2", "--batch-size", "4", "--out", "runs/stopped"]
    assert subprocess.run([sys.executable, "-c", code, *command], cwd=work, capture_output=True).returncode == 130


class Serving:
    """``xmafast serve`` in a process of its own, which is asked for its page."""

    def __init__(self, words):
        command = [sys.executable, "-u", "-m", "xmafast.cli", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout
        for line in self.process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                self.port = found[1]
                break
        else:
            raise AssertionError("the server did not say where it listens")
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=60) as page:
            assert b"<title>" in page.read()

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(60) == 0


def run_block(block, work, capfd, servers):
    for line in block.splitlines():
        words = shlex.split(line, comments=not line.startswith("#"))
        if not words or words[0] in ("#SBATCH", ".", "pip", "python3"):  # installation is tests/test_slow.py's
            continue
        if words[0] == "torchrun":
            at = words.index("train")
            launch = [sys.executable, "-m", "torch.distributed.run", *few(words[:at])[1:], *few(words[at:])]
            subprocess.run(launch, check=True, timeout=300)
        elif words[0] == "curl":
            line = line.replace(":8765", f":{servers[-1].port}")
            found = json.loads(subprocess.run(shlex.split(line), check=True, capture_output=True, timeout=60).stdout)
            assert found["hits"]
        else:
            for form in forms(line):
                form = few(form)
                if form[0] in ("cache", "demo") and "--shard" not in form:  # as if for the first time
                    shutil.rmtree(work / "caches" / form[min(1, len(form) - 1)], ignore_errors=True)
                if form[0] == "serve":
                    servers.append(Serving(form))
                elif form[:2] == ["train", "--resume"]:
                    interrupted(work)
                    typed(["train", "--resume", "--out", "runs/stopped"] if "--out" in form else form, capfd)
                    shutil.rmtree(work / "runs" / "stopped")
                else:
                    typed(form, capfd)


def shown(page):
    """The page's blocks that are commands."""
    return [block for block in blocks(page) if block.split()[0] in RUNS and not any(block.startswith(start) for start in ELSEWHERE)]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if shown(page)], ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_from_top_to_bottom(page, reader, capfd):
    servers = []
    try:
        for block in shown(page):
            run_block(block, reader, capfd, servers)
    finally:
        for server in servers:
            server.stop()
    assert not {*NUMBERS, *PLACES} & {path.name for path in reader.rglob("*")}, "nothing was called by a placeholder"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cache-format", "evaluation", "sharing"])
def test_the_python_of_a_page_runs(name, reader, capfd):
    """README's, docs/python.md's, docs/search.md's and docs/adding-a-method.md's have tests of their own."""
    typed(["cache", "demo", "--level", "tokens", "--block", "4", "--limit", "8", "--frames", "4", "--workers", "2"], capfd)
    page = next(page for page in PAGES if page.stem == name)
    rng = np.random.default_rng(0)
    space = {"first": rng.normal(size=(9, 9)), "second": rng.normal(size=(9, 9))}
    found = python_blocks(page)
    assert found
    for number, block in enumerate(found):
        exec(compile(block, f"{page.name}, block {number}", "exec"), space)
    assert any(space.get(made) is not None for made in ("tokens", "result", "retriever"))
