"""Official files: what is imported gives what the formulas give, written out here from the file's tensors, in float64."""

import math
import shutil

import official
import pytest
import torch
from official import DEPTH, IMAGE, TEXT, VISION

from xmafast import import_official, load, load_backbone
from xmafast.errors import BackboneError, RunError, UsageError
from xmafast.retriever import Retriever


def gelu(x):
    return x / (1 + torch.exp(-1.702 * x))


def norm(x, state, name):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def attention(q, k, v, heads, visible):
    """One sequence (T, D), head by head; visible (T, T)."""
    size, out = q.shape[1] // heads, []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        logits = q[:, part] @ k[:, part].T / math.sqrt(size)
        out.append(logits.masked_fill(~visible, -math.inf).softmax(-1) @ v[:, part])
    return torch.cat(out, 1)


def encode(x, state, encoder, split, visible, adapt_attention, adapt_mlp):
    """All blocks of one encoder over sequences (N, T, D); ``adapt_*(block, y)`` stand in for the outputs y (N, T, D)."""
    heads = x.shape[-1] // 64
    for block in range(DEPTH):
        at = f"{encoder}transformer.resblocks.{block}."
        h = norm(x, state, at + ("attn.ln" if split else "ln_1"))
        if split:
            q, k, v = (linear(h, state, f"{at}attn.{part}_proj") for part in "qkv")
        else:
            q, k, v = (h @ state[f"{at}attn.in_proj_weight"].T + state[f"{at}attn.in_proj_bias"]).chunk(3, -1)
        y = torch.stack([attention(*one, heads, visible) for one in zip(q, k, v, strict=True)])
        x = x + adapt_attention(block, linear(y, state, f"{at}attn.out_proj"))
        h = norm(x, state, at + ("mlp.ln" if split else "ln_2"))
        x = x + adapt_mlp(block, linear(gelu(linear(h, state, f"{at}mlp.c_fc")), state, f"{at}mlp.c_proj"))
    return x


def images(x, state, split, adapt_attention, adapt_mlp):
    """Normalised images (N, 3, H, W) -> (N, E)."""
    size, weight = state["visual.conv1.weight"].shape[-1], state["visual.conv1.weight"]
    patches = x.unfold(2, size, size).unfold(3, size, size)  # (N, 3, rows, columns, P, P)
    x = torch.einsum("nchwpq,dcpq->nhwd", patches, weight).flatten(1, 2)
    x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + state["visual.positional_embedding"]
    x = norm(x, state, "visual.ln_pre")
    everything = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
    x = encode(x, state, "visual.", split, everything, adapt_attention, adapt_mlp)
    return norm(x[:, 0], state, "visual.ln_post") @ state["visual.proj"]


def texts(tokens, state, split, adapt_attention, adapt_mlp):
    """Token ids (N, W) -> (N, E), at each text's highest id."""
    length = tokens.shape[1]
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"][:length]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    x = norm(encode(x, state, "", split, causal, adapt_attention, adapt_mlp), state, "ln_final")
    return x[torch.arange(len(x)), tokens.argmax(1)] @ state["text_projection"]


def double(state):
    return {name.removeprefix("clip."): value.double() for name, value in state.items()}


def inputs(frames=3, words=9):
    g = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 40000, (2, words), generator=g)
    tokens[0, 5], tokens[0, 6:], tokens[1, -1] = 49407, 0, 49407
    return torch.randn(2, frames, 3, IMAGE, IMAGE, generator=g), tokens


def cross_modal_formula(state, frames, tokens):
    state = double(state)
    share = "vt_adapter_up_share_weight" in state

    def adapt(encoder, row, y):
        def of(name):
            return state[name][row] if name in state else torch.zeros(0, *([] if name.endswith("bias") else [8]), dtype=torch.float64)

        z = gelu(y @ of(f"{encoder}_adapter_down_weight").T + of(f"{encoder}_adapter_down_bias"))
        parts = [z @ of(f"{encoder}_adapter_up_unique_weight").T + of(f"{encoder}_adapter_up_unique_bias")]
        if share:
            parts.append(z @ of("vt_adapter_up_share_weight").T + of("vt_adapter_up_share_bias"))
        return y + torch.cat(parts, -1)

    def sites(encoder):
        return (lambda i, y: adapt(encoder, 2 * i, y)), (lambda i, y: adapt(encoder, 2 * i + 1, y))

    video = images(frames.double().flatten(0, 1), state, False, *sites("visual"))
    return video.view(*frames.shape[:2], -1), texts(tokens, state, False, *sites("text"))


