"""Methods on final embeddings: their formulas written out in float64, training from embeddings, fitting, two backbones."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import demo_split, ready, second_backbone

from xmafast import Retriever, evaluate, load, load_backbone, train
from xmafast.backbone import Shape
from xmafast.cache import FrameCache, build_cache, build_features, feature_folder
from xmafast.errors import BackboneError, RunError, UsageError
from xmafast.evaluation import r_sum, rank_cache
from xmafast.frozen_embeddings import FrozenEmbeddings
from xmafast.methods import build_method
from xmafast.pretrained import backbone_shape
from xmafast.training import batch_loss, training_split
from xmafast.training.data import draw_frames, pick
from xmafast.training.memory_fit import ALPHAS, BETAS, fit_memory, remember

SHAPE = Shape(8, 2, 8, 2, 12, 1000)
FAST = {"epochs": 2, "batch_size": 8, "lr": 1e-3}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def moved(method):
    """In float64, away from where it starts."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in method.double().parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return method, {name: value.detach().numpy() for name, value in method.state_dict().items()}


@pytest.fixture
def caches(small_caches, tmp_path):
    """A copy of one's own, beside which embeddings may be kept."""
    return shutil.copytree(small_caches, tmp_path / "caches", ignore=shutil.ignore_patterns("embeddings*"))


def test_clip_adapter_is_its_formula():
    method, w = moved(build_method("clip-adapter", SHAPE, reduction=3, ratio=0.3))
    for tower, call in (("vision", lambda x: method.on_frames(x, None)), ("text", method.on_text)):
        f = drawn(2, 5, 12)
        hidden = np.maximum(f.numpy() @ w[f"{tower}.down.weight"].T, 0)
        assert hidden.shape[-1] == 4
        expected = 0.3 * np.maximum(hidden @ w[f"{tower}.up.weight"].T, 0) + 0.7 * f.numpy()
        np.testing.assert_allclose(call(f).detach().numpy(), expected, rtol=1e-12)


def test_clip_adapter_leaves_a_tower_alone_that_was_not_asked_for():
    x = drawn(3, 12).float()
    vision, text = (build_method("clip-adapter", SHAPE, towers=name) for name in ("vision", "text"))
    assert vision.on_text(x) is x
    assert text.on_frames(x, None) is x
    assert not torch.equal(vision.on_frames(x, None), x)
    assert torch.equal(build_method("clip-adapter", SHAPE, ratio=0).on_text(x), x)


def test_memory_is_its_formula_at_the_length_that_was():
    method = build_method("memory", SHAPE).double()
    captions, videos = drawn(7, 12, seed=1), drawn(7, 12, seed=2)
    method.remember(captions, videos)
    method.alpha.fill_(0.7)
    method.beta.fill_(4.0)
    kt, kv = unit(captions.numpy()), unit(videos.numpy())
    for keys, values, call in ((kt, kv, method.on_text), (kv, kt, lambda x: method.on_frames(x, None))):
        x = drawn(4, 12, seed=3)
        u = unit(x.numpy())
        expected = unit(u + 0.7 * softmax(4 * u @ keys.T) @ values)
        found = call(x).numpy()
        np.testing.assert_allclose(unit(found), expected, rtol=1e-10)
        np.testing.assert_allclose(np.linalg.norm(found, axis=-1), np.linalg.norm(x.numpy(), axis=-1), rtol=1e-12)


def test_a_memory_that_is_empty_or_off_is_the_frozen_model_to_the_bit():
    x = drawn(4, 12).float()
    method = build_method("memory", SHAPE)
    assert method.on_text(x) is x
    method.remember(drawn(3, 12).float(), drawn(3, 12).float())
    assert not torch.equal(method.on_text(x), x)
    method.alpha.zero_()
    assert torch.equal(method.on_text(x), x)


