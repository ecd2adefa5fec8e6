import open_clip
import pytest
import torch
from safetensors.torch import save_file
from support import shallow

from xmafast.blocks import Places
from xmafast.errors import BackboneError, UsageError
from xmafast.methods import METHODS, build_method
from xmafast.pretrained import backbone_input, backbone_shape, load_backbone, meta_backbone, usable_backbones

CAPTIONS = ["a red heart", "a dog runs over the grass and a cat looks on"]


def images(backbone, n=2):
    return torch.randn(n, 3, backbone.image_size, backbone.image_size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "ViT-B-32"},
        {"name": "ViT-B-32-quickgelu"},
        {"name": "ViT-B-16"},
        {"name": "ViT-L-14", "vision": 4},
        {"name": "ViT-B-32", "custom_text": True},
    ],
    ids=str,
)
def test_features_equal_open_clips_to_the_bit(changes):
    backbone = shallow(**changes)
    tokens, x = backbone.tokenize(CAPTIONS), images(backbone)
    with torch.no_grad():
        assert torch.equal(backbone.encode_image(x), backbone.clip.encode_image(x))
        assert torch.equal(backbone.encode_text(tokens), backbone.clip.encode_text(tokens))


def test_features_of_a_tower_that_averages_patches_equal_open_clips_to_the_bit():
    """CLIPA: no first LayerNorm, the last one after the pooling, a text encoder without causal mask that pools its last position."""
    text = open_clip.get_model_config("ViT-L-14-CLIPA")["text_cfg"] | {"vocab_size": 49408}
    backbone = shallow("ViT-L-14-CLIPA", text_cfg=text)
    tokens, x = backbone.tokenize(CAPTIONS), images(backbone)
    assert tokens.shape == (2, 32)
    with torch.no_grad():
        assert torch.equal(backbone.encode_image(x), backbone.clip.encode_image(x))
        assert torch.equal(backbone.encode_text(tokens), backbone.clip.encode_text(tokens))


def test_the_demo_backbones_features_equal_open_clips_to_the_bit(demo_backbone):
    tokens, x = demo_backbone.tokenize(CAPTIONS), images(demo_backbone)
    assert torch.equal(demo_backbone.encode_image(x), demo_backbone.clip.encode_image(x))
    assert torch.equal(demo_backbone.encode_text(tokens), demo_backbone.clip.encode_text(tokens))


def test_empty_places_change_nothing_and_each_place_is_called(vit_b32):
    x = images(vit_b32)
    calls = []

    def seen(name, keep=True):
        def place(*tensors):
            calls.append(name)
            return tensors[-1] if keep else torch.zeros_like(tensors[-1])

        return place

    places = Places(
        before=seen("before"),
        after_attention=seen("after_attention"),
        parallel_mlp=seen("parallel_mlp", keep=False),
        after_mlp=seen("after_mlp"),
        after=seen("after"),
    )
    plain = vit_b32.encode_image(x)
    assert torch.equal(vit_b32.encode_image(x, lambda block: Places()), plain)
    assert torch.equal(vit_b32.encode_image(x, lambda block: places), plain)
    assert calls == ["before", "after_attention", "after_mlp", "parallel_mlp", "after"] * 2


@pytest.mark.parametrize("side", ["image", "text"])
def test_an_open_qkv_computes_the_same_attention(vit_b32, side):
    places = Places(qkv=lambda h, qkv: qkv)
    value = images(vit_b32) if side == "image" else vit_b32.tokenize(CAPTIONS)
    encode = getattr(vit_b32, f"encode_{side}")
    torch.testing.assert_close(encode(value, lambda block: places), encode(value), rtol=1e-4, atol=1e-5)


def test_fewer_words_give_the_same_text_features(vit_b32):
    full, short = vit_b32.tokenize(CAPTIONS), vit_b32.tokenize(CAPTIONS, 32)
    assert short.shape == (2, 32)
    torch.testing.assert_close(vit_b32.encode_text(short), vit_b32.encode_text(full), rtol=1e-4, atol=1e-5)


def test_a_long_caption_is_cut_and_keeps_its_end_of_text(vit_b32):
    tokens = vit_b32.tokenize(["word " * 200], 32)
    assert tokens[0, -1] == tokens.max()


def test_everything_is_frozen_and_stays_in_eval_mode(demo_backbone):
    assert not any(p.requires_grad for p in demo_backbone.parameters())
    assert not any(m.training for m in demo_backbone.train().modules())


def test_random_weights_are_the_same_every_time():
    a, b = load_backbone("demo", "none"), load_backbone("demo", "none")
    assert a.fingerprint == b.fingerprint != load_backbone("demo").fingerprint


def test_a_local_weights_file(tmp_path):
    source = load_backbone("demo")
    path = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in source.clip.state_dict().items()}, path)
    assert load_backbone("demo", str(path)).fingerprint == source.fingerprint
    torch.save(source.clip.state_dict(), tmp_path / "weights.pt")
    assert load_backbone("demo", str(tmp_path / "weights.pt")).fingerprint == source.fingerprint


def test_a_file_that_holds_other_weights_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(BackboneError, match=r"weights\.safetensors does not hold the weights of demo"):
        load_backbone("demo", str(path))