def mv_adapter_formula(state, frames, tokens, mask, tying, tied):
    state, count = double(state), frames.shape[1]

    def trm(z, at, visible):
        d = z.shape[1]
        h = norm(z, state, f"{at}block.ln_1")
        weight, bias = state[f"{at}block.attn.in_proj_weight"], state[f"{at}block.attn.in_proj_bias"]
        q, k, v = (h @ weight[i * d : (i + 1) * d].T + bias[i * d : (i + 1) * d] for i in range(3))
        z = z + linear(attention(q, k, v, 2, visible), state, f"{at}block.attn.out_proj")
        return z + linear(gelu(linear(norm(z, state, f"{at}block.ln_2"), state, f"{at}block.mlp.c_fc")), state, f"{at}block.mlp.c_proj")

    def scaled(at, block, end):
        weight = state[f"{at}{end}.weight"]
        if block not in tied or not tying.startswith(end):
            return weight
        beta = state[f"{at}md_proj.weight"] @ state[f"prompt.{tied.index(block)}"] + state[f"{at}md_proj.bias"]
        return torch.einsum("i,oi->oi" if tying.endswith("in") else "o,oi->oi", beta, weight)

    def entering(f, at):
        return norm(f, state, f"{at}ln_in") if f"{at}ln_in.weight" in state else f

    def video(block, y):
        at = f"visual.transformer.resblocks.{block}.mlp.adapter."
        up, out = state[f"{at}up.weight"], []
        for n, f in enumerate(y.unflatten(0, (-1, count))):  # (F, 1 + P, D)
            d = gelu(entering(f, at) @ scaled(at, block, "down").T + state[f"{at}down.bias"])
            sequence = torch.cat([state[f"{at}cc"][None], d[:, 0], d[:, 1:].mean(1)])
            sequence = norm(sequence + state[f"{at}positional_embedding"][: 2 * count + 1], state, f"{at}ln_pre")
            keys = torch.cat([torch.ones(1, dtype=torch.bool), mask[n], mask[n]])
            z = gelu(trm(sequence, at, keys.expand(len(keys), -1)))
            cls = z[1 : count + 1]
            u = torch.cat([cls + z[count + 1 :], linear(z[:1], state, f"{at}conv_rf_c.g").expand(count, -1)], 1) * mask[n, :, None]
            alpha = 1 + torch.relu(linear(u, state, f"{at}conv_rf_c.a")) @ state[f"{at}conv_rf_c.b.weight"].T
            first = (alpha * cls) @ scaled(at, block, "up").T
            out.append(f + 0.1 * (torch.cat([first[:, None], d[:, 1:] @ up.T], 1) + state[f"{at}up.bias"]))
        return torch.cat(out)

    def text(block, y):
        at, length = f"transformer.resblocks.{block}.mlp.adapter.", y.shape[1]
        d = entering(y, at) @ scaled(at, block, "down").T + state[f"{at}down.bias"]
        d = norm(d + state[f"{at}positional_embedding"][:length], state, f"{at}ln_pre")
        z = torch.stack([gelu(trm(one, at, torch.ones(length, length, dtype=torch.bool).tril())) for one in d])
        return y + 0.1 * (z @ scaled(at, block, "up").T + state[f"{at}up.bias"])

    found = images(frames.double().flatten(0, 1), state, True, lambda i, y: y, video)
    return found.view(*frames.shape[:2], -1), texts(tokens, state, True, lambda i, y: y, text)