def test_hada_is_its_formula(monkeypatch):
    monkeypatch.setattr("xmafast.methods.hada.backbone_shape", lambda name: Shape(8, 2, 8, 2, 6, 1000))
    method, weights = moved(build_method("hada", SHAPE, width=8, heads=2))
    both = drawn(3, 2, 18)
    for tower, call in (("vision", lambda x: method.on_frames(x, None)), ("text", method.on_text)):
        w = {name.removeprefix(f"{tower}."): value for name, value in weights.items() if name.startswith(tower)}

        def linear(x, name, w=w):
            return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

        u = [unit(both.numpy()[..., :12]), unit(both.numpy()[..., 12:])]
        n = []
        for i in (0, 1):
            x = linear(u[i], f"project.{i}")
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
            n.append(x * w[f"norm.{i}.weight"] + w[f"norm.{i}.bias"])
        g = []
        for i in (0, 1):
            heads = []
            for h in (0, 1):
                part = slice(4 * h, 4 * h + 4)
                sums = [(linear(n[i], "source") + linear(n[j], "target"))[..., part] for j in (0, 1)]
                e = np.stack([np.where(s > 0, s, 0.2 * s) @ w["score"][h] for s in sums], -1)
                a = softmax(e)
                heads.append(sum(a[..., j, None] * linear(n[j], "target")[..., part] for j in (0, 1)))
            g.append(np.concatenate(heads, -1))
        expected = unit(linear(np.concatenate([g[0], u[0], u[1], g[1]], -1), "out"))
        np.testing.assert_allclose(call(both).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_hada_starts_with_the_mean_of_both_models_cosines(demo_backbone):
    other = second_backbone()
    model = Retriever(demo_backbone, "hada", second=other)
    x = torch.randint(0, 256, (3, 1, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    captions = ["red heart", "rain", "two cats"]
    alone = [Retriever(backbone, None, "mean")(captions, x) for backbone in (demo_backbone, other)]
    torch.testing.assert_close(model(captions, x), sum(alone) / 2, rtol=1e-4, atol=1e-5)
    model.enabled = False
    assert torch.equal(model(captions, x), alone[0])


def test_hada_is_as_large_as_its_maps():
    d, both = 512, backbone_shape("ViT-B-32").embed_dim + backbone_shape("ViT-L-14").embed_dim
    maps = (512 + 768) * d + 2 * d + 2 * d * (d + 1) + (2 * d + both) * both + both
    found = build_method("hada", backbone_shape("ViT-B-32"), second="ViT-L-14").trainable
    assert found == 2 * (maps + 2 * 2 * d + d) == 8_269_312


def test_two_backbones_are_given_what_both_can_read(demo_backbone):
    model = Retriever(demo_backbone, "hada", **ready("hada"))
    with pytest.raises(UsageError, match="give captions"):
        model.encode_text(demo_backbone.tokenize(["rain"]))
    with pytest.raises(UsageError, match="give uint8 frames"):
        model.encode_frames(torch.zeros(1, 1, 3, 96, 96))


def test_a_run_is_bound_to_its_second_backbone(demo_backbone, tmp_path):
    folder = Retriever(demo_backbone, "hada", **ready("hada")).save(tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["second"] == {"name": "demo", "pretrained": "none", "sha256": second_backbone().fingerprint}
    assert load(folder, demo_backbone, second_backbone()).second is second_backbone()
    with pytest.raises(RunError, match="trained on other weights"):
        load(folder, demo_backbone, load_backbone("demo"))
    del config["second"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="trained on other weights"):
        load(folder, demo_backbone)


def test_a_second_backbone_without_weights_says_which_option_names_them(demo_backbone):
    with pytest.raises(BackboneError, match=r"hada needs a second backbone.*second_pretrained=FILE.*no weights file lost/b16\.pt"):
        Retriever(demo_backbone, "hada", second_pretrained="lost/b16.pt")


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        ("clip-adapter", {"reduction": 0}, "reduction must lie between 1 and 12"),
        ("clip-adapter", {"reduction": 13}, "reduction must lie between 1 and 12"),
        ("clip-adapter", {"ratio": 1.1}, "ratio must lie between 0"),
        ("clip-adapter", {"ratio": float("nan")}, "ratio must lie between 0"),
        ("clip-adapter", {"towers": "text "}, "Did you mean 'text'"),
        ("memory", {"captions": -1}, "captions must be at least 0"),
        ("memory", {"pairs": -1}, "pairs must be at least 0"),
        ("memory", {"trainable_keys": 1}, "is bool, as False, not 1"),
        ("hada", {"heads": 0}, "width must be a multiple of heads"),
        ("hada", {"heads": 3}, "width must be a multiple of heads"),
        ("hada", {"second": "demon"}, "Did you mean 'demo'"),
    ],
)
def test_options_outside_their_range_are_refused(method, options, reason):
    with pytest.raises(UsageError, match=reason):
        build_method(method, SHAPE, **options)


@pytest.mark.parametrize(
    ("method", "header"), [(None, "seqTransf"), *((m, h) for m in ("clip-adapter", "memory", "hada") for h in ("mean", "seqTransf"))]
)
def test_a_step_from_embeddings_is_a_step_through_the_backbone(demo_backbone, tmp_path, method, header):
    build_cache(demo_split("train", 5), tmp_path / "train.h5", frames=6, sampling="fps", size=96, workers=1)  # four a clip, and padding
    cache = FrameCache(tmp_path / "train.h5")
    torch.manual_seed(0)
    model = Retriever(demo_backbone, method, header, **ready(method))
    frozen = FrozenEmbeddings(model, cache)
    if method == "memory":
        remember(model.method, frozen, cache, cache.rows)
    batch = [(0, 0), (3, 1), (4, 0), (1, 0)]
    rows, texts = np.array([row for row, _ in batch]), [cache.captions[row][caption] for row, caption in batch]
    for train_frames in (0, 3):
        results = []
        for source in (None, frozen):
            model.zero_grad()
            drawn = draw_frames(cache.num_frames[rows], 6, train_frames, np.random.default_rng(0)) if train_frames else None
            frames, mask = pick(*(source or cache).read(rows), drawn)
            loss = batch_loss(model, texts, frames, mask, torch.from_numpy(rows), source)
            loss.backward()
            results.append((loss.detach(), [p.grad.clone() for p in model.trained.values()]))
        assert any(g.abs().sum() > 0 for g in results[0][1])
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)


def test_validation_from_embeddings_is_that_through_the_backbone(demo_backbone, caches):
    torch.manual_seed(0)
    model, cache = Retriever(demo_backbone, "clip-adapter", ratio=0.8), FrameCache(caches / "test.h5")
    through, from_embeddings = (rank_cache(model, cache, frozen=f) for f in (None, FrozenEmbeddings(model, cache)))
    assert np.array_equal(through.t2v, from_embeddings.t2v)
    assert np.array_equal(through.v2t, from_embeddings.v2t)
    assert not np.array_equal(through.v2t, rank_cache(Retriever(demo_backbone, None, "mean"), cache).v2t)


@pytest.mark.parametrize("method", ["clip-adapter", "memory"])
def test_with_an_embedding_cache_no_frame_passes_the_backbone(demo_backbone, caches, tmp_path, monkeypatch, method):
    for name in ("train", "test"):
        build_features(FrameCache(caches / f"{name}.h5"), feature_folder(caches, demo_backbone, "embeddings") / f"{name}.h5", demo_backbone)
    monkeypatch.setattr(demo_backbone, "encode_frames", None)
    monkeypatch.setattr(demo_backbone, "encode_image", None)
    trained = train(caches, tmp_path / "run", method=method, backbone=demo_backbone, **FAST)
    found = evaluate(trained.retriever, FrameCache(caches / "test.h5"), store=tmp_path / "run" / "embeddings")
    assert found["queries"] == 12
    assert not (caches / "embeddings").exists()


def test_without_one_the_embeddings_are_computed_once_and_kept_beside_the_cache(demo_backbone, caches, tmp_path, monkeypatch):
    seen = []
    train(
        caches,
        tmp_path / "a",
        method="clip-adapter",
        backbone=demo_backbone,
        progress=lambda done, of, what: seen.append((done, of, what.split()[0])),
        **FAST,
    )
    assert [(done, what) for done, of, what in seen if done == of] == [(24, "frames"), (62, "captions")]
    assert [path.name.startswith("demo-train") for path in (caches / "embeddings").iterdir()] == [True]
    monkeypatch.setattr(demo_backbone, "encode_frames", None)
    again = train(caches, tmp_path / "b", method="clip-adapter", backbone=demo_backbone, **FAST)
    assert again.metrics["trainable"] == 2 * 2 * 192 * 48


def test_a_memory_is_fitted_saved_and_loaded(demo_backbone, caches, tmp_path):
    trained = train(caches, tmp_path / "run", method="memory", backbone=demo_backbone)
    cache, rows, _, val_rows = training_split([caches])
    metrics, config = trained.metrics, json.loads((tmp_path / "run/best/adapter_config.json").read_text())
    assert (metrics["trainable"], len(metrics["epochs"]), config["options"]["pairs"]) == (0, 1, len(rows))
    assert metrics["fitted"]["tried"] == 1 + len(ALPHAS) * len(BETAS)
    assert metrics["checkpoint_rule"].startswith("the alpha and beta of highest R-sum")
    file = load_file(tmp_path / "run/best/adapter_model.safetensors")
    assert set(file) == {"text_keys", "video_keys", "alpha", "beta"}
    assert (float(file["alpha"]), float(file["beta"])) == pytest.approx((metrics["fitted"]["alpha"], metrics["fitted"]["beta"]))
    frozen = Retriever(demo_backbone, None, "mean")
    expected = frozen.encode_text([cache.captions[row][0] for row in rows])  # no pair of the validation split
    torch.testing.assert_close(file["text_keys"], torch.nn.functional.normalize(expected, dim=-1), rtol=1e-3, atol=1e-4)
    zero_shot = r_sum(rank_cache(frozen, cache, val_rows, captions=1).metrics())
    assert metrics["epochs"][0]["r_sum"] >= zero_shot
    x, captions = FrameCache(caches / "test.h5").read(np.arange(4))[0], ["red heart", "rain"]
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "run", demo_backbone)(captions, x), trained.retriever(captions, x))