def test_names_that_cannot_be_used_are_refused_in_one_sentence():
    for name, reason in (
        ("RN50", "ResNet"),
        ("convnext_base", "a ConvNeXt"),
        ("swin_base_patch4_window7_224", "a Swin"),
        ("ViTamin-L", "a ViTamin"),
        ("vit_relpos_medium_patch16_cls_224", "relative positions"),
        ("MobileCLIP-S1", "a FastViT"),
        ("MobileCLIP-B", "a stack of convolutions"),
        ("coca_ViT-B-32", "captioning"),
        ("roberta-ViT-B-32", "text tower is roberta-base"),
        ("nllb-clip-base-siglip", "text tower is facebook/nllb"),
    ):
        with pytest.raises(UsageError, match=reason):
            backbone_shape(name)
    with pytest.raises(UsageError, match="Did you mean 'ViT-B-32'"):
        load_backbone("ViT-B-23")
    with pytest.raises(UsageError, match="Did you mean 'openai'"):
        load_backbone("ViT-B-32", "opnai")
    with pytest.raises(BackboneError, match=r"no weights file missing\.pt"):
        load_backbone("ViT-B-32", "missing.pt")


def test_openais_weights_bring_their_activation(monkeypatch):
    seen = {}

    def create_model(name, tag, **options):
        seen.update(options)
        raise RuntimeError("offline")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    monkeypatch.setattr("xmafast.pretrained.reachable", lambda hub: True)
    with pytest.raises(BackboneError, match="could not be downloaded: offline"):
        load_backbone("ViT-B/32")
    assert seen["force_quick_gelu"] is True


def test_without_a_network_the_answer_comes_at_once(monkeypatch, tmp_path):
    def no_network(*args, **options):
        raise OSError("no route")

    monkeypatch.setattr("socket.create_connection", no_network)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: None)
    with pytest.raises(BackboneError, match=r"the model hub cannot be reached. Give a local file with --pretrained FILE"):
        load_backbone("ViT-B-32", "openai")


def test_shape_without_weights():
    shape = backbone_shape("ViT-L/14")
    assert (shape.vision_width, shape.vision_depth, shape.text_width, shape.text_depth) == (1024, 24, 768, 12)
    assert shape.parameters == 427_616_513


def widths(shape):
    return shape.vision_width, shape.vision_depth, shape.text_width, shape.text_depth, shape.embed_dim


@pytest.mark.parametrize(
    ("name", "expected", "before", "side"),
    [
        ("ViT-B-32", (768, 12, 512, 12, 512), (1, 1, True), 224),
        ("ViT-B-16", (768, 12, 512, 12, 512), (1, 1, True), 224),
        ("ViT-L-14-336", (1024, 24, 768, 12, 768), (1, 1, True), 336),
        ("ViT-H-14-worldwide", (1280, 32, 1024, 24, 1024), (1, 1, True), 224),
        ("ViT-L-14-worldwide", (1024, 24, 768, 12, 768), (1, 0, True), 224),
        ("ViT-L-14-CLIPA", (1024, 24, 768, 12, 768), (1, 0, False), 224),
        ("ViT-B-16-SigLIP", (768, 12, 768, 12, 768), (0, 0, False), 224),
        ("ViT-SO400M-14-SigLIP-384", (1152, 27, 1152, 27, 1152), (0, 0, False), 384),
        ("ViT-gopt-16-SigLIP2-256", (1536, 40, 1152, 27, 1536), (0, 0, False), 256),
        ("PE-Core-B-16", (768, 12, 1024, 24, 1024), (1, 1, True), 224),
        ("PE-Core-bigG-14-448", (1536, 50, 1280, 24, 1280), (0, 1, True), 448),
        ("EVA02-B-16", (768, 12, 512, 12, 512), (1, 1, True), 224),
        ("EVA02-E-14", (1792, 64, 1024, 24, 1024), (1, 1, True), 224),
    ],
)
def test_the_shape_of_a_dozen_backbones(name, expected, before, side):
    shape = backbone_shape(name)
    assert widths(shape) == expected
    assert (shape.prefix, shape.start, shape.causal) == before
    assert backbone_input(name) == side


@pytest.mark.slow
def test_every_name_of_open_clip_is_taken_with_every_method_or_refused_in_one_sentence():
    """Sizes from the configuration alone; a tower that is built otherwise than it says would not fit."""
    usable, run = set(usable_backbones()), set()
    assert {"ViT-B-32", "ViT-B-16-SigLIP", "ViT-SO400M-16-SigLIP2-512", "PE-Core-L-14-336", "EVA02-L-14"} <= usable
    for name in open_clip.list_models():
        if name not in usable:
            with pytest.raises(UsageError, match=r"^Backbone '.*' cannot be used: it.*, as ViT-B-32 or ViT-B-16-SigLIP\.$"):
                meta_backbone(name)
            continue
        config, backbone = open_clip.get_model_config(name), meta_backbone(name)
        shape, vision, text = backbone.shape, config["vision_cfg"], config["text_cfg"]
        assert backbone_input(name) == backbone.image_size
        assert (shape.text_width, shape.text_depth, shape.embed_dim) == (text["width"], text["layers"], config["embed_dim"])
        if not vision.get("timm_model_name"):
            assert (shape.vision_width, shape.vision_depth) == (vision["width"], vision["layers"])
        with torch.device("meta"):
            for method in METHODS:
                if (method in ("tempme", "disco") and not shape.prefix) or (method in ("tempme", "dgl") and shape.rotary):
                    with pytest.raises(UsageError, match=r"class token|rotary positions"):
                        build_method(method, shape)
                    continue
                assert build_method(method, shape).trainable > 0 or method == "memory", (name, method)
            tower = str(vision)
            if tower in run:
                continue
            run.add(tower)
            images = torch.zeros(1, 3, backbone.image_size, backbone.image_size)
            tokens = torch.zeros(1, shape.context_length, dtype=torch.long)
            assert backbone.encode_image(images).shape == backbone.encode_text(tokens).shape == (1, shape.embed_dim)
            assert backbone.tower.embed(images).shape[1:] == backbone.feature_shape("tokens")
