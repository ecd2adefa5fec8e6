"""Methods in the last blocks alone, and the frozen text blocks below them kept in memory."""

import pytest
import torch
from support import ready, with_stream

from xmafast.backbone import Backbone, Shape
from xmafast.errors import UsageError
from xmafast.losses import total_loss
from xmafast.methods import METHODS
from xmafast.methods.last_blocks import Adapted, adapted
from xmafast.pretrained import meta_backbone
from xmafast.retriever import Retriever, load
from xmafast.text_prefix import TextPrefix, prefix_bytes, text_prefix

CAPTIONS = ["a red heart beats", "rain", "two cats on a very warm roof"]
REFUSED = {  # of last:4 on the demo backbone
    "coop": "puts words into the texts",
    "coupled": "prompts in the first blocks",
    **dict.fromkeys(("full", "partial", "projection", "bias"), "trains weights of the backbone"),
    **dict.fromkeys(("clip-adapter", "memory", "hada"), "acts on the final embeddings"),
}
FEW = ("cross-modal", "mv-adapter", "lora", "disco", "tempme", "maple", "vop", "stream")  # in the quick run
TAKEN = [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in METHODS if name not in REFUSED]
START_EXACTLY = ("mv-adapter", "adaptformer", "convpass", "st-adapter", "uniadapter", "mrs", "multi-head", "stream")


