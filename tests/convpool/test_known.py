"""A call that was met before is computed as a new one is, and whatever makes it another one is seen."""

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import convpool
from convpool import conv_relu_max_pool2d, known, torch_private, use_backend
from tests.convpool.own_backend import own_backend


@pytest.fixture(autouse=True)
def met() -> Iterator[None]:
    """Nothing is known at first; then one call, forward and backward."""
    known.forget()
    for _ in range(2):
        step()
    assert len(known._known) == 1
    yield
    known.forget()


def leaves(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 9, 9), (8, 3, 3, 3), (8,)
    x, w, b = (torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes)
    return x, w, b


def expected(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    return F.max_pool2d(F.relu(F.conv2d(x, weight, bias, stride)), 2)


def step(call: Callable[..., Tensor] = conv_relu_max_pool2d) -> tuple[Tensor, ...]:
    tensors = leaves()
    y = call(*tensors)
    return y, *torch.autograd.grad(y, tensors, torch.linspace(-1, 1, y.numel()).view_as(y))


def is_known(*tensors: Any, stride: Any = 1) -> bool:
    return known.find(tensors, (stride, 0, 1, 1, 2, None, 0, 1, False, False)) is not None


def test_it_is_found_and_computed_alike() -> None:
    assert is_known(*leaves())
    torch.testing.assert_close(step(), step(expected))
    compute = known.find(leaves(), (1, 0, 1, 1, 2, None, 0, 1, False, False))
    assert isinstance(compute, functools.partial)
    assert compute.args[0]._kind is not None, "its backward pass is known too"


def test_calls_of_torchs_layers_are_found_too() -> None:
    for plan in ("torch/plain", "torch/channels_last"):
        with use_backend(plan):
            step()
            assert is_known(*leaves())
            torch.testing.assert_close(step(), step(expected))


def test_what_a_plan_hangs_on_makes_another_call() -> None:
    with torch.no_grad():
        assert not is_known(*leaves())
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert not is_known(*leaves())
    finally:
        torch.set_num_threads(threads)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(not deterministic)
    try:
        assert not is_known(*leaves())
    finally:
        torch.use_deterministic_algorithms(deterministic)
    assert is_known(*leaves())


@pytest.mark.parametrize(
    "other",
    [
        lambda x, w, b: (x.detach(), w, b),
        lambda x, w, b: (x[:1], w, b),
        lambda x, w, b: (x.to(memory_format=torch.channels_last), w, b),
        lambda x, w, b: (x, w.detach(), b),
        lambda x, w, b: (x, w, None),
        lambda x, w, b: (torch._neg_view(x), w, b),
        lambda x, w, b: (x.expand(2, 3, 9, 9).flip(3), w, b),
        lambda x, w, b: (x.as_strided((2, 3, 9, 9), (81, 162, 9, 1)), w, b),
    ],
)
def test_other_tensors_are_other_calls(other) -> None:
    tensors = other(*leaves())
    for _ in range(3):  # the last ones may be known again
        torch.testing.assert_close(conv_relu_max_pool2d(*tensors), expected(*tensors))


def test_another_type_is_another_call() -> None:
    x, w, b = leaves(torch.float64)
    assert conv_relu_max_pool2d(x, w, b).dtype == torch.float64
    with pytest.raises(TypeError, match="dtype"):
        conv_relu_max_pool2d(leaves()[0], w, b)
    parameters = [torch.nn.Parameter(t.detach()) for t in leaves()]
    assert not is_known(*parameters)


def test_options_are_compared_with_their_types() -> None:
    x, w, b = leaves()
    assert not is_known(x, w, b, stride=True)
    with pytest.raises(TypeError, match="stride"):
        conv_relu_max_pool2d(x, w, b, True)
    torch.testing.assert_close(conv_relu_max_pool2d(x, w, b, 2), expected(x, w, b, 2))


def test_options_that_change_in_place_are_not_known() -> None:
    x, w, b = leaves()
    stride = [1, 1]
    for step_size in (1, 1, 2):
        stride[:] = [step_size, step_size]
        torch.testing.assert_close(conv_relu_max_pool2d(x, w, b, stride), expected(x, w, b, step_size))


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="x must be a Tensor"):
        conv_relu_max_pool2d([1.0], *leaves()[1:])


@pytest.mark.parametrize("which", [0, 1, 2])
def test_freed_memory_is_seen(which) -> None:
    tensors = [t.detach().clone().requires_grad_() for t in leaves()]
    tensors[which].untyped_storage().resize_(16)
    assert not is_known(*tensors)
    with pytest.raises(RuntimeError, match="has no memory"):
        conv_relu_max_pool2d(*tensors)


def test_memory_freed_before_the_backward_pass_is_seen() -> None:
    x, w, b = leaves()
    y = conv_relu_max_pool2d(x, w, b)
    x.untyped_storage().resize_(16)
    with pytest.raises(RuntimeError, match="has no memory"):
        y.backward(torch.ones_like(y))


