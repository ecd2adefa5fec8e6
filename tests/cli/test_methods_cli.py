"""Methods by name and option, as a user types them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import demo_split

from xmafast import write_stream
from xmafast.cache import FrameCache, build_cache
from xmafast.datasets import demo
from xmafast.methods import METHODS


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The caches of four clips a split, made once."""
    folder = tmp_path_factory.mktemp("made") / "demo"
    for name in ("train", "test"):
        build_cache(demo_split(name, 4), folder / f"{name}.h5", size=96, frames=2, sampling=demo.SAMPLING, workers=1)
    return folder


@pytest.fixture
def cached(call, made, tmp_path):
    shutil.copytree(made, tmp_path / "caches" / "demo")


FAST = ("--epochs", "1", "--batch-size", "2", "--json")
SECOND = ("--set", "second=demo", "second_pretrained=none")
FEATURE = ["clip-adapter", "memory", "hada"]


@pytest.mark.parametrize(
    "method", ["mv-adapter", "coop", *FEATURE, *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m not in FEATURE)]
)
def test_every_method_trains_and_evaluates(call, cached, method):
    more = SECOND if method == "hada" else ()
    if method == "stream":
        write_stream("speech.h5", {name: np.ones((1, 4)) for name in FrameCache("caches/demo/train.h5").ids})
        more = ("--stream", "speech.h5")
    code, out, err = call("train", "--method", method, "--out", "run", *FAST, *more)
    assert code == 0, err
    trained = json.loads(out)["trainable"]
    code, out, err = call("eval", "run", "--json")
    assert code == 0, err
    assert json.loads(out)["trainable"] == trained
    assert (trained > 0) == (method != "memory")
    code, out, err = call("search", "red heart", "run", "--topk", "2", "--json")
    assert code == 0, err
    assert len(json.loads(out)) == 2


def test_an_embedding_cache_and_a_memory_without_a_step_of_training(call, cached):
    assert call("cache", "demo", "--level", "embeddings")[0] == 0
    code, out, err = call("train", "--method", "memory", "--out", "run")
    assert code == 0, err
    assert "settings tried on validation" in out
    assert "Trained 0 parameters" in out
    rows = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if "epoch" in row] == [1]
    assert sum("alpha" in row for row in rows) == json.loads(Path("run/metrics.json").read_text())["fitted"]["tried"]
    assert call("eval", "run", "--json")[0] == 0
    assert not Path("caches/demo/embeddings").exists()  # nothing was computed a second time


def test_options_of_a_method_are_set_by_name(call, cached):
    code, _, err = call("train", "--method", "mv-adapter", "--set", "tied=1", "tying=up-out", "norm=true", "--out", "run", *FAST)
    assert code == 0, err
    options = json.loads(Path("run/best/adapter_config.json").read_text())["options"]
    assert (options["tied"], options["tying"], options["norm"], options["frames"]) == (1, "up-out", True, 2)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--method", "mv-adapter", "--set", "tied"), "NAME=VALUE"),
        (("--method", "mv-adapter", "--set", "tide=3"), "no option 'tide'"),
        (("--method", "mv-adapter", "--set", "tied=many"), "is int, as 2, not 'many'"),
        (("--method", "mv-adapter", "--set", "tying=sideways"), "tying"),
        (("--method", "coop", "--bottleneck", "4"), "no option 'bottleneck'"),
        (("--method", "clip-adapter", "--set", "towers=vison"), "Did you mean 'vision'"),
        (("--method", "clip-adapter", "--set", "ratio=2"), "ratio must lie between 0"),
        (("--method", "memory", "--set", "pairs=-1"), "pairs must be at least 0"),
        (("--method", "hada", "--set", "second=ViT-B-33"), "Did you mean 'ViT-B-32'"),
        (("--method", "hada", "--set", "second=3"), "is str, as 'ViT-B-16', not 3"),
        (("--method", "hada", *SECOND, "heads=5"), "width must be a multiple of heads"),
        (
            (
                "--method",
                "mv-adaptor",
            ),
            "Did you mean 'mv-adapter'",
        ),
    ],
)
def test_options_that_do_not_fit_get_one_sentence(call, cached, arguments, reason):
    code, _, err = call("train", *arguments)
    assert code == 2
    assert reason in err
    assert "Traceback" not in err