def frames(backbone: Backbone, b: int = 3, f: int = 2):
    size = backbone.image_size
    return torch.randint(0, 256, (b, f, size, size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def retriever(backbone, method="cross-modal", blocks="last:4", **options):
    torch.manual_seed(0)
    return with_stream(Retriever(backbone, method, at_blocks=blocks, **ready(method) | options).eval())


def moved(model):
    """With weights that no start would have."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.method.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(
    ("depths", "blocks", "expected"),
    [
        ((12, 12), "all", (0, 0)),
        ((12, 12), "last:2", (10, 10)),
        ((12, 12), "last:12", (0, 0)),
        ((24, 12), "last:1", (23, 11)),
        ((24, 12), "last:2", (22, 11)),
        ((24, 12), "last:3", (21, 10)),
        ((6, 3), "last:4", (2, 1)),
        ((6, 12), "last:2", (4, 9)),
    ],
)
def test_the_text_blocks_are_those_that_pair_with_the_last_vision_blocks(depths, blocks, expected):
    assert adapted(blocks, Shape(768, depths[0], 512, depths[1], 512, 0)) == Adapted(*expected)


def test_blocks_that_share_are_the_whole_encoders_pairs(vit_l14):
    """Of 4 and 2 blocks the last 3 leave (1, 2, 3) and (0, 1): text 0 shares with vision 1, text 1 with vision 3, and 2 is alone."""
    whole, last = (Retriever(vit_l14, at_blocks=blocks).method for blocks in ("all", "last:3"))
    assert {v - 1: pair for v, pair in whole._vision_pair.items()} == last._vision_pair
    assert whole._text_pair == last._text_pair


@pytest.mark.parametrize("blocks", ["last", "last:0", "last:7", "first:2", "last:-1", "2", ""])
def test_other_blocks_are_refused(demo_backbone, blocks):
    with pytest.raises(UsageError, match="--blocks"):
        Retriever(demo_backbone, at_blocks=blocks)


@pytest.mark.parametrize("method", REFUSED)
def test_what_cannot_act_in_the_last_blocks_alone_says_why(demo_backbone, method):
    with pytest.raises(UsageError, match=REFUSED[method]):
        retriever(demo_backbone, method)


def test_a_method_that_needs_more_blocks_says_how_many_are_left(demo_backbone):
    with pytest.raises(UsageError, match=r"tempme needs 4 vision blocks .*; --blocks last:2 leaves it 2 of the vision encoder and 1 of"):
        retriever(demo_backbone, "tempme", "last:2")
    with pytest.raises(UsageError, match=r"--bottleneck must be at least 1, not 0\.$"):
        retriever(demo_backbone, "cross-modal", "last:2", bottleneck=0)


def test_the_frozen_model_alone_has_no_blocks_to_choose(demo_backbone):
    with pytest.raises(UsageError, match="nothing to choose"):
        Retriever(demo_backbone, None, "seqTransf", at_blocks="last:2")


@pytest.mark.parametrize(
    ("method", "options", "count"),
    [("cross-modal", {}, 519_168 // 6), ("lora", {"rank": 8}, 2 * 8 * 4 * (768 + 512)), ("vpt", {}, 2 * 5 * 768), ("maple", {}, 793_088)],
)
def test_only_the_last_blocks_have_parameters(method, options, count):
    assert Retriever(meta_backbone("ViT-B-32"), method, at_blocks="last:2", **options).trainable == count


@pytest.mark.parametrize("method", TAKEN)
def test_the_contract_holds_in_the_last_blocks(demo_backbone, method, tmp_path):
    """It starts as the frozen model, is it switched off, trains its own alone, items do not meet, and comes back from its file."""
    model, x = retriever(demo_backbone, method), frames(demo_backbone)
    with torch.no_grad():
        frozen = Retriever(demo_backbone, None).eval()
        expected = frozen.encode_frames(x), frozen.encode_text(CAPTIONS)
        if method in START_EXACTLY:
            assert torch.equal(model.encode_frames(x), expected[0])
            assert torch.equal(model.encode_text(CAPTIONS), expected[1])
        moved(model)
        found = model.encode_frames(x), model.encode_text(CAPTIONS)
        assert not torch.equal(found[0], expected[0]) or not torch.equal(found[1], expected[1])
        torch.testing.assert_close(model.encode_frames(x[:1]), found[0][:1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.encode_text(CAPTIONS[:1]), found[1][:1], rtol=1e-4, atol=1e-4)
        again = with_stream(load(model.save(tmp_path / "run"), demo_backbone))
        assert again.at_blocks == "last:4"
        assert torch.equal(again.encode_frames(x), found[0])
        assert torch.equal(again.encode_text(CAPTIONS), found[1])
        model.enabled = False
        assert torch.equal(model.encode_frames(x), expected[0])
        assert torch.equal(model.encode_text(CAPTIONS), expected[1])
    model.enabled = True
    total_loss(model, CAPTIONS, x, torch.ones(3, 2, dtype=torch.bool), torch.arange(3)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.method.parameters())
    assert all(p.grad is None for p in demo_backbone.parameters())


@pytest.mark.parametrize("method", TAKEN)
def test_cached_tokens_and_captions_give_what_the_whole_model_gives(demo_backbone, method):
    """Tokens in float16, as a cache holds them; to the bit where they are not rounded and the batch is the same."""
    model, x = moved(retriever(demo_backbone, method)), frames(demo_backbone)
    tokens = demo_backbone.encode_prefix(x.flatten(0, 1), model.adapted.first_vision).unflatten(0, x.shape[:2])
    with torch.no_grad():
        whole = model.encode_frames(x), model.encode_text(CAPTIONS)
        assert torch.equal(model.encode_frames(tokens), whole[0])
        model.text_prefix = TextPrefix(model, CAPTIONS)
        cached = model.encode_frames(tokens.half()), model.train().encode_text(CAPTIONS) if not _draws(model) else whole[1]
    for ours, theirs in zip(cached, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0.01 * float(theirs.abs().max()))


def _draws(model):
    """In training."""
    return any(isinstance(module, torch.nn.Dropout) and module.p for module in model.modules())


def test_captions_that_are_not_kept_are_computed_whole(demo_backbone):
    model = retriever(demo_backbone, blocks="last:2").train()
    with torch.no_grad():
        before = model.encode_text(CAPTIONS)
        model.text_prefix = TextPrefix(model, CAPTIONS[:2])
        assert torch.equal(model.encode_text(CAPTIONS), before)
        kept = model.encode_text(CAPTIONS[:2])
        assert not torch.equal(kept, before[:2])  # float16
        assert torch.equal(model.eval().encode_text(CAPTIONS[:2]), Retriever.encode_text(model, CAPTIONS[:2]))
        torch.testing.assert_close(kept, before[:2], rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", ["demo_backbone", "siglip"])
def test_kept_captions_are_those_of_the_text_blocks_below(request, name):
    backbone = request.getfixturevalue(name)
    model = retriever(backbone, blocks="last:2")
    kept, tokens = TextPrefix(model, CAPTIONS), backbone.tokenize(CAPTIONS, model.words)
    expected = backbone.encode_text_prefix(tokens, model.adapted.first_text)
    found = kept.read(CAPTIONS)
    for ours, theirs, end in zip(found, expected, backbone.text_ends(tokens).tolist(), strict=True):
        used = end + 1 if backbone.shape.causal else len(theirs)
        torch.testing.assert_close(ours[:used], theirs[:used], rtol=1e-3, atol=1e-3)
        assert not ours[used:].any()
    assert kept.bytes == prefix_bytes(model, CAPTIONS) > 0
    assert kept.read(["another"]) is None


def test_captions_are_not_kept_where_they_would_not_fit_or_nothing_is_below(demo_backbone, monkeypatch):
    assert text_prefix(retriever(demo_backbone, blocks="all"), CAPTIONS) is None
    model = retriever(demo_backbone, blocks="last:2")
    assert text_prefix(model, CAPTIONS) is not None
    monkeypatch.setattr("xmafast.text_prefix.MOST_BYTES", 100)
    assert text_prefix(model, CAPTIONS) is None


def test_tokens_are_refused_where_no_block_is_below(demo_backbone):
    tokens = torch.zeros(1, 2, *demo_backbone.feature_shape("tokens"))
    with pytest.raises(UsageError, match="Tokens are taken where"):
        retriever(demo_backbone, blocks="all").encode_frames(tokens)
    model = retriever(demo_backbone, blocks="last:2").train()
    model.patch_drop = 0.5
    with pytest.raises(UsageError, match="patch-drop"):
        model.encode_frames(tokens)


@pytest.mark.parametrize("blocks", ["all", "last:2"])
def test_low_rank_updates_merge_into_the_blocks_that_they_are_of(demo_backbone, blocks):
    model, x = moved(retriever(demo_backbone, "lora", blocks)), frames(demo_backbone)
    with torch.no_grad():
        apart = model.encode_frames(x), model.encode_text(CAPTIONS)
        model.merge()
        changed = {name for name in model._merged if name.startswith("clip.visual")}
        merged = model.encode_frames(x), model.encode_text(CAPTIONS)
    assert len(changed) == (2 if blocks == "last:2" else 6)
    assert all(f"resblocks.{i}." in "".join(sorted(changed)) for i in (4, 5))
    for ours, theirs in zip(merged, apart, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_an_inventory_collapses_to_the_same_blocks(demo_backbone):
    model = moved(retriever(demo_backbone, "routed", "last:2", datasets="a,b"))
    model.dataset = "a"
    plain, x = model.collapsed().eval(), frames(demo_backbone)
    assert plain.at_blocks == "last:2"
    with torch.no_grad():
        torch.testing.assert_close(plain.encode_frames(x), model.encode_frames(x), rtol=1e-4, atol=1e-5)


def test_plugs_act_in_the_same_blocks(demo_backbone):
    model = retriever(demo_backbone, "lora", "last:4", plugs=["tempme", ("disco", {"vision_blocks": 2, "text_blocks": 1})])
    total_loss(model, CAPTIONS, frames(demo_backbone), torch.ones(3, 2, dtype=torch.bool), torch.arange(3)).backward()
    assert all(p.grad is not None for p in model.method.parameters())
    with pytest.raises(UsageError, match="trains weights"):
        retriever(demo_backbone, "lora", "last:4", plugs=["bias"])


class Saved:
    """What autograd keeps for the backward pass, but for the weights themselves."""

    def __init__(self, *models):
        self.own = {p.untyped_storage().data_ptr() for model in models for p in [*model.parameters(), *model.buffers()]}
        self.count = self.bytes = 0

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    def _pack(self, x):
        if x.untyped_storage().data_ptr() not in self.own:
            self.count, self.bytes = self.count + 1, self.bytes + x.numel() * x.element_size()
        return x


@pytest.mark.parametrize("method", ["cross-modal", "lora", "mv-adapter"])
def test_nothing_below_the_first_adapted_block_is_kept_for_the_backward_pass(demo_backbone, method):
    options = {"tied": 1} if method == "mv-adapter" else {}
    model, x = retriever(demo_backbone, method, "last:2", **options), frames(demo_backbone)
    tokens = demo_backbone.encode_prefix(x.flatten(0, 1), 4).unflatten(0, x.shape[:2])
    with Saved(model) as whole:
        model.encode_frames(x)
    with Saved(model) as suffix:
        model.encode_frames(tokens)
    assert (whole.count, whole.bytes) == (suffix.count, suffix.bytes)
    with Saved(model) as everywhere:
        retriever(demo_backbone, method, "all", **options).encode_frames(x)
    assert everywhere.bytes > 2 * whole.bytes > 0


def test_without_anything_to_train_nothing_is_kept(demo_backbone):
    model = Retriever(demo_backbone, None)
    with Saved(model) as kept:
        model.encode_frames(frames(demo_backbone))
        model.encode_text(CAPTIONS)
    assert kept.count == 0


def test_weight_gradients_of_frozen_weights_are_never_formed(demo_backbone):
    """A product's backward pass is two products where its weight is trained, and one where it is frozen."""
    from torch.utils.flop_counter import FlopCounterMode

    def share(method, **options):
        model = Retriever(demo_backbone, method, impl="eager", **options)
        with FlopCounterMode(display=False) as forward:
            out = model.encode_frames(frames(demo_backbone)).sum()
        with FlopCounterMode(display=False) as backward:
            out.backward()
        return backward.get_total_flops() / forward.get_total_flops()

    assert share("full") > 1.75
    assert share("adapter", bottleneck=1) < 1.05
