"""The published recipes, against the papers' numbers, and the published optimiser, against its formula."""

import json

import numpy as np
import pytest
import torch
from support import demo_split

from xmafast import FrameCache
from xmafast.cache import build_cache
from xmafast.errors import UsageError
from xmafast.methods import METHODS, build_method
from xmafast.pretrained import load_backbone, meta_backbone
from xmafast.retriever import Retriever
from xmafast.training import Recipe, Trainer, make_optimizer, schedule, train, training_split
from xmafast.training.recipe import BertAdam
from xmafast.training.recipes import PUBLISHED, published
from xmafast.training.settings import Settings


@pytest.fixture
def cache_of(tmp_path):
    """A tiny cache of the demo's clips that says it is another data set's."""

    def make(dataset, frames):
        from dataclasses import replace

        split = replace(demo_split("train", 4), dataset=dataset)
        build_cache(split, tmp_path / dataset / "train.h5", frames=frames, sampling="uniform", size=32, workers=1)
        return tmp_path / dataset

    return make


# dataset: bottleneck, shared, epochs, frames, words, parameters on ViT-B/32
CROSS_MODAL = {
    "msrvtt": (8, 16, 5, 12, 32, 519_168),
    "msvd": (16, 16, 5, 12, 32, 1_008_000),
    "vatex": (16, 64, 5, 12, 32, 988_416),
    "didemo": (8, 8, 5, 64, 64, 520_896),
    "activitynet": (16, 512, 20, 64, 64, 805_632),
}
# dataset: tied blocks, epochs, frames, words, batch, parameters on ViT-B/16
MV_ADAPTER = {
    "msrvtt": (2, 5, 12, 32, 128, 3_572_736),
    "msvd": (2, 5, 12, 32, 128, 3_572_736),
    "lsmdc": (3, 5, 12, 32, 128, 3_615_008),
    "didemo": (2, 15, 32, 64, 64, 3_628_032),
    "activitynet": (1, 15, 32, 64, 64, 3_585_760),
}


def parameters(method, recipe):
    known = {"frames": recipe.frames, "words": recipe.words}
    return build_method(method, meta_backbone(recipe.backbone).shape, known=known, **recipe.options).trainable


@pytest.mark.parametrize("dataset", CROSS_MODAL)
def test_cross_modal_recipes_are_the_papers(dataset):
    bottleneck, shared, epochs, frames, words, count = CROSS_MODAL[dataset]
    recipe = published("cross-modal", dataset)
    assert (recipe.backbone, recipe.frames, recipe.words) == ("ViT-B-32", frames, words)
    assert recipe.options == {"bottleneck": bottleneck, "shared": shared}
    assert recipe.values == {"optimizer": "bert-adam", "epochs": epochs, "batch_size": 128, "lr": 1e-5, "backbone_lr": 0.0}
    assert parameters("cross-modal", recipe) == count


@pytest.mark.parametrize("dataset", MV_ADAPTER)
def test_mv_adapter_recipes_are_the_papers(dataset):
    tied, epochs, frames, words, batch, count = MV_ADAPTER[dataset]
    recipe = published("mv-adapter", dataset)
    assert (recipe.backbone, recipe.frames, recipe.words) == ("ViT-B-16", frames, words)
    assert recipe.options["tied"] == tied
    assert recipe.values == {"optimizer": "bert-adam", "epochs": epochs, "batch_size": batch, "lr": 5e-6, "backbone_lr": 1e-7}
    assert parameters("mv-adapter", recipe) == count


def test_the_others_are_clip4clips_and_their_codes():
    for dataset in ("msrvtt", "msvd", "lsmdc", "didemo", "activitynet"):
        recipe = published("full", dataset)
        long = dataset in ("didemo", "activitynet")
        assert (recipe.frames, recipe.words) == ((64, 64) if long else (12, 32))
        assert (recipe.values["lr"], recipe.values["epochs"], recipe.values["batch_size"]) == (1e-7, 5, 128)
        assert parameters("full", recipe) == 123_540_993
    assert published("dgl", "msrvtt").values["lr"] == 2e-3
    assert {published(name, "msrvtt").values["lr"] for name in ("lora+tempme", "lora+disco")} == {6e-4}


def test_every_entry_names_what_there_is():
    for name, recipes in PUBLISHED.items():
        for recipe in recipes.values():
            METHODS[name.partition("+")[0]].check_options(recipe.options)
            Recipe(**recipe.values).check()


def test_what_is_not_published_is_refused_with_what_is():
    with pytest.raises(UsageError, match="no recipe of 'vpt' is published here; there are those of cross-modal, mv-adapter"):
        published("vpt", "msrvtt")
    with pytest.raises(UsageError, match="cross-modal has no published recipe for 'lsmdc'; it has those for msrvtt, msvd"):
        published("cross-modal", "lsmdc")


def test_the_recipe_fills_in_what_is_not_said(cache_of):
    split = training_split([cache_of("msrvtt", 12)])
    found = Settings(recipe={"recipe": "paper"}).as_published(split)
    assert (found.backbone, found.words, found.options) == ("ViT-B-32", 32, {"bottleneck": 8, "shared": 16})
    recipe = Recipe(**found.recipe)
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.optimizer, recipe.train_frames) == (5, 128, 1e-5, "bert-adam", 0)
    given = Settings(backbone="demo", words=16, options={"bottleneck": 4}, recipe={"recipe": "paper", "lr": 1e-3, "epochs": 1})
    found = given.as_published(split)
    assert (found.backbone, found.words, found.options) == ("demo", 16, {"bottleneck": 4, "shared": 16})
    assert (found.recipe["lr"], found.recipe["epochs"], found.recipe["batch_size"]) == (1e-3, 1, 128)
    plug = Settings(method="lora", plugs=["tempme"], recipe={"recipe": "paper"}).as_published(split)
    assert (plug.options, plug.recipe["optimizer"], plug.recipe["lr"]) == ({"rank": 8}, "adamw", 6e-4)
    faster = Settings(method="mv-adapter", recipe={"recipe": "paper", "lr": 5e-4}).as_published(split)
    assert faster.recipe["backbone_lr"] == pytest.approx(1e-5)  # CLIP's biases in the published proportion


