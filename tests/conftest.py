"""Fixtures: small frozen models, a few real clips, and data that a machine may or may not have."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from support import SMALL_TEXT, SMALL_TRUNK, demo_split, shallow, shallow_timm

from xmafast.backbone import Backbone
from xmafast.cache import build_cache
from xmafast.pretrained import load_backbone

if beside := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):  # each process its share of the cores, and what it starts
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // beside))
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))


@pytest.fixture(scope="session")
def demo_backbone() -> Backbone:
    return load_backbone("demo")


@pytest.fixture(scope="session")
def vit_b32() -> Backbone:
    return shallow("ViT-B-32")


@pytest.fixture(scope="session")
def vit_b16() -> Backbone:
    return shallow("ViT-B-16")


@pytest.fixture(scope="session")
def vit_l14() -> Backbone:
    return shallow("ViT-L-14", vision=4, text=2)


@pytest.fixture(scope="session")
def siglip_b16() -> Backbone:
    """At its real widths."""
    return shallow_timm("ViT-B-16-SigLIP")


@pytest.fixture(scope="session")
def siglip() -> Backbone:
    """No class token, attention pooling, no projection; a text encoder without causal mask or start of text."""
    return shallow_timm("ViT-B-16-SigLIP", vision=4, trunk=SMALL_TRUNK, **SMALL_TEXT)


@pytest.fixture(scope="session")
def eva02() -> Backbone:
    """Rotary positions, q, k and v projected one by one, a norm inside attention and MLP."""
    return shallow_timm("EVA02-B-16", trunk=SMALL_TRUNK, **SMALL_TEXT)


@pytest.fixture(scope="session")
def pe_core() -> Backbone:
    """Rotary positions, a fused projection, class token and attention pooling."""
    return shallow_timm("PE-Core-B-16", trunk=SMALL_TRUNK, **SMALL_TEXT)


@pytest.fixture(scope="session")
def small_caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.h5 (24 clips) and test.h5 (12 clips) of 4 frames at 96 px; read only."""
    folder = tmp_path_factory.mktemp("caches") / "demo"
    for name, count in (("train", 24), ("test", 12)):
        build_cache(demo_split(name, count), folder / f"{name}.h5", frames=4, sampling="uniform", size=96, workers=2)
    return folder


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A writable folder of six real clips with a captions file."""
    folder = tmp_path / "clips"
    folder.mkdir()
    rows = []
    for video in demo_split("train", 6).videos:
        assert video.path
        shutil.copy(video.path, folder / video.path.name)
        rows.append({"video": video.path.name, "captions": list(video.captions)})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Real annotation files and videos that may not enter the project."""
    folder = os.environ.get("XMAFAST_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("XMAFAST_TEST_DATA names no folder of real data set files")
    return Path(folder)