def test_equal_settings_leave_the_frozen_model_unless_keys_are_to_be_trained(demo_backbone, caches, monkeypatch):
    cache, rows, *_ = training_split([caches])
    monkeypatch.setattr("xmafast.training.memory_fit.r_sum", lambda metrics: 100.0)
    for trainable_keys in (False, True):
        model = Retriever(demo_backbone, "memory", trainable_keys=trainable_keys)
        frozen, tried = FrozenEmbeddings(model, cache), []
        remember(model.method, frozen, cache, rows)
        found = fit_memory(model, model.method, (frozen, cache, rows[:3]), tried.append)
        assert (found["alpha"] == 0) == (not trainable_keys)
        assert float(model.method.alpha) == pytest.approx(found["alpha"])
        assert len(tried) == found["tried"]


def test_the_best_setting_on_validation_is_kept(demo_backbone, caches, monkeypatch):
    cache, rows, *_ = training_split([caches])
    model = Retriever(demo_backbone, "memory")
    frozen = FrozenEmbeddings(model, cache)
    remember(model.method, frozen, cache, rows)
    monkeypatch.setattr(
        "xmafast.training.memory_fit.r_sum", lambda metrics: float(model.method.alpha == 0.5) + float(model.method.beta == 20)
    )
    found = fit_memory(model, model.method, (frozen, cache, rows[:3]), lambda row: None)
    assert (found["alpha"], found["beta"], float(model.method.alpha), float(model.method.beta)) == (0.5, 20, 0.5, 20)


