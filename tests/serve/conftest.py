"""A small library of real clips with two adapters, and a client of its server."""

import shutil
import sqlite3

import pytest
import torch
from support import demo_split

pytest.importorskip("starlette", reason="the extra serve is not installed")

from PIL import Image
from serving import CANARY, client_of

from xmafast.index import Index
from xmafast.retriever import Retriever


@pytest.fixture(scope="session")
def models(demo_backbone):
    torch.manual_seed(1)
    other = Retriever(demo_backbone, "lora")
    for parameter in other.trained.values():
        torch.nn.init.normal_(parameter, std=0.05)
    return {"frozen": Retriever(demo_backbone, None).eval(), "other": other.eval()}


@pytest.fixture(scope="session")
def made(models, tmp_path_factory):
    """(library, its folder): six clips in two folders and a picture; beside the folder a file that is none of the library's."""
    root = tmp_path_factory.mktemp("served")
    folder = root / "videos"
    (folder / "sub").mkdir(parents=True)
    (root / "secret.mp4").write_bytes(CANARY)
    for i, video in enumerate(demo_split("train", 6).videos):
        shutil.copy(video.path, folder / ("sub" if i % 2 else ".") / video.path.name)
    Image.effect_mandelbrot((200, 120), (-2, -1, 1, 1), 60).convert("RGB").save(folder / "fractal.png")
    for name, model in models.items():
        Index.build(root / "lib.xma", folder, model, name=name, frames=4, workers=1)
    return root / "lib.xma", folder


@pytest.fixture
def own(made, tmp_path, models):
    """The same, to be changed: (library, its folder, its index)."""
    library, _ = made
    shutil.copytree(library.parent, tmp_path / "own", copy_function=shutil.copy2)
    own = tmp_path / "own"
    with sqlite3.connect(own / "lib.xma" / "catalog.sqlite") as catalog:  # the same files, in another place
        catalog.execute("UPDATE meta SET value = json_quote(?) WHERE key = 'root'", (str(own / "videos"),))
    return own / "lib.xma", own / "videos", Index(own / "lib.xma", models)


@pytest.fixture(scope="session")
def index(made, models):
    return Index(made[0], models)


@pytest.fixture(scope="session")
def client(index):
    with client_of(index) as client:
        yield client
