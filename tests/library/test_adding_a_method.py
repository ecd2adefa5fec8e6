"""docs/adding-a-method.md, followed to the letter: its file is run, its line is added, and the method does all that others do."""

import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch

from xmafast.backbone import Shape
from xmafast.cache import FrameCache
from xmafast.evaluation import evaluate
from xmafast.methods import METHODS, build_method
from xmafast.retriever import Retriever, load
from xmafast.training import train

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-method.md"


@pytest.fixture
def added(monkeypatch):
    """The page's file as a module, and its entry in METHODS."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    module = types.ModuleType("xmafast.methods.scale_shift")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    monkeypatch.setitem(METHODS, module.ScaleShift.name, module.ScaleShift)
    return module.ScaleShift.name


def test_the_pages_method_keeps_the_contract(added, demo_backbone):
    torch.manual_seed(0)
    model = Retriever(demo_backbone, added)
    x, captions = torch.randint(0, 256, (2, 2, 96, 96, 3), dtype=torch.uint8), ["red heart", "rain"]
    with torch.no_grad():
        start = model(captions, x)
        model.enabled = False
        assert torch.equal(model(captions, x), start)
        model.enabled = True
        for parameter in model.method.parameters():
            parameter.normal_(std=0.1)
        assert not torch.equal(model(captions, x), start)
        torch.testing.assert_close(model.encode_frames(x)[:1], model.encode_frames(x[:1]), rtol=1e-4, atol=1e-5)
    model(captions, x).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.method.parameters())
    assert all(p.grad is None for p in model.backbone.parameters())


def test_the_pages_method_is_built_trained_evaluated_and_loaded(added, demo_backbone, small_caches, tmp_path):
    assert build_method(added, Shape(8, 2, 4, 3, 4, 1)).trainable == 2 * 2 * 8 + 3 * 2 * 4
    trained = train(small_caches, tmp_path / "run", method=added, backbone=demo_backbone, epochs=1, batch_size=8, both=False)
    assert trained.metrics["trainable"] == 6 * 2 * 192
    assert json.loads((tmp_path / "run/best/adapter_config.json").read_text())["options"] == {"both": False}
    cache = FrameCache(small_caches / "test.h5")
    assert evaluate(load(tmp_path / "run", demo_backbone), cache)["t2v"] == evaluate(trained.retriever, cache)["t2v"]
