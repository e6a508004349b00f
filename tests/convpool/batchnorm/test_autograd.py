"""The op inside torch: second derivatives, torch.func, forward mode, compile, distributed training."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn  # else DDP does, and this module keeps the group; see mnistfast's Ranks
from torch import Tensor, nn
from torch.autograd import forward_ad

from convpool import conv_bn_relu_max_pool2d, use_backend
from convpool.batchnorm.eager import bn_relu_max_pool
from convpool.geometry import make_settings
from tests.convpool.batchnorm.layers import assert_close, by_each_backend, pair, results

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"padding": 1, "groups": 2, "pool_kernel_size": 3, "pool_stride": 2, "ceil_mode": True}
SETTINGS = make_settings((3, 3), **OPTIONS)


def made(dtype=torch.float32, requires_grad=True) -> list[Tensor]:
    """x, weight, gamma and beta."""
    torch.manual_seed(0)
    shapes = (2, 4, 9, 8), (6, 2, 3, 3), (6,), (6,)
    return [torch.randn(shape, dtype=dtype, requires_grad=requires_grad) for shape in shapes]


def op(x, weight, gamma, beta) -> Tensor:
    return conv_bn_relu_max_pool2d(x, weight, None, gamma, beta, training=True, **OPTIONS)


def layers(x, weight, gamma, beta) -> Tensor:
    return bn_relu_max_pool(x, weight, None, gamma, beta, SETTINGS, eps=1e-5)


def close(ours, torchs) -> None:
    """float32 sums in another order: 1e-3 of the largest entry leaves room for squares of sums of sums."""
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3 * float(b.abs().max()))


def squares(function):
    return lambda *inputs: function(*inputs).square().sum()


# Derivatives of derivatives.


def test_gradcheck_and_gradgradcheck() -> None:
    with use_backend("reference"):  # in float64, which no other one computes in
        assert torch.autograd.gradcheck(op, made(torch.float64), fast_mode=True)
        assert torch.autograd.gradgradcheck(op, made(torch.float64), fast_mode=True)


@by_each_backend
@pytest.mark.parametrize("wanted", range(4))
def test_derivatives_of_one_argument(wanted, backend) -> None:
    """The others frozen: the branches that a full check always takes together."""

    def both(function) -> tuple[Tensor, Tensor]:
        inputs = made(requires_grad=False)
        inputs[wanted].requires_grad_()
        (alone,) = torch.autograd.grad(squares(function)(*inputs), inputs[wanted])
        (first,) = torch.autograd.grad(squares(function)(*inputs), inputs[wanted], create_graph=True)
        return alone, *torch.autograd.grad(first.square().sum(), inputs[wanted])

    close(both(op), both(layers))


@by_each_backend
@pytest.mark.parametrize("create_graph", [False, True])
def test_the_convs_bias_has_a_gradient_of_exactly_0(create_graph, backend) -> None:
    x, weight, gamma, beta = made(requires_grad=False)
    for frozen in (True, False):
        bias = torch.randn(6, requires_grad=True)
        y = conv_bn_relu_max_pool2d(x, weight.requires_grad_(not frozen), bias, gamma, beta, training=True, **OPTIONS)
        (grad,) = torch.autograd.grad(y.square().sum(), bias, create_graph=create_graph)
        assert grad.eq(0).all()


@by_each_backend
def test_batched_gradients(backend) -> None:
    inputs = made()
    torch.manual_seed(1)
    dys = torch.randn(3, *op(*inputs).shape)
    close(*(torch.autograd.grad(f(*inputs), inputs, dys, is_grads_batched=True) for f in (op, layers)))


@by_each_backend
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_tangent_that_comes_after_the_forward_pass(create_graph, backend) -> None:
    inputs = made()
    tangents = []
    for f in (op, layers):
        y = f(*inputs)
        torch.manual_seed(1)
        with forward_ad.dual_level():
            dy = forward_ad.make_dual(torch.randn_like(y), torch.randn_like(y))
            grads = torch.autograd.grad(y, inputs, dy, create_graph=create_graph)
            tangents.append([forward_ad.unpack_dual(g).tangent.detach() for g in grads])
    close(*tangents)


@by_each_backend
def test_lazily_negated_tensors_and_zeros_without_memory(backend) -> None:
    """As `z.conj().imag` is one: its memory holds the opposite of its values."""
    x, *others = made()
    negated = [torch._neg_view(x.detach()).requires_grad_(), *others]
    close(*(torch.autograd.grad(squares(f)(*negated), negated) for f in (op, layers)))
    y = op(x, *others)
    assert not any(g.any() for g in torch.autograd.grad(y, [x, *others], torch._efficientzerotensor(y.shape)))


@by_each_backend
def test_statistics_used_again_between_forward_and_backward(backend) -> None:
    """The running statistics move on, which no backward pass may notice."""
    layer, plain = pair(4, 6, 3)
    x = torch.randn(3, 4, 9, 8)
    grads = []
    for module in (layer, plain):
        first, _ = module(x), module(x * 2)
        grads.append(torch.autograd.grad(first.square().sum(), list(module.parameters())))
    close(*grads)


# torch.func and forward mode: torch's layers, and a backend that was named says so.


def test_torch_func() -> None:
    inputs = made(requires_grad=False)
    x = torch.stack([inputs[0], inputs[0] * 2])
    close(*(torch.func.grad(squares(f), (0, 1, 2, 3))(*inputs) for f in (op, layers)))
    close(*(torch.func.vmap(f, (0, None, None, None))(x, *inputs[1:]) for f in (op, layers)))
    per_sample = (torch.func.vmap(torch.func.grad(squares(f), 1), (0, None, None, None)) for f in (op, layers))
    close(*(f(x, *inputs[1:]) for f in per_sample))
    close(*(torch.func.jvp(lambda x, f=f: f(x, *inputs[1:]), (inputs[0],), (x[1],)) for f in (op, layers)))
    with use_backend("reference"):
        with pytest.raises(RuntimeError, match=r"no backend computes the derivatives of torch\.func"):
            torch.func.grad(squares(op))(*inputs)
        with pytest.raises(RuntimeError, match="forward-mode"), forward_ad.dual_level():
            op(forward_ad.make_dual(inputs[0], inputs[0]), *inputs[1:])


@by_each_backend
def test_functional_call(backend) -> None:
    """The buffers that are given move, and the layer's own stay."""
    x = torch.randn(3, 4, 9, 8)
    outcomes = []
    for module in pair(4, 6, 3, momentum=None):
        values = {name: t.detach() * 2 for name, t in module.state_dict().items()}
        values |= {name: values[name].requires_grad_() for name, _ in module.named_parameters()}
        y = torch.func.functional_call(module, values, (x,))
        grads = torch.autograd.grad(y.square().sum(), [t for t in values.values() if t.requires_grad])
        outcomes.append([y.detach(), *grads, *(t for t in values.values() if not t.requires_grad)])
        assert module.norm.num_batches_tracked == 0
        assert values["norm.num_batches_tracked"] == 1
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


