"""Backends of third parties: named, asked by `auto`, planned once, and forgotten again."""

import pytest
import torch
from torch.func import functional_call, vmap

import convpool
from convpool import ConvReLUMaxPool2d, conv_relu_max_pool2d, explain, registry, use_backend
from convpool.testing import cases, parity
from tests.convpool.own_backend import own_backend

X, WEIGHT = torch.randn(2, 1, 8, 8), torch.randn(3, 1, 3, 3)


def test_auto_asks_it_first_and_explain_tells() -> None:
    before = explain(X, WEIGHT)
    with own_backend() as own:
        plan = explain(X, WEIGHT.clone().requires_grad_())
        assert (plan.call, plan.kernels) == ("own/narrow", ("narrow_forward", "own_backward"))
        assert str(plan).startswith("own, narrow plan, narrow_forward + own_backward: it is ours")
        assert own.met == []
    assert explain(X, WEIGHT) == before


def test_what_it_declines_goes_to_the_next() -> None:
    assert explain(X, WEIGHT).backend != "own"
    with own_backend(profitable=False):
        assert explain(X, WEIGHT).backend != "own"
        with use_backend("own"):
            assert explain(X, WEIGHT).backend == "own"
            with pytest.raises(RuntimeError, match=r"backend 'own' cannot serve this call: dtype torch\.float64"):
                conv_relu_max_pool2d(X.double(), WEIGHT.double())


def test_it_computes_what_torch_computes() -> None:
    with own_backend():
        for name in ("cnn-2", "mixed-1"):
            found = parity.check(parity.make_inputs(cases.by_name(name), integers=True), "own", exact=True)
            assert found.ok, found


def test_the_plan_is_made_once() -> None:
    """Forward, backward and second derivative, under vmap too, where the geometry is another one: one plan."""
    with own_backend() as own, use_backend("own"):
        layer = ConvReLUMaxPool2d(1, 3, 3)
        x = torch.randn(4, 1, 20, 20, requires_grad=True)
        (grad,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
        grad.square().sum().backward()
        stacked = {name: torch.stack([t, 2 * t]).detach() for name, t in layer.named_parameters()}
        vmap(lambda p: functional_call(layer, p, (x,)))(stacked)
        assert set(own.met) == {"wide"}
        served = own.serves
        own.serves = lambda *_: "it is asked again"  # type: ignore[method-assign]
        y = layer(x)  # decided before
        y.sum().backward()
        own.serves = served  # type: ignore[method-assign]


@pytest.mark.slow
def test_the_compiler_takes_its_plan_along() -> None:
    with own_backend() as own, use_backend("own"):
        layer = ConvReLUMaxPool2d(1, 3, 3)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
        for size in (8, 10):
            x = torch.randn(2, 1, size, size, requires_grad=True)
            torch.testing.assert_close(compiled(x), layer(x))
            compiled(x).sum().backward()
        assert set(own.met) == {"narrow"}


@pytest.mark.parametrize("name", ["auto", "auto-replayed", "torch", "a/b", ""])
def test_words_that_are_no_names(name: str) -> None:
    with pytest.raises(ValueError, match="name must be a word"):
        convpool.register_backend(name, lambda: None)  # type: ignore[arg-type, return-value]


def test_a_forgotten_backend_is_named() -> None:
    with own_backend():
        y = conv_relu_max_pool2d(X, WEIGHT.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"backend must be one of cpu, triton, reference, .* got 'own/narrow'"):
        y.sum().backward()
    with pytest.raises(ValueError, match=r"use_backend must be one of .*, got 'own'"), use_backend("own"):
        pass


@pytest.mark.parametrize("call", ["cpu", "auto", "", "cuddn/fused"])
def test_the_operators_take_a_plan_not_a_wish(call: str) -> None:
    settings = cases.by_name("cnn-1").settings
    with pytest.raises(ValueError, match="and '/' and its plan"):
        convpool.ConvReLUMaxPool2dFunction.apply(X, WEIGHT, None, settings, call)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_a_plan_that_there_is_not_is_refused(backend: str) -> None:
    missing = registry.backend(backend).unavailable()
    if missing:
        pytest.skip(f"backend {backend}: {missing}")
    with pytest.raises(ValueError, match="plan must be fused or split, got 'fast'"):
        convpool.ConvReLUMaxPool2dFunction.apply(X, WEIGHT, None, cases.by_name("cnn-1").settings, f"{backend}/fast")