def test_the_default_recipe_changes_nothing(cache_of):
    settings = Settings(recipe={"recipe": "default", "epochs": 3})
    assert settings.as_published(training_split([cache_of("demo", 2)])) is settings
    with pytest.raises(UsageError, match="recipe"):
        Settings(recipe={"recipe": "papers"}).as_published(training_split([cache_of("msvd", 2)]))


def test_a_cache_of_other_frames_than_the_recipes_is_refused_unless_frames_are_said(cache_of):
    split = training_split([cache_of("didemo", 4)])
    with pytest.raises(UsageError, match=r"has 64 frames a video and .* holds 4; cache again with --frames 64"):
        Settings(recipe={"recipe": "paper"}).as_published(split)
    assert Settings(recipe={"recipe": "paper", "train_frames": 2}).as_published(split).recipe["train_frames"] == 2


def test_a_paper_run_trains_says_so_and_resumes(cache_of, tmp_path):
    cache, options = cache_of("msrvtt", 12), {"backbone": load_backbone("demo"), "recipe": "paper", "epochs": 2, "batch_size": 2, "seed": 3}
    whole = train(cache, tmp_path / "whole", **options)
    config = json.loads((whole.folder / "config.json").read_text())
    assert (config["recipe"]["recipe"], config["recipe"]["optimizer"], config["recipe"]["lr"]) == ("paper", "bert-adam", 1e-5)
    assert config["options"]["shared"] == 16

    class Killed(Exception):
        pass

    def stop(step, validation):
        if step.step == 2:
            raise Killed

    with pytest.raises(Killed):
        train(cache, tmp_path / "run", save_every="1", report=stop, **options)
    resumed = train(out=tmp_path / "run", resume=True)
    assert (resumed.folder / "last" / "adapter_model.safetensors").read_bytes() == (
        whole.folder / "last" / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_bert_adam_is_its_formula(decay):
    """m / (sqrt(v) + eps) without bias correction, the decay under the same rate, in float64 by hand."""
    generator = np.random.default_rng(0)
    p = generator.standard_normal((3, 4))
    ours = torch.nn.Parameter(torch.tensor(p))
    optimizer = BertAdam([{"params": [ours], "weight_decay": decay}], lr=0.1)
    m = v = 0.0
    for rate in (0.1, 0.05, 0.2):
        g = generator.standard_normal((3, 4))
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g**2
        p = p - rate * (m / (np.sqrt(v) + 1e-6) + decay * p)
        optimizer.param_groups[0]["lr"], ours.grad = rate, torch.tensor(g)
        optimizer.step()
        np.testing.assert_allclose(ours.detach().numpy(), p, rtol=1e-9)


def test_the_first_update_is_not_corrected_for_its_bias():
    """A tenth of g over the root of a fiftieth of g^2: 0.71 of the rate, where Adam's is all of it."""
    p = torch.nn.Parameter(torch.zeros(1))
    p.grad = torch.full((1,), 0.01)
    BertAdam([p], lr=1.0).step()
    assert -p.item() == pytest.approx(0.1 / 0.02**0.5, rel=1e-3)


def test_the_published_schedule_begins_at_zero_and_jumps_after_its_warm_up():
    values = [schedule(step, 100, "bert-adam") for step in range(100)]
    assert values[0] == 0
    assert values[9] == pytest.approx(0.9)
    assert values[10] == pytest.approx(0.9755, abs=1e-4)
    assert values[-1] < 0.001


def test_groups_are_decayed_and_paced_as_published():
    model = Retriever(load_backbone("demo"), "mv-adapter", train_biases=True, frames=2)
    names = {id(p): name for name, p in model.trained.items()}
    groups = make_optimizer(model, Recipe(lr=5e-6, optimizer="bert-adam", backbone_lr=1e-7)).param_groups
    found = [{names[id(p)] for p in group["params"]} for group in groups]
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0, 0.2]
    assert groups[2]["share"] == pytest.approx(0.02)
    assert all(name.startswith("tuned.") for name in found[2])
    assert not any(name.startswith("tuned.") for name in found[0] | found[1])
    assert all("bias" in name for name in found[1])
    assert "vision.0.norm_pre.weight" in found[0]  # a LayerNorm's weight is decayed there
    assert sum(map(len, found)) == len(names)
    own = make_optimizer(model, Recipe()).param_groups
    assert [group["weight_decay"] for group in own] == [0.2, 0.0]
    assert all(p.ndim == 1 for p in own[1]["params"])


def test_a_group_of_its_own_rate_takes_it_in_each_step(small_caches):
    cache = FrameCache(small_caches / "train.h5")
    model = Retriever(load_backbone("demo"), "mv-adapter", train_biases=True, frames=4)
    trainer = Trainer(model, cache, cache.rows, Recipe(1, 8, lr=1e-3, optimizer="bert-adam", backbone_lr=1e-5))
    rates = []
    for _ in zip(trainer.run(), range(2), strict=False):
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
    assert rates[0] == [0, 0, 0]
    assert rates[1][2] == pytest.approx(rates[1][0] * 0.01)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(UsageError, match="optimizer"):
        Recipe(optimizer="sgd").check()
