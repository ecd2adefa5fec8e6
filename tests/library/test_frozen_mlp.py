"""A frozen block's MLP in training: open_clip's own numbers, and the gradient of its input alone."""

import copy

import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import nn

from xmafast import Retriever, blocks
from xmafast.frozen_mlp import frozen_mlp, takes
from xmafast.losses import contrastive_loss


def mlp_of(activation, dtype=torch.float64):
    torch.manual_seed(0)
    parts = {"c_fc": nn.Linear(6, 24), "gelu": activation, "c_proj": nn.Linear(24, 6)}
    made = nn.Sequential()
    for name, part in parts.items():
        made.add_module(name, part)
    return made.to(dtype).requires_grad_(False)


def asked(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize("activation", [nn.GELU(), QuickGELU()], ids=["gelu", "quick_gelu"])
def test_it_is_the_mlp_and_its_gradient(activation):
    mlp, x = mlp_of(activation), asked(2, 3, 6)
    assert takes(mlp, x)
    g = torch.randn(2, 3, 6, dtype=torch.float64)
    found = [(y.detach(), *torch.autograd.grad(y, x, g)) for y in (frozen_mlp(mlp, x), mlp(x))]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(lambda x: frozen_mlp(mlp, x), (x,))
    x = asked(40, 6, dtype=torch.float32)
    same = torch.equal(frozen_mlp(mlp.float(), x), mlp(x))
    assert same or isinstance(activation, QuickGELU)


def test_it_is_taken_where_nothing_of_it_is_trained_and_a_gradient_goes_through():
    mlp, x = mlp_of(nn.GELU(), torch.float32), asked(3, 6, dtype=torch.float32)
    assert takes(mlp, x)
    assert not takes(mlp, x.detach())
    with torch.no_grad():
        assert not takes(mlp, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not takes(mlp, x)
    assert not takes(mlp, x.double())
    for activation in (nn.GELU(approximate="tanh"), nn.ReLU()):
        assert not takes(mlp_of(activation, torch.float32), x)
    trained = copy.deepcopy(mlp)
    trained.c_proj.bias.requires_grad_()
    assert not takes(trained, x)
    normed = nn.Sequential()
    for name, part in {"c_fc": mlp.c_fc, "gelu": mlp.gelu, "ln": nn.LayerNorm(24), "c_proj": mlp.c_proj}.items():
        normed.add_module(name, part)
    assert not takes(normed, x)


@pytest.mark.parametrize(("method", "taken"), [("cross-modal", True), ("lora", True), ("bias", False), ("full", False)])
def test_a_training_step_goes_through_it_where_the_mlp_is_frozen(method, taken, demo_backbone, monkeypatch):
    calls = []
    monkeypatch.setattr(blocks, "frozen_mlp", lambda mlp, h: calls.append(mlp) or frozen_mlp(mlp, h))
    torch.manual_seed(0)
    model = Retriever(demo_backbone, method).train()
    size = demo_backbone.image_size
    frames = torch.randint(0, 256, (2, 1, size, size, 3), dtype=torch.uint8)

    def gradients():
        text, video = model.encode_text(["a red heart", "an owl"]), model.encode_frames(frames)
        loss = contrastive_loss(model, text, video, torch.ones(2, 1, dtype=torch.bool), torch.arange(2))
        return torch.autograd.grad(loss, list(model.trained.values()), allow_unused=True)

    with_it = gradients()
    assert bool(calls) == taken
    monkeypatch.setattr(blocks, "frozen_mlp_takes", lambda mlp, h: False)
    for ours, theirs in zip(with_it, gradients(), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_a_second_derivative_is_refused():
    mlp, x = mlp_of(nn.GELU()), asked(3, 6)
    (gradient,) = torch.autograd.grad(frozen_mlp(mlp, x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
