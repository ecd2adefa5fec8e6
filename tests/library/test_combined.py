"""Methods combined: what works together does what each does, and what cannot says why."""

import pytest
import torch
from support import ready, with_stream

from xmafast.blocks import Places
from xmafast.errors import UsageError
from xmafast.losses import total_loss
from xmafast.methods import METHODS, build_method
from xmafast.methods.combined import compose
from xmafast.retriever import Retriever, load

CAPTIONS = ["a red heart beats", "rain"]


def frames():
    return torch.randint(0, 256, (2, 3, 96, 96, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def possible(pair, backbone):
    try:
        return with_stream(Retriever(backbone, pair[0], plugs=[pair[1]], **ready(pair[0])))
    except UsageError as error:
        return str(error)


QUICK = ("cross-modal", "lora", "full", "coop", "convpass", "vop", "dgl", "memory", "hada", "tempme")
PAIRS = [(base, plug) for base in METHODS for plug in ("tempme", "disco", "lora")]


@pytest.mark.parametrize(
    ("base", "plug"), [pytest.param(b, p, marks=() if b in QUICK and p != "lora" else pytest.mark.slow) for b, p in PAIRS]
)
def test_every_pair_keeps_the_contract_or_says_why_not(demo_backbone, base, plug, tmp_path):
    torch.manual_seed(0)
    model = possible((base, plug), demo_backbone)
    if isinstance(model, str):
        assert base in model
        assert plug in model
        assert model.endswith("combine others.") or "not with itself" in model
        return
    x, mask = frames(), torch.tensor([[True, True, True], [True, True, False]])
    total_loss(model, CAPTIONS, x, mask, torch.arange(2)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.method.parameters())
    assert all(p.grad is None for p in model.backbone.parameters())
    model.eval()
    with torch.no_grad():
        for parameter in model.trained.values():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        both = model.encode_frames(x, mask)
        torch.testing.assert_close(model.encode_frames(x[1:], mask[1:]), both[1:], rtol=1e-3, atol=1e-4)
        assert torch.equal(with_stream(load(model.save(tmp_path / "run"), demo_backbone)).encode_frames(x, mask), both)
        model.enabled = False
        frozen = demo_backbone.encode_image(demo_backbone.normalise(x.flatten(0, 1))).view(2, 3, -1)
        assert torch.equal(model.encode_frames(x, mask), frozen)


def test_three_at_once_are_the_sum_of_their_parameters(demo_backbone):
    names = ("cross-modal", "tempme", "disco")
    model = Retriever(demo_backbone, names[0], plugs=names[1:])
    assert model.trainable == sum(build_method(name, demo_backbone.shape).trainable for name in names)
    assert model.method.name == "cross-modal+tempme+disco"
    assert model.encode_frames(frames()).isfinite().all()


def test_options_of_plugs_are_their_own(demo_backbone, tmp_path):
    model = Retriever(demo_backbone, "lora", plugs=[("disco", {"vision_blocks": 2}), "tempme"], rank=4)
    again = load(model.save(tmp_path / "run"), demo_backbone)
    assert again.method.parts["disco"].vision_blocks == 2
    assert again.method.parts["lora"].rank == 4
    assert [part.name for part in again.method.parts.values()] == ["lora", "disco", "tempme"]


@pytest.mark.parametrize(
    ("base", "plugs", "reason"),
    [
        ("convpass", ["tempme"], "'convpass' needs every token in its place"),
        ("mv-adapter", ["tempme"], "'mv-adapter' needs every token"),
        ("full", ["bias"], "both train weights of the backbone"),
        ("lora", ["lora"], "named twice"),
        ("lora", ["tempmy"], "Did you mean 'tempme'"),
    ],
)
def test_what_cannot_work_together_is_refused(demo_backbone, base, plugs, reason):
    with pytest.raises(UsageError, match=reason):
        Retriever(demo_backbone, base, plugs=plugs)


def test_places_compose_in_order():
    def times(n):
        return lambda y: y * n

    def plus(n):
        return lambda y: y + n

    one = Places(before=times(2), after=plus(1), after_mlp=times(3), parallel_mlp=lambda x, h: x, qkv=lambda h, y: y + h)
    two = Places(before=plus(5), after=times(10), after_mlp=plus(1), parallel_mlp=lambda x, h: h, qkv=lambda h, y: y * 2)
    both = compose([one, Places(), two])
    y = torch.tensor(3.0)
    assert both.before(y) == 11
    assert both.after(y) == 31
    assert both.after_mlp(y) == 10
    assert both.parallel_mlp(y, torch.tensor(4.0)) == 7
    assert both.qkv(torch.tensor(1.0), y) == 8
    assert both.after_attention is None
