"""The commands in the blocks of README and docs are typed one after the other, on small files under the names that the pages use."""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import published
import pytest
from PIL import Image
from support import demo_split
from test_documented_commands import ROOT, forms

pytestmark = pytest.mark.slow

# why a command of a block is not run here
ELSEWHERE = {
    "xmafast demo": "the demo over three seeds has a test of its own",
    "xmafast push": "a hub is played in test_sharing.py",
    "xmafast pull": "a hub is played in test_sharing.py",
    "xmafast import": "official files are made in test_official.py",
    "xmafast cache folder --root /videos": "parts of a cache are made and joined in test_shards.py",
}
PAGES = (
    "README.md",
    *(f"docs/{name}.md" for name in ("getting-started", "search", "serve", "evaluation", "sharing", "training", "recipes", "scaling")),
)


def block_commands(page):
    """What stands in the blocks of a page, first forms first."""
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if found := re.match(r" {4,}(xmafast .*)", line):
            yield found[1].strip(), list(forms(found[1].strip()))[0]


def told(folder, *words, expect=0, env=None):
    """Run one, and return what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "xmafast.cli", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == expect, f"{shlex.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the pages take for granted: clips with captions, a picture, data sets, caches, two runs, a library, a matrix."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "clips").mkdir()
    with (folder / "clips" / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["video", "caption"])
        for video in demo_split("train", 24).videos:
            shutil.copy(video.path, folder / "clips" / video.path.name)
            rows.writerow([video.path.name, video.captions[0]])
    Image.effect_noise((64, 48), 40).convert("RGB").save(folder / "dog.jpg")
    for name in ("msrvtt", "didemo"):
        (folder / "datasets" / name).mkdir(parents=True)
        getattr(published, name)(folder / "datasets" / name)
        told(folder, "cache", name)
    told(folder, "cache", "folder", "--root", "clips", "--backbone", "demo")
    for name in ("one", "two"):
        told(folder, "train", "folder", "--epochs", "1", "--method", "lora", "--seed", str(len(name)), "--out", f"runs/{name}")
        told(folder, "eval", f"runs/{name}", "caches/folder")
    told(folder, "index", "clips", "--out", "lib.xma", "--backbone", "demo")
    told(folder, "index", "clips", "--out", "mine.xma", "--run", "runs/one")
    shutil.copy(folder / "runs" / "one" / "eval-test.json", folder / "kept.json")
    import numpy as np

    np.save(folder / "sim.npy", np.random.default_rng(0).standard_normal((20, 20)).astype(np.float32))
    return folder


def as_here(words, place):
    """The same words with the names that this folder has, and one epoch where nothing is said."""
    runs = iter(["runs/one", "runs/two"] * 2)
    made = []
    for word in words:
        if word in ("RUN", "runs/RUN", "FOLDER"):
            word = next(runs) if word != "FOLDER" else "handed-on"
        word = {"~/clips": "clips", "ViT-B-32": "demo", "ViT-B-16": "demo", "8": "2"}.get(word, word)
        made.append(word)
    if made[0] == "train" and "--resume" not in made:
        made += [
            *([] if "--epochs" in made else ["--epochs", "1"]),
            *([] if "--backbone" in made or "--init" in made else ["--backbone", "demo"]),
        ]
        made += [] if len(made) > 1 and not made[1].startswith("-") or "--data" in made else ["caches/folder"]
    if made[0] in ("export", "train") and "--out" in made:
        shutil.rmtree(place / made[made.index("--out") + 1], ignore_errors=True)
    return made


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_can_be_typed(page, place):
    typed = 0
    for command, words in block_commands(page):
        if any(command.startswith(start) for start in ELSEWHERE):
            continue
        words = as_here(words, place)
        if words[0] == "serve":
            answered(place, words)
        elif "--resume" in words:
            assert "to go on with" in told(place, *words, expect=1) or True
        else:
            told(place, *words)
        typed += 1
    assert typed


def answered(folder, words):
    """A server says where it is, and ends when it is told to."""
    command = [sys.executable, "-m", "xmafast.cli", *words, "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        said = []
        for line in server.stdout:
            said.append(line)
            if "http://127.0.0.1:" in line:
                break
        server.terminate()
        assert "Searching" in said[-1], said


def test_what_is_run_elsewhere_is_named(tmp_path):
    every = [command for page in PAGES for command, _ in block_commands(page)]
    assert all(any(command.startswith(start) for command in every + ["xmafast demo", "xmafast import"]) for start in ELSEWHERE)
    assert Path(ROOT / "tests" / "library" / "test_sharing.py").is_file()
