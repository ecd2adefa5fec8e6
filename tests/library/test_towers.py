"""timm's image towers behind open_clip: their features, the places in their blocks, and what methods do where there is no class token."""

import copy

import open_clip
import pytest
import torch
from support import SMALL_TEXT, SMALL_TRUNK, ready, shallow, shallow_timm
from torch import nn

from xmafast.blocks import MapThenNorm, Places
from xmafast.errors import BackboneError, UsageError
from xmafast.methods import METHODS
from xmafast.retriever import Retriever, load
from xmafast.towers import tower_of

CAPTIONS = ["a red heart", "two dogs run"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

# what no model of the fixtures has: a post-norm, a linear head over an average, registers, no class token beside rotary positions
OTHERS = {
    "no rotary positions": ("EVA01-g-14", SMALL_TRUNK | {"mlp_ratio": 4}),
    "norm after": ("EVA02-E-14", SMALL_TRUNK | {"mlp_ratio": 4}),
    "average and linear head": ("vit_medium_patch16_gap_256", SMALL_TRUNK),
    "tanh GELU in the text": ("ViT-B-16-SigLIP2", SMALL_TRUNK),
    "class token and registers": ("ViT-B-16-SigLIP", SMALL_TRUNK | {"class_token": True, "reg_tokens": 3, "init_values": 0.1}),
    "registers and rotary positions": ("PE-Core-B-16", SMALL_TRUNK | {"num_reg_tokens": 2, "init_values": 0.1}),
    "rotary positions alone": ("PE-Core-bigG-14-448", SMALL_TRUNK | {"img_size": 56, "attn_pool_num_heads": 3, "use_abs_pos_emb": False}),
    "a start of text and no causal mask": ("MobileCLIP2-L-14", SMALL_TRUNK),
    "sizes from the image": ("PE-Core-B-16", SMALL_TRUNK | {"dynamic_img_size": True}),
}


@pytest.fixture(scope="module", params=OTHERS)
def other(request):
    name, trunk = OTHERS[request.param]
    return shallow_timm(name, trunk=trunk, **SMALL_TEXT)


@pytest.fixture(params=["siglip", "eva02", "pe_core"])
def backbone(request):
    return request.getfixturevalue(request.param)


def pixels(backbone, n=2):
    size = backbone.image_size
    return torch.randint(0, 256, (n, size, size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def images(backbone, n=2):
    return backbone.normalise(pixels(backbone, n))


def moved(backbone, method, amount=0.05, **options):
    """A method away from its start, where most methods do nothing."""
    torch.manual_seed(0)
    model = Retriever(backbone, method, **ready(method) | options).eval()
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.add_(torch.randn_like(parameter) * amount)
    return model


@torch.no_grad()
def features_are_open_clips(backbone):
    x, tokens = images(backbone), backbone.tokenize(CAPTIONS)
    image, text = backbone.encode_image(x), backbone.encode_text(tokens)
    assert image.shape == text.shape == (2, backbone.shape.embed_dim)
    assert not torch.equal(image[0], image[1])
    assert torch.equal(image, backbone.clip.encode_image(x))
    assert torch.equal(text, backbone.clip.encode_text(tokens))
    for impl in ("auto", "triton"):  # the kernel makes patches for open_clip's own convolution alone
        assert torch.equal(backbone.encode_frames(pixels(backbone), impl=impl), image)
    for block in range(backbone.shape.vision_depth + 1):
        prefix = backbone.encode_prefix(pixels(backbone), block)
        assert prefix.shape[1:] == backbone.feature_shape("tokens")
        assert torch.equal(backbone.encode_suffix(prefix, block), image)


def test_features_equal_open_clips_to_the_bit(backbone):
    features_are_open_clips(backbone)


def test_features_of_rarer_towers_equal_open_clips_to_the_bit(other):
    features_are_open_clips(other)


@pytest.mark.slow
def test_features_equal_open_clips_to_the_bit_at_full_width(siglip_b16):
    features_are_open_clips(siglip_b16)


def test_the_shape_says_what_stands_before_patches_and_words(siglip, eva02, vit_b32):
    for backbone, expected in ((siglip, (0, 0, False)), (eva02, (1, 1, True)), (vit_b32, (1, 1, True))):
        assert (backbone.shape.prefix, backbone.shape.start, backbone.shape.causal) == expected
    name, trunk = OTHERS["class token and registers"]
    assert shallow_timm(name, trunk=trunk, **SMALL_TEXT).shape.prefix == 4


def listen(block, seen):
    """Hooks on a library block that note what its modules read and write."""
    names = ("norm1", "attn", "norm2", "mlp") if hasattr(block, "norm1") else ("ln_1", "attn", "ln_2", "mlp")

    def note(key):
        return lambda module, arguments, result: seen.update({key: (arguments[0], result)})

    hooks = [
        getattr(block, name).register_forward_hook(note(key)) for name, key in zip(names, ("norm1", "attn", "norm2", "mlp"), strict=True)
    ]
    return [*hooks, block.register_forward_hook(note("block"))]


@torch.no_grad()
def test_each_place_is_given_the_tensor_that_it_names(backbone):
    x, seen, given = images(backbone), {}, {}
    block = tower_of(backbone.clip.visual).blocks[1]
    hooks = listen(block, seen)
    backbone.clip.encode_image(x)
    for hook in hooks:
        hook.remove()

    def note(name, result=lambda *tensors: tensors[-1]):
        def place(*tensors):
            given[name] = tensors
            return result(*tensors)

        return place

    places = Places(
        before=note("before"),
        parallel_attention=note("parallel_attention", lambda x, h: torch.zeros_like(x)),
        after_attention=note("after_attention"),
        parallel_mlp=note("parallel_mlp", lambda x, h: torch.zeros_like(x)),
        after_mlp=note("after_mlp"),
        after=note("after"),
    )
    assert torch.equal(backbone.encode_image(x, lambda i: places if i == 1 else Places()), backbone.encode_image(x))
    expected = {
        "before": (seen["block"][0],),
        "parallel_attention": (seen["block"][0], seen["norm1"][1]),
        "after_attention": (seen["attn"][1],),
        "parallel_mlp": (seen["norm2"][0], seen["norm2"][1]),
        "after_mlp": (seen["mlp"][1],),
        "after": (seen["block"][1],),
    }
    for name, tensors in expected.items():
        assert len(given[name]) == len(tensors)
        for ours, theirs in zip(given[name], tensors, strict=True):
            assert torch.equal(ours, theirs), name


@torch.no_grad()
def test_in_a_block_with_its_norms_behind_the_places_lie_behind_them():
    name, trunk = OTHERS["norm after"]
    backbone, given = shallow_timm(name, trunk=trunk, **SMALL_TEXT), {}
    x, seen = images(backbone), {}
    hooks = listen(tower_of(backbone.clip.visual).blocks[0], seen)
    backbone.clip.encode_image(x)
    for hook in hooks:
        hook.remove()

    def note(name):
        return lambda *tensors: given.setdefault(name, tensors)[-1] * 0

    def after_mlp(y):
        given["mlp"] = y
        return y

    places = Places(after_attention=note("attention"), parallel_attention=note("beside"))
    backbone.encode_image(x, lambda i: Places() if i else places)
    assert torch.equal(given["attention"][0], seen["norm1"][1])
    assert torch.equal(given["beside"][0], seen["block"][0])
    assert torch.equal(given["beside"][1], seen["block"][0])
    backbone.encode_image(x, lambda i: Places() if i else Places(after_mlp=after_mlp))
    assert torch.equal(given["mlp"], seen["norm2"][1])


@pytest.mark.parametrize("place", ["before", "after_attention", "parallel_attention", "parallel_mlp", "after_mlp", "after", "qkv"])
@torch.no_grad()
def test_each_place_acts(backbone, place):
    x = images(backbone)
    one = Places(**{place: lambda *tensors: tensors[-1].abs()})
    plain = backbone.encode_image(x)
    for block in range(backbone.shape.vision_depth):
        assert not torch.allclose(backbone.encode_image(x, lambda i, at=block: one if i == at else Places()), plain, **CLOSE)


class Doubled(MapThenNorm):
    """2 y, and the norm after it in one step."""

    def __init__(self):
        self.norms = []

    def __call__(self, y):
        return 2 * y

    def add_norm(self, y, x, norm):
        self.norms.append(norm)
        return x + 2 * y, norm(x + 2 * y)


@torch.no_grad()
def test_a_map_with_a_norm_gets_the_norm_that_reads_next(backbone):
    x, whole = images(backbone), Doubled()
    blocks = tower_of(backbone.clip.visual).blocks
    parts = backbone.encode_image(x, lambda i: Places(after_attention=lambda y: 2 * y, after_mlp=lambda y: 2 * y))
    assert torch.equal(backbone.encode_image(x, lambda i: Places(after_attention=whole, after_mlp=whole)), parts)
    expected = [norm for i, block in enumerate(blocks) for norm in (block.norm2, blocks[i + 1].norm1 if i + 1 < len(blocks) else None)]
    assert len(whole.norms) == len(expected) - 1  # after the last block no norm is known
    assert all(ours is theirs for ours, theirs in zip(whole.norms, expected[:-1], strict=True))


def custom_clip():
    """open_clip's CustomResidualAttentionBlock with all that it can have."""
    vision = open_clip.get_model_config("ViT-B-32")["vision_cfg"] | {"width": 128, "image_size": 64}
    extras = {"qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True}
    backbone = shallow("ViT-B-32", vision_cfg=vision | extras)
    with torch.no_grad():
        for name, parameter in backbone.clip.visual.named_parameters():
            if "ln_" in name or "head_scale" in name or name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return backbone


@pytest.fixture(params=["siglip", "eva02", "pe_core", "custom"])
def with_qkv(request):
    return custom_clip() if request.param == "custom" else request.getfixturevalue(request.param)


@torch.no_grad()
def test_an_open_qkv_computes_the_same_attention(with_qkv):
    x = images(with_qkv)
    torch.testing.assert_close(with_qkv.encode_image(x, lambda i: Places(qkv=lambda h, qkv: qkv)), with_qkv.encode_image(x), **CLOSE)


@torch.no_grad()
def test_an_open_qkv_of_towers_that_are_rarer(other):
    x = images(other)
    torch.testing.assert_close(other.encode_image(x, lambda i: Places(qkv=lambda h, qkv: qkv)), other.encode_image(x), **CLOSE)


@pytest.mark.parametrize("part", [0, 1, 2], ids=["query", "key", "value"])
@torch.no_grad()
def test_query_key_and_value_stand_in_that_order_fused_or_split(with_qkv, part):
    """A constant on one of the three is what the same constant is on its projection's bias."""
    x, width = images(with_qkv), with_qkv.shape.vision_width
    constant = torch.randn(width, generator=torch.Generator().manual_seed(2))
    changed = copy.deepcopy(with_qkv)
    for block in tower_of(changed.clip.visual).blocks:
        attn = block.attn
        if getattr(attn, "q_proj", None) is not None:
            own = (attn.q_proj, attn.k_proj, attn.v_proj)[part]
            own.bias = nn.Parameter(constant.clone() if own.bias is None else own.bias + constant)
        else:
            bias = attn.qkv.bias if hasattr(attn, "qkv") else attn.in_proj_bias
            bias[part * width : (part + 1) * width] += constant

    def add(h, qkv):
        assert qkv.shape[-1] == 3 * width
        parts = list(qkv.split(width, dim=-1))
        parts[part] = parts[part] + constant
        return torch.cat(parts, dim=-1)

    found = with_qkv.encode_image(x, lambda i: Places(qkv=add))
    torch.testing.assert_close(found, changed.clip.encode_image(x), **CLOSE)
    if part != 1 or with_qkv.name in ("EVA02-B-16", "PE-Core-B-16"):  # a constant on all keys moves no softmax, unless they turn
        assert not torch.allclose(found, with_qkv.encode_image(x), **CLOSE)


def test_a_tower_that_is_not_known_is_refused():
    with pytest.raises(BackboneError, match="ResNet has blocks that xmafast does not know"):
        tower_of(nn.Module.__new__(type("ResNet", (nn.Module,), {})))


# methods on towers without a class token, and on text encoders without a causal mask


@pytest.mark.parametrize(
    "method", [name for name in METHODS if name not in ("tempme", "disco", "hada")]
)  # of class tokens, or two backbones
@torch.no_grad()
def test_away_from_its_start_a_method_keeps_items_apart(siglip, method):
    frames = pixels(siglip, 6).view(3, 2, 64, 64, 3)
    model = moved(siglip, method, 0.01)
    torch.testing.assert_close(model.encode_frames(frames)[:1], model.encode_frames(frames[:1]), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model.encode_text(CAPTIONS)[:1], model.encode_text(CAPTIONS[:1]), rtol=1e-3, atol=1e-4)
    if method not in ("coop", "vpt", "stream"):  # which have one encoder each
        model.enabled, moves = False, (model.encode_frames(frames), model.encode_text(CAPTIONS))
        for ours, theirs in zip(moves, (model.encode_frames(frames), model.encode_text(CAPTIONS)), strict=True):
            assert not torch.allclose(ours, theirs, **CLOSE)


@torch.no_grad()
def test_deep_prompts_do_not_turn_and_patches_turn_by_their_own_positions(eva02, pe_core):
    for backbone in (eva02, pe_core):
        model = moved(backbone, "vpt", 0.5, tokens=3)
        prompts, trunk, frames = model.method.vision, copy.deepcopy(backbone.clip.visual.trunk), pixels(backbone)
        x, rope = trunk._pos_embed(trunk.patch_embed(backbone.normalise(frames)))
        x = trunk.norm_pre(x)
        for block, own in zip(trunk.blocks, prompts, strict=True):
            block.attn.num_prefix_tokens = 1 + 3
            x = torch.cat([x[:, :1], own.expand(2, -1, -1), x[:, 1:]], dim=1)
            x = block(x, rope=rope)
            x = torch.cat([x[:, :1], x[:, 4:]], dim=1)
        expected = trunk.forward_head(trunk.norm(x))
        torch.testing.assert_close(model.encode_frames(frames[:, None])[:, 0], expected, **CLOSE)


@torch.no_grad()
def test_prompts_stand_before_all_patches_where_there_is_no_class_token(siglip):
    model, frames = moved(siglip, "vl-prompt", 0.5, tokens=3), pixels(siglip)
    trunk, text = siglip.clip.visual.trunk, siglip.clip.text
    x = trunk._pos_embed(trunk.patch_embed(siglip.normalise(frames)))
    for block, own in zip(trunk.blocks, model.method.vision, strict=True):
        x = block(torch.cat([own.expand(2, -1, -1), x], dim=1))[:, 3:]
    torch.testing.assert_close(model.encode_frames(frames[:, None])[:, 0], trunk.forward_head(trunk.norm(x)), **CLOSE)
    x = text.token_embedding(siglip.tokenize(CAPTIONS)) + text.positional_embedding
    for block, own in zip(text.transformer.resblocks, model.method.text, strict=True):
        x = block(torch.cat([own.expand(2, -1, -1), x], dim=1))[:, 3:]
    torch.testing.assert_close(model.encode_text(CAPTIONS), text.text_projection(text.ln_final(x)[:, -1]), **CLOSE)


@torch.no_grad()
def test_context_words_stand_behind_a_start_of_text_also_where_no_mask_is_causal():
    backbone = shallow_timm("MobileCLIP2-L-14", trunk=SMALL_TRUNK, **SMALL_TEXT)
    model, caption = Retriever(backbone, "coop", tokens=2).eval(), backbone.tokenize(["two dogs run"], inserted=2)
    words = torch.tensor([7, 300])
    model.method.text.copy_(backbone.clip.text.token_embedding(words))
    whole = torch.cat([caption[:, :1], words[None], caption[:, 1:]], dim=1)
    assert (backbone.shape.start, backbone.shape.causal, whole.shape) == (1, False, (1, 24))
    torch.testing.assert_close(model.encode_text(caption), backbone.clip.encode_text(whole), **CLOSE)


@torch.no_grad()
def test_context_words_stand_before_the_caption_where_there_is_no_start_of_text(siglip):
    model, caption = Retriever(siglip, "coop", tokens=2).eval(), siglip.tokenize(["two dogs run"], inserted=2)
    words = torch.tensor([7, 300])
    model.method.text.copy_(siglip.clip.text.token_embedding(words))
    expected = siglip.clip.encode_text(torch.cat([words[None], caption], dim=1))
    assert caption.shape == (1, 22)
    torch.testing.assert_close(model.encode_text(caption), expected, **CLOSE)
    torch.testing.assert_close(model.encode_text(["two dogs run"]), expected, **CLOSE)


def test_captions_fill_the_context_where_the_text_encoder_is_not_causal(siglip, eva02):
    model = Retriever(siglip, "mv-adapter", words=8)
    assert (model.words, model.method.words) == (24, 24)
    assert siglip.tokenize(CAPTIONS, 8).shape == (2, 24)
    with pytest.raises(UsageError, match="padded to 24 tokens, not 8"):
        siglip.encode_text(torch.zeros(1, 8, dtype=torch.long))
    assert Retriever(eva02, "mv-adapter", words=8).words == 8
    assert eva02.tokenize(CAPTIONS, 8).shape == (2, 8)


@torch.no_grad()
def test_saved_and_loaded_gives_the_same_scores(siglip, tmp_path):
    for method in ("mv-adapter", "bias"):
        model, frames = moved(siglip, method), pixels(siglip, 4).view(2, 2, 64, 64, 3)
        before = model(CAPTIONS, frames)
        assert torch.equal(load(model.save(tmp_path / method), siglip)(CAPTIONS, frames), before)


def names(model):
    return set(model.method.tuned.names)


def test_what_is_tuned_has_timms_names(siglip, eva02):
    projection = names(Retriever(siglip, "projection"))
    fc2 = "visual.trunk.attn_pool.mlp.fc2"
    assert projection == {f"{fc2}.weight", f"{fc2}.bias", "text.text_projection.weight", "text.text_projection.bias"}
    assert names(Retriever(eva02, "projection")) == {"visual.trunk.head.weight", "visual.trunk.head.bias", "text.text_projection"}
    full = names(Retriever(siglip, "full"))
    assert {"visual.trunk.attn_pool.latent", "visual.trunk.norm.weight", "visual.trunk.blocks.0.attn.qkv.weight", "logit_scale"} <= full
    assert not [name for name in full if any(part in name for part in ("patch_embed", "pos_embed", "token_embedding", "logit_bias"))]
    assert not [name for name in names(Retriever(eva02, "full")) if "cls_token" in name]
    frozen = names(Retriever(siglip, "full", freeze=3))
    assert "visual.trunk.blocks.3.norm1.weight" in frozen
    assert "visual.trunk.blocks.2.norm1.weight" not in frozen
    assert {name.split(".norm1")[0] for name in names(Retriever(eva02, "partial")) if "norm1" in name} == {"visual.trunk.blocks.1"}
    biases = names(Retriever(siglip, "bias"))
    assert "visual.trunk.patch_embed.proj.bias" in biases
    assert "logit_bias" not in biases