def test_without_gradients_nothing_is_kept_for_them() -> None:
    with torch.no_grad():
        assert conv_relu_max_pool2d(*leaves()).grad_fn is None
    with torch.inference_mode():
        assert not is_known(*leaves())
        assert conv_relu_max_pool2d(*leaves()).is_inference()
    assert conv_relu_max_pool2d(*leaves()).requires_grad


def test_gradients_that_are_asked_for_by_themselves() -> None:
    """`needs_input_grad` of a backward pass is not always what requires a gradient."""
    tensors = leaves()
    whole = step()
    for n, tensor in enumerate(tensors):
        y = conv_relu_max_pool2d(*tensors)
        dy = torch.linspace(-1, 1, y.numel()).view_as(y)
        assert torch.equal(torch.autograd.grad(y, tensor, dy)[0], whole[n + 1])


def test_other_gradients_of_the_result() -> None:
    x, w, b = leaves()
    for dy in (torch.ones(2, 8, 3, 3).to(memory_format=torch.channels_last), torch.ones(1).expand(2, 8, 3, 3)):
        for _ in range(2):
            found = torch.autograd.grad(conv_relu_max_pool2d(x, w, b), (x, w, b), dy)
            torch.testing.assert_close(found, torch.autograd.grad(expected(x, w, b), (x, w, b), dy))


def test_second_derivatives() -> None:
    def squared(call: Callable[..., Tensor]) -> Tensor:
        tensors = leaves()
        grads = torch.autograd.grad(call(*tensors).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), tensors)

    torch.testing.assert_close(squared(conv_relu_max_pool2d), squared(expected), rtol=1e-4, atol=1e-4)


def test_modes_are_seen() -> None:
    """A known call is no short cut past what has to see the operators."""
    x, w, b = leaves()

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    names: list[str] = []
    with Seen():
        conv_relu_max_pool2d(x, w, b)
    assert any("conv_relu_max_pool2d" in name for name in names)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv_relu_max_pool2d(x, w, b).dtype == torch.bfloat16
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        assert forward_ad.unpack_dual(conv_relu_max_pool2d(dual, w, b)).tangent is not None
    fixed = w.detach(), b.detach()
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace cannot record"):
        torch.jit.trace(lambda t: conv_relu_max_pool2d(t, *fixed), x.detach())
    together = torch.func.vmap(lambda t: conv_relu_max_pool2d(t, w, b))(torch.stack([x, x]))
    assert torch.equal(together[0], conv_relu_max_pool2d(x, w, b))
    grads = torch.func.grad(lambda t: conv_relu_max_pool2d(t, w, b).sum())(x.detach())
    torch.testing.assert_close(grads, torch.autograd.grad(expected(x, w, b).sum(), x)[0])


def test_batched_gradients_are_seen() -> None:
    x, w, b = leaves()
    y = conv_relu_max_pool2d(x, w, b)
    dy = torch.randn(3, *y.shape)
    found = torch.autograd.grad(y, w, dy, is_grads_batched=True)[0]
    each = [torch.autograd.grad(expected(x, w, b), w, one)[0] for one in dy]
    torch.testing.assert_close(found, torch.stack(each), rtol=1e-4, atol=1e-4)


def test_the_backend_asked_for_counts() -> None:
    x, w, b = leaves()
    with use_backend("reference"):
        assert not is_known(x, w, b)
        conv_relu_max_pool2d(x, w, b)
        assert is_known(x, w, b)
    assert is_known(x, w, b)


def test_another_backend_is_asked_as_soon_as_it_is_registered() -> None:
    x, w, b = leaves()
    with own_backend() as own:
        conv_relu_max_pool2d(x, w, b)
        conv_relu_max_pool2d(x, w, b)
        assert own.met == ["narrow"] * 2
    conv_relu_max_pool2d(x, w, b)
    assert own.met == ["narrow"] * 2


def test_what_is_kept_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(known, "MOST_SHAPES", 3)
    monkeypatch.setattr(known, "MOST_CALLS", 2)
    _, w, b = leaves()
    for size in range(5, 12):
        conv_relu_max_pool2d(torch.randn(1, 3, size, size), w, b)
        for stride in (1, 2, 3):
            conv_relu_max_pool2d(torch.randn(1, 3, size + 8, size + 8), w, b, stride)
        assert len(known._known) <= 3
        assert all(len(calls) <= 2 for calls in known._known.values())


def test_a_torch_that_cannot_tell_takes_the_longer_way(monkeypatch) -> None:
    first = step()
    known.forget()
    monkeypatch.setattr(torch_private, "may_be_known", lambda: False)
    for ours, before in zip(step(), first, strict=True):
        assert torch.equal(ours, before)
    assert not known._known


def test_a_layer_can_be_copied_after_its_call() -> None:
    layer = convpool.ConvReLUMaxPool2d(3, 8, 3)
    x = torch.randn(2, 3, 9, 9)
    for _ in range(2):
        assert torch.equal(copy.deepcopy(layer)(x), layer(x))