@torch.no_grad()
def assert_gives(model, expected, frames, tokens, mask=None):
    """The expected embeddings, within float32's error, and in float64 to the sixth digit."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-6)):
        model = model.to(dtype)
        found = model.encode_frames(frames.to(dtype), mask), model.encode_text(tokens)
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours.double() - theirs).norm() < tolerance * theirs.norm()
    assert expected[0].std() > 0.1
    assert expected[1].std() > 0.1


@pytest.mark.parametrize("shared", [0, 16, TEXT])
def test_a_cross_modal_file_gives_the_papers_formula(shared):
    state = official.cross_modal(shared)
    model = import_official("cross-modal", state)
    assert (model.header, model.temperature, model.words) == ("text-conditioned", 5.0, 32)
    assert model.method.options() == {"bottleneck": 8, "shared": shared, "sites": "both", "norm": False, "train_biases": False}
    assert ("clip.text_adapter_up_unique_weight" in state, "clip.vt_adapter_up_share_bias" in state) == (shared < TEXT, shared > 0)
    assert model.trainable == sum(value.numel() for name, value in state.items() if "adapter" in name)
    frames, tokens = inputs()
    assert_gives(model, cross_modal_formula(state, frames, tokens), frames, tokens)


def test_encoders_of_one_width_may_share_all_of_it():
    state = official.cross_modal(64, vision=64)
    frames, tokens = inputs()
    assert_gives(import_official("cross-modal", state), cross_modal_formula(state, frames, tokens), frames, tokens)


@pytest.mark.parametrize(
    ("changes", "tying"),
    [
        ({"tied": ()}, "down-in"),
        ({"tied": (2,)}, "down-in"),
        ({"tied": (0, 1, 2)}, "down-in"),
        ({"tied": (1, 2), "wide": False}, "down-out"),
        ({"norm": True}, "down-in"),
        ({"tied": (0, 2)}, "down-in"),
        ({"bottleneck": 16, "calibration": 4, "words": 12}, "down-in"),
    ],
    ids=str,
)
def test_an_mv_adapter_file_gives_the_papers_formula(changes, tying):
    state = official.mv_adapter(**changes)
    model = import_official("mv-adapter", state)
    options = model.method.options()
    assert (model.header, model.words, options["frames"], options["tying"]) == ("mean", changes.get("words", 9), 4, tying)
    assert (options["norm"], options["heads"], options["scale"]) == (changes.get("norm", False), 2, 0.1)
    frames, tokens = inputs()  # fewer frames than it is built for
    mask = torch.tensor([[True, True, True], [True, True, False]])
    expected = mv_adapter_formula(state, frames, tokens, mask, tying, changes.get("tied", (1, 2)))
    assert_gives(model, expected, frames, tokens, mask)


@pytest.mark.parametrize(("wide", "tying"), [(True, "up-out"), (False, "up-in")])
def test_the_up_projections_tie_is_taken_where_it_is_named(wide, tying):
    state = official.mv_adapter(wide=wide)
    frames, tokens = inputs(frames=4)
    mask = torch.ones(2, 4, dtype=torch.bool)
    expected = mv_adapter_formula(state, frames, tokens, mask, tying, (1, 2))
    assert_gives(import_official("mv-adapter", state, tying=tying), expected, frames, tokens, mask)
    with pytest.raises(UsageError, match="not 'down-"):
        import_official("mv-adapter", state, tying="down-out" if wide else "down-in")


@pytest.mark.parametrize("method", official.MAKERS)
def test_wrappings_prefixes_leftovers_and_half_precision_change_nothing(method):
    state = official.MAKERS[method]()
    frames, tokens = inputs()
    half = {name: value.half() for name, value in state.items()}
    expected = import_official(method, {name: value.float() for name, value in half.items()})
    bare = {name.removeprefix("clip."): value for name, value in half.items()}
    bare |= {"input_resolution": torch.tensor(64), "context_length": 77, "vocab_size": 49408}
    for other in (half, bare, {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in half.items()}}, {"model": half}):
        found = import_official(method, other)
        assert all(p.dtype == torch.float32 for p in found.parameters())
        assert torch.equal(found.encode_frames(frames), expected.encode_frames(frames))
        assert torch.equal(found.encode_text(tokens), expected.encode_text(tokens))


FORMS = [
    ("cross-modal", {}),
    ("cross-modal", {"shared": 0}),
    ("cross-modal", {"shared": TEXT}),
    ("mv-adapter", {}),
    ("mv-adapter", {"tied": (2,), "wide": False, "norm": True}),
]


@pytest.mark.parametrize(("method", "form"), FORMS, ids=str)
def test_every_missing_and_every_unknown_tensor_is_named(method, form):
    state = official.MAKERS[method](**form)
    for name in state:
        with pytest.raises(RunError, match="no tensor") as error:
            import_official(method, {other: value for other, value in state.items() if other != name})
        assert repr(name) in str(error.value)
    for name in ("clip.visual_adapter_down", "cross.embeddings", "clip.visual.transformer.resblocks.7.ln_1.weight", "clip.prompt.9"):
        with pytest.raises(RunError, match="unknown tensor") as error:
            import_official(method, state | {name: torch.zeros(3)})
        assert repr(name) in str(error.value)


# lengths that nothing else in a file has, so that any is right
FREE = ("token_embedding.weight", "clip.positional_embedding")


@pytest.mark.parametrize(("method", "form"), FORMS, ids=str)
def test_every_tensor_of_another_shape_is_named(method, form):
    state = official.MAKERS[method](**form)
    for name, value in state.items():
        if name.endswith(FREE):
            continue
        wrong = torch.zeros(1, 1) if value.ndim == 0 else torch.zeros(value.shape[0] + 1, *value.shape[1:])
        with pytest.raises(RunError) as error:
            import_official(method, state | {name: wrong})
        assert repr(name) in str(error.value)
        assert str(tuple(wrong.shape)) in str(error.value)


def test_what_cannot_be_one_file_is_refused():
    state = official.cross_modal()
    for wrong, reason in (
        ({}, "holds no tensors"),
        ({"epoch": 3}, "'epoch' of the state dict is int"),
        (state | {"visual.proj": state["clip.visual.proj"]}, "two tensors of one name"),
        (official.cross_modal(vision_depth=4), "have 4 and 3 blocks; the published Cross-Modal Adapter pairs encoders of equal depth"),
        ({name: value for name, value in state.items() if "adapter" in name}, "name the backbone as well"),
    ):
        with pytest.raises(RunError, match=reason):
            import_official("cross-modal", wrong)
    mv = official.mv_adapter()
    other = {"clip.transformer.resblocks.1.mlp.adapter.shared_factor": torch.ones(6)}
    with pytest.raises(RunError, match=r"'clip.prompt.0' and 'clip.transformer.resblocks.1.mlp.adapter.shared_factor' differ"):
        import_official("mv-adapter", mv | other)
    with pytest.raises(RunError, match="12 rows, more than the 8 positions"):
        import_official("mv-adapter", official.mv_adapter(words=12) | {"clip.positional_embedding": torch.zeros(8, TEXT)})
    with pytest.raises(UsageError, match=r"Unknown method with an official file 'coop'"):
        import_official("coop", state)
    with pytest.raises(UsageError, match="Unknown tying"):
        import_official("mv-adapter", mv, tying="kronecker")
    with pytest.raises(UsageError, match="tying is mv-adapter's"):
        import_official("cross-modal", state, tying="down-in")


@pytest.mark.parametrize("method", official.MAKERS)
@torch.no_grad()
def test_a_saved_import_brings_its_backbone_wherever_it_is_moved(method, tmp_path):
    model = import_official(method, official.MAKERS[method]())
    frames, tokens = inputs()
    expected = model.encode_frames(frames), model.encode_text(tokens)
    folder = model.save(tmp_path / "run")
    shutil.move(folder, tmp_path / "moved")
    again = load(tmp_path / "moved")
    again.save(tmp_path / "moved")  # still its own
    shutil.move(tmp_path / "moved", tmp_path / "twice")
    again = load(tmp_path / "twice")
    assert torch.equal(again.encode_frames(frames), expected[0])
    assert torch.equal(again.encode_text(tokens), expected[1])
    assert again.encode_text(["a red heart"]).shape == (1, official.EMBED)
    shutil.rmtree(tmp_path / "twice" / "backbone")
    with pytest.raises(RunError, match=r"holds no backbone/open_clip_config\.json"):
        load(tmp_path / "twice")


def test_the_folder_of_a_backbone_is_a_backbone(tmp_path):
    backbone = import_official("cross-modal", official.cross_modal()).backbone
    backbone.save(tmp_path / "backbone")
    again = load_backbone(str(tmp_path / "backbone"))
    assert again.fingerprint == backbone.fingerprint
    assert load_backbone(str(tmp_path / "backbone"), "none").fingerprint != backbone.fingerprint
    model = Retriever(again, bottleneck=4)
    assert sorted(p.name for p in model.save(tmp_path / "run").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert load(tmp_path / "run").backbone.name == str((tmp_path / "backbone").resolve())
    weights, config = tmp_path / "backbone/open_clip_model.safetensors", tmp_path / "backbone/open_clip_config.json"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BackboneError, match="does not hold the weights"):
        load_backbone(str(tmp_path / "backbone"))
    for text in ("{", "{}", "[]", '{"model_cfg": {"vision_cfg": {"layers": 1, "depth": 3}, "text_cfg": {}}}'):
        config.write_text(text)
        with pytest.raises(BackboneError, match="does not describe an open_clip model"):
            load_backbone(str(tmp_path / "backbone"))
    config.unlink()
    with pytest.raises(BackboneError, match=r"holds no open_clip_config\.json"):
        load_backbone(str(tmp_path / "backbone"))


def test_a_vocabulary_smaller_than_clips_takes_ids_and_refuses_words():
    state = official.cross_modal()
    state["clip.token_embedding.weight"] = state["clip.token_embedding.weight"][:100]
    model = import_official("cross-modal", state)
    assert model.encode_text(torch.tensor([[1, 5, 99, 0]])).shape == (1, official.EMBED)
    with pytest.raises(UsageError, match="knows 100 tokens"):
        model.encode_text(["a red heart"])


@torch.no_grad()
def test_with_a_named_backbone_only_what_was_trained_need_be_there(tmp_path):
    whole = official.mv_adapter()
    import_official("mv-adapter", official.mv_adapter(seed=1)).backbone.save(tmp_path / "named")  # before its biases were trained
    named = load_backbone(str(tmp_path / "named"))
    start = double(official.clip(True, seed=1))
    trained = {k: v for k, v in whole.items() if "adapter" in k or "prompt" in k or k.endswith("bias")}
    trained = {k: v for k, v in trained.items() if not k.endswith("shared_factor")}  # a list of parameters has each once
    trained["clip.ln_final.bias"] = start["ln_final.bias"].float()  # one that training did not move
    with pytest.raises(RunError, match=r"no tensor 'clip\.visual\.conv1\.weight'.*--backbone"):
        import_official("mv-adapter", trained)
    model = import_official("mv-adapter", trained, backbone=named)
    assert model.backbone is named
    assert model.method.options()["train_biases"]
    frames, tokens = inputs()
    state = {f"clip.{name}": value for name, value in start.items()} | whole | trained
    state |= {f"clip.{name}": value for name, value in start.items() if not name.endswith("bias")}
    mask = torch.ones(2, 3, dtype=torch.bool)
    expected = mv_adapter_formula(state, frames, tokens, mask, "down-in", (1, 2))
    again = load(model.save(tmp_path / "run"))
    assert not (tmp_path / "run" / "backbone").exists()
    assert_gives(again, expected, frames, tokens)
    with pytest.raises(RunError, match=r"'clip\.visual\.conv1\.weight' has other values|has other values than"):
        import_official("mv-adapter", whole, backbone=named)
    with pytest.raises(RunError, match=r"no tensor 'clip\.ln_final\.bias', though"):
        import_official("mv-adapter", {k: v for k, v in trained.items() if k != "clip.ln_final.bias"}, backbone=named)


def test_a_named_backbone_with_the_files_weights_trains_no_biases(tmp_path):
    state = official.cross_modal()
    named = import_official("cross-modal", state).backbone
    named.save(tmp_path / "named")
    model = import_official("cross-modal", {k: v.half() for k, v in state.items()}, backbone=load_backbone(str(tmp_path / "named")))
    assert not model.method.options()["train_biases"]
    assert model.trainable == sum(value.numel() for name, value in state.items() if "adapter" in name)
    assert model.backbone.shape.vision_width == VISION


def test_a_named_backbone_that_is_not_built_as_openais_is_refused(vit_b32):
    with pytest.raises(UsageError, match="not built as OpenAI's CLIP, with QuickGELU"):
        import_official("cross-modal", official.cross_modal(), backbone=vit_b32)