@pytest.mark.parametrize(("options", "count"), [({}, 21), ({"pairs": 5}, 5), ({"pairs": 500}, 21), ({"captions": 0}, None)])
def test_a_memory_holds_as_many_pairs_as_asked(demo_backbone, caches, options, count):
    cache, rows, *_ = training_split([caches])
    model = Retriever(demo_backbone, "memory", **options)
    remember(model.method, FrozenEmbeddings(model, cache), cache, rows)
    assert model.method.pairs == (count or sum(len(cache.captions[row]) for row in rows))
    assert model.method.text_keys.shape == model.method.video_keys.shape == (model.method.pairs, 192)
    torch.testing.assert_close(model.method.video_keys.norm(dim=-1), torch.ones(model.method.pairs))


def test_keys_are_trained_where_asked(demo_backbone, caches, tmp_path):
    trained = train(caches, tmp_path / "run", method="memory", backbone=demo_backbone, trainable_keys=True, **FAST)
    assert trained.metrics["trainable"] == 2 * 21 * 192
    assert len(trained.metrics["epochs"]) == 2
    assert trained.metrics["fitted"]["alpha"] > 0
    keys = load_file(tmp_path / "run/last/adapter_model.safetensors")["video_keys"]
    assert (keys.norm(dim=-1) - 1).abs().max() > 1e-4  # they have left where they were put


def test_hada_trains_from_the_embeddings_of_both(demo_backbone, caches, tmp_path):
    losses = []
    trained = train(
        caches,
        tmp_path / "run",
        method="hada",
        backbone=demo_backbone,
        second=second_backbone(),
        report=lambda step, validation: losses.append(step.loss),
        epochs=6,
        batch_size=8,
    )
    assert json.loads((tmp_path / "run/config.json").read_text())["recipe"]["lr"] == 1e-4  # and not the data set's, made for adapters
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    assert len(list((caches / "embeddings").iterdir())) == 2
    test = FrameCache(caches / "test.h5")
    again = load(tmp_path / "run", demo_backbone)
    stored = evaluate(again, test, store=tmp_path / "run" / "embeddings")
    assert stored["t2v"] == evaluate(trained.retriever, test)["t2v"]
    assert stored["protocol"]["second"] == "demo"
