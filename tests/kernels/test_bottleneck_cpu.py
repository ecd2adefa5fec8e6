"""The CPU's form of the adapter beside the reference: the same numbers and gradients, whatever is given and whatever is asked for."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck

from xmafast.kernels import adapter, adapter_norm
from xmafast.kernels.bottleneck import cpu

NAMES = ("x", "down", "down_bias", "own", "own_bias", "shared", "shared_bias")


def given(shared=5, rows=(3, 7), width=12, bottleneck=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    shapes = ((*rows, width), (bottleneck, width), (bottleneck,), (width - shared, bottleneck), (width - shared,))
    shapes += ((shared, bottleneck), (shared,)) if shared else ()
    made = [torch.randn(shape, generator=g, dtype=dtype).requires_grad_() for shape in shapes]
    return made + [None] * (7 - len(made))


def gradients(function, inputs, impl, **options):
    asked = [t for t in inputs if t is not None and t.requires_grad]
    made = function(*inputs, impl=impl, **options)
    made = made if isinstance(made, tuple) else (made,)
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(part.shape, generator=g, dtype=part.dtype) for part in made]
    return [*made, *torch.autograd.grad(made, asked, weights)]


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "relu", "none"])
@pytest.mark.parametrize("shared", [0, 5, 12])
@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize("skip", ["itself", "another"])
def test_it_equals_the_reference(activation, shared, scale, skip):
    inputs = given(shared)
    residual = None if skip == "itself" else torch.randn_like(inputs[0]).requires_grad_()

    def call(*tensors, impl):
        *weights, residual = tensors
        return adapter(*weights, activation=activation, scale=scale, residual=residual, impl=impl)

    assert cpu.takes("auto", *inputs, residual)
    same(*(gradients(call, [*inputs, residual], impl) for impl in ("auto", "eager")))


@pytest.mark.parametrize("biases", list(itertools.product([True, False], repeat=3)), ids=str)
def test_a_bias_may_be_missing(biases):
    inputs = given()
    for at, there in zip((2, 4, 6), biases, strict=True):
        inputs[at] = inputs[at] if there else None
    same(*(gradients(adapter, inputs, impl) for impl in ("auto", "eager")))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("alone", [True, False], ids=["asked", "not asked"])
def test_gradients_are_those_that_are_asked_for(name, alone):
    inputs = given()
    for tensor, own in zip(inputs, NAMES, strict=True):
        tensor.requires_grad_((own == name) == alone)
    same(*(gradients(adapter, inputs, impl) for impl in ("auto", "eager")))


def test_sum_and_layer_norm_follow_it():
    inputs = given()
    stream, weight, bias = torch.randn_like(inputs[0]).requires_grad_(), torch.rand(12).double(), torch.rand(12).double()

    def call(x, stream, *weights, impl):
        return adapter_norm(x, stream, weight, bias, *weights, scale=0.3, impl=impl)

    same(*(gradients(call, [inputs[0], stream, *inputs[1:]], impl) for impl in ("auto", "eager")))


@pytest.mark.parametrize("shape", [(12,), (1, 12), (2, 3, 4, 12), (0, 12)])
def test_any_leading_shape(shape):
    inputs = given()
    inputs[0] = torch.randn(shape, dtype=torch.float64).requires_grad_()
    same(*(gradients(adapter, inputs, impl) for impl in ("auto", "eager")))


def test_rows_that_are_apart_in_memory_and_gradients_that_are_one_number():
    inputs = given()
    inputs[0] = torch.randn(7, 3, 12, dtype=torch.float64).transpose(0, 1).requires_grad_()
    same(*(gradients(adapter, inputs, impl) for impl in ("auto", "eager")))
    found = [torch.autograd.grad(adapter(*inputs, impl=impl).sum(), inputs) for impl in ("auto", "eager")]
    same(*found)


@pytest.mark.parametrize("stream", [False, True])
def test_gradients_in_float64(stream):
    inputs = given(rows=(4,))
    more = (torch.randn(4, 12, dtype=torch.float64).requires_grad_(),) if stream else ()
    assert gradcheck(lambda *t: cpu.adapter(*t[:7], scale=0.7, stream=t[7] if stream else None), (*inputs, *more))


def test_a_second_derivative_is_refused_and_not_wrong():
    inputs = given()
    (gradient,) = torch.autograd.grad(adapter(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_it_is_taken_where_it_was_made_for():
    inputs = given(dtype=torch.float32)
    assert cpu.takes("auto", *inputs)
    assert not cpu.takes("eager", *inputs)
    assert not cpu.takes("auto", inputs[0].double(), *inputs[1:])
    assert not cpu.takes("auto", inputs[0].to("meta"), *inputs[1:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not cpu.takes("auto", *inputs)


def test_float32_is_as_near_to_float64_as_the_reference():
    inputs = [t.detach() for t in given(rows=(200,), width=96, bottleneck=8, shared=16, dtype=torch.float32)]
    truth = adapter(*(t.double() for t in inputs), impl="eager")
    errors = {impl: (adapter(*inputs, impl=impl) - truth).abs().max() for impl in ("auto", "eager")}
    assert errors["auto"] <= 2 * errors["eager"]