def test_a_header_is_trained_alone_and_evaluated(call, cached):
    code, out, err = call("train", "--method", "none", "--header", "seqTransf", "--out", "run", *FAST)
    assert code == 0, err
    assert "Training seqTransf" in err
    trained = json.loads(out)["trainable"]
    assert json.loads(Path("run/best/adapter_config.json").read_text())["method"] is None
    code, out, err = call("eval", "run", "--json")
    assert code == 0, err
    assert json.loads(out)["trainable"] == trained > 0
    assert "zero_shot" in json.loads(out)


def test_without_a_method_and_a_header_that_trains_there_is_nothing_to_do(call, cached):
    code, _, err = call("train", "--method", "none", "--header", "mean")
    assert code == 2
    assert "nothing to train" in err
    code, _, err = call("train", "--method", "none", "--header", "seqTransf", "--bottleneck", "4")
    assert code == 2
    assert "has no options, and is given bottleneck" in err


@pytest.mark.slow  # counts the multiply-accumulates of every method
def test_methods_are_listed_with_size_cost_and_source(call):
    code, out, err = call("methods", "--backbone", "demo", "--json")
    assert code == 0, err
    rows = {row["name"]: row for row in json.loads(out)}
    assert set(rows) == {*METHODS, "seqTransf"}
    for row in rows.values():
        assert (row["trainable"] > 0) == (row["name"] != "memory")
        assert row["gmacs"] == pytest.approx(row["gmacs_video"] + row["gmacs_text"])
        assert all(row[key] for key in ("family", "adapts", "paper", "licence", "header"))
    assert rows["bias"]["gmacs"] < rows["cross-modal"]["gmacs"] < rows["mv-adapter"]["gmacs"]
    code, out, err = call("methods", "--backbone", "demo")
    assert code == 0, err
    assert "arXiv 2211.09623" in " ".join(out.split())


def test_plugs_are_trained_beside_a_method_and_their_options_set(call, cached):
    given = ("--plug", "tempme", "--plug", "disco", "--set", "rank=4", "disco.vision_blocks=2")
    code, out, err = call("train", "--method", "lora", *given, "--out", "run", *FAST)
    assert code == 0, err
    assert "Training lora+tempme+disco" in err
    config = json.loads(Path("run/best/adapter_config.json").read_text())
    assert config["options"]["rank"] == 4
    assert [(name, options.get("vision_blocks")) for name, options in config["plugs"]] == [("tempme", None), ("disco", 2)]
    code, out, err = call("eval", "run", "--json")
    assert code == 0, err
    assert json.loads(out)["protocol"]["patch"] == 1.0


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (("--plug", "tempmy"), "Did you mean 'tempme'"),
        (("--plug", "lora", "--plug", "lora"), "given twice"),
        (("--set", "disco.vision_blocks=2"), "name it with --plug disco"),
        (("--plug", "disco", "--set", "disco.rank=2"), "no option 'rank'"),
        (("--method", "convpass", "--plug", "tempme"), "needs every token in its place"),
    ],
)
def test_plugs_that_do_not_fit_get_one_sentence(call, cached, given, reason):
    code, _, err = call("train", *given)
    assert code == 2, err
    assert reason in err
    assert "Traceback" not in err


def test_a_patch_coefficient_of_zero_is_zero_shot_and_others_lie_between(call, cached):
    assert call("train", "--lr", "0.05", "--out", "run", *FAST)[0] == 0
    results = {}
    for patch in ("0", "0.5", "1"):
        code, out, err = call("eval", "run", "--patch", patch, "--json")
        assert code == 0, err
        results[patch] = json.loads(out)
    assert results["0"]["t2v"] == results["0"]["zero_shot"]["t2v"]
    assert results["0.5"]["protocol"]["patch"] == 0.5
    assert call("eval", "run", "--patch", "1.5")[0] == 2
    assert call("train", "--method", "coop", "--out", "prompted", *FAST)[0] == 0
    code, _, err = call("eval", "prompted", "--patch", "0.5")
    assert code == 2
    assert "can only be 0 or 1" in err