# Compile.


@by_each_backend
@pytest.mark.parametrize(
    ("training", "momentum", "dynamic"),
    [
        (True, None, False),
        *(
            pytest.param(*values, marks=pytest.mark.slow)
            for values in (
                (True, None, True),
                (True, 0.1, False),
                (True, 0.1, True),
                (False, 0.1, False),
                (False, 0.1, True),
            )
        ),
    ],
)
def test_compile(training, momentum, dynamic, backend) -> None:
    """Without a graph break, forward and backward, with the buffers."""
    torch.compiler.reset()
    layer = pair(2, 4, 3, bias=True, momentum=momentum)[0].train(training)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (4, 5) if dynamic else (4,):
        x = torch.randn(batch, 2, 9, 8)
        ours, theirs = results(compiled, x), results(layer, x)
        assert_close(without("_orig_mod.", ours), theirs)
    with torch.profiler.profile() as profile:
        results(compiled, x)
    ours = {f"convpool::conv_bn_relu_max_pool2d{which}" for which in ("", "_backward")}
    assert (ours <= {event.name for event in profile.events()}) is training


def without(prefix: str, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a wrapper puts before the names of its module's tensors taken away."""
    return {name.replace(prefix, ""): t for name, t in found.items()}


@pytest.mark.slow
@by_each_backend
def test_compile_with_inductor(backend) -> None:
    torch.compiler.reset()
    layer, x = pair(2, 4, 3, momentum=None)[0], torch.randn(4, 2, 9, 8)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True)
    assert_close(without("_orig_mod.", results(compiled, x)), results(layer, x))


def test_compile_where_no_backend_serves() -> None:
    """momentum=None included, in which torch's own norm breaks the graph."""
    torch.compiler.reset()
    layer, x = pair(2, 4, 3, momentum=None, dtype=torch.float64)[0], torch.randn(4, 2, 9, 8, dtype=torch.float64)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    assert_close(without("_orig_mod.", results(compiled, x)), results(layer, x))


# Distributed.


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
@by_each_backend
def test_distributed_data_parallel(backend, tmp_path: Path) -> None:
    """One process: the wrapper broadcasts buffers and hooks gradients."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        layer, plain = pair(4, 6, 3)
        _train_together(layer, plain)
    finally:
        dist.destroy_process_group()


def _train_together(layer: nn.Module, plain: nn.Module) -> None:
    """The wrapper ends with this call and before the group, which it would keep."""
    wrapped = nn.parallel.DistributedDataParallel(layer)
    for x in torch.randn(3, 3, 4, 9, 8):
        assert_close(without("module.", results(wrapped, x)), results(plain, x))
