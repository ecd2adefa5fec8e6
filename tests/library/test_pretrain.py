"""What the demo backbone's pretraining reads."""

import json

import numpy as np
import pytest
from PIL import Image

from xmafast.datasets import demo
from xmafast.demo import pretrain


@pytest.fixture
def stills(tmp_path):
    """Three emoji in both designs, one of them a test clip's, with the variation selector in its name."""
    codes = {"1F415": "dog", "2764-FE0F": "red heart", "1F680": "rocket"}
    rows = [{"hexcode": code, "label": label, "tags": ["a"], "group": 1} for code, label in codes.items()]
    (tmp_path / "texts/package/en").mkdir(parents=True)
    (tmp_path / "texts/package/en/data.json").write_text(json.dumps(rows))
    for design in ("google", "twitter"):
        folder = tmp_path / design / "package" / "img" / design / "64"
        folder.mkdir(parents=True)
        for code in codes:
            Image.fromarray(np.full((64, 64, 4), 200, np.uint8)).save(folder / f"{code.lower()}.png")
    return tmp_path


def test_the_emoji_of_the_test_clips_can_be_left_out_of_both_designs_and_the_texts(stills):
    whole, images = pretrain.read_stills(stills)
    assert [row["label"] for row in whole] == ["dog", "red heart", "rocket"]
    assert images.shape == (3, 2, 4, 64, 64)
    some, images = pretrain.read_stills(stills, pretrain.test_emoji())
    assert [row["label"] for row in some] == ["dog", "rocket"]
    assert images.shape == (2, 2, 4, 64, 64)


def test_the_emoji_of_the_test_clips_are_known_by_code_point():
    assert len(pretrain.test_emoji()) == len(demo.load(demo.ROOT, "test").videos)
    assert "2764" in pretrain.test_emoji()
    assert not any("fe0f" in code for code in pretrain.test_emoji())


def test_a_variant_does_not_take_the_demo_backbones_place(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pretrain", "--leave-out-test"])
    with pytest.raises(SystemExit):
        pretrain.main()
    assert "name a folder for it with --out" in capsys.readouterr().err
