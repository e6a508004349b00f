"""The op inside torch: second derivatives, torch.func, compile, export, autocast."""

import pytest
import torch
from torch.autograd import forward_ad

from convpool import ConvReLUMaxPool2d, conv_relu_max_pool2d, eager, registry, use_backend
from convpool.geometry import make_settings
from convpool.testing import cases

OPTIONS = {"padding": 1, "groups": 2, "pool_kernel_size": 3, "pool_stride": 2, "ceil_mode": True}


@pytest.fixture
def serves_float64(backend: str) -> str:
    geometry = cases.by_name("mixed-1").geometry
    served = registry.backend(backend).serves(geometry, torch.float64, torch.device("cpu"))
    if isinstance(served, str):
        pytest.skip(f"gradcheck needs float64; backend {backend}: {served}")
    return backend


def make(dtype=torch.float64, batch=2, requires_grad=True):
    torch.manual_seed(0)
    shapes = ((batch, 4, 9, 8), (6, 2, 3, 3), (6,))
    return [torch.randn(shape, dtype=dtype, requires_grad=requires_grad) for shape in shapes]


def op(x, weight, bias):
    return conv_relu_max_pool2d(x, weight, bias, **OPTIONS)


def layers(x, weight, bias):
    return eager.relu_then_pool(x, weight, bias, make_settings((3, 3), **OPTIONS))


def close(ours, torchs) -> None:
    """float32 sums in another order: 1e-3 of the largest entry leaves room for squares of sums of sums."""
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3 * float(b.abs().max()))


def test_gradcheck(serves_float64) -> None:
    assert torch.autograd.gradcheck(op, make(), fast_mode=True)


@pytest.mark.minutes_interpreted
def test_gradgradcheck(serves_float64) -> None:
    assert torch.autograd.gradgradcheck(op, make(), fast_mode=True)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_second_derivative_of_one_argument(wanted, backend) -> None:
    """create_graph with the others frozen: the branches that a full check always takes together."""

    def second(f):
        inputs = make(torch.float32, requires_grad=False)
        inputs[wanted].requires_grad_()
        (first,) = torch.autograd.grad(f(*inputs).square().sum(), inputs[wanted], create_graph=True)
        return torch.autograd.grad(first.square().sum(), inputs[wanted])

    close(second(op), second(layers))


def test_func_grad(backend) -> None:
    inputs = make(torch.float32, requires_grad=False)

    def loss(f):
        return lambda *args: f(*args).square().sum()

    close(torch.func.grad(loss(op), (0, 1, 2))(*inputs), torch.func.grad(loss(layers), (0, 1, 2))(*inputs))


@pytest.mark.parametrize("in_dims", [(0, None, None), (0, 0, None), (1, 0, 0), (None, 2, 0), (None, None, 0)])
def test_func_vmap(in_dims, backend) -> None:
    torch.manual_seed(0)
    inputs = make(torch.float32, requires_grad=False)
    mapped = [t if d is None else torch.randn(3, *t.shape).movedim(0, d) for t, d in zip(inputs, in_dims, strict=True)]
    ours = torch.func.vmap(op, in_dims)(*mapped)
    torch.testing.assert_close(ours, torch.func.vmap(layers, in_dims)(*mapped), rtol=1e-4, atol=1e-4)


def test_per_sample_gradients(backend) -> None:
    x, weight, bias = make(torch.float32, batch=5, requires_grad=False)

    def per_sample(f):
        grad = torch.func.grad(lambda w, b, x: f(x[None], w, b).square().sum(), (0, 1))
        return torch.func.vmap(grad, (None, None, 0))(weight, bias, x)

    close(per_sample(op), per_sample(layers))


@pytest.mark.parametrize("negated", ["x", "weight", "bias", "dy"])
def test_lazily_negated_tensors(negated, backend) -> None:
    """As `z.conj().imag` is one: its memory holds the opposite of its values."""

    def run(f):
        inputs = dict(zip(("x", "weight", "bias"), make(torch.float32, requires_grad=False), strict=True))
        inputs["dy"] = torch.randn_like(layers(**inputs))
        if negated in inputs:
            inputs[negated] = torch._neg_view(inputs[negated])
        dy = inputs.pop("dy")
        leaves = [t.requires_grad_() for t in inputs.values()]
        y = f(*leaves)
        return y.detach(), *torch.autograd.grad(y, leaves, dy)

    close(run(op), run(layers))


def test_gradients_of_zeros_that_have_no_memory(backend) -> None:
    inputs = make(torch.float32)
    y = op(*inputs)
    assert not any(g.any() for g in torch.autograd.grad(y, inputs, torch._efficientzerotensor(y.shape)))


def test_batched_gradients(backend) -> None:
    inputs = make(torch.float32)
    torch.manual_seed(1)
    dys = torch.randn(3, *op(*inputs).shape)
    ours, torchs = (torch.autograd.grad(f(*inputs), inputs, dys, is_grads_batched=True) for f in (op, layers))
    close(ours, torchs)


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_tangent_that_comes_after_the_forward_pass(create_graph, backend) -> None:
    inputs = make(torch.float32)
    tangents = []
    for f in (op, layers):
        y = f(*inputs)
        torch.manual_seed(1)
        with forward_ad.dual_level():
            dy = forward_ad.make_dual(torch.randn_like(y), torch.randn_like(y))
            grads = torch.autograd.grad(y, inputs, dy, create_graph=create_graph)
            tangents.append([forward_ad.unpack_dual(g).tangent.detach() for g in grads])
    close(*tangents)


def test_forward_mode_goes_to_torchs_layers() -> None:
    x, weight, bias = make(torch.float32, requires_grad=False)
    close(
        torch.func.jvp(lambda x: op(x, weight, bias), (x,), (x,)),
        torch.func.jvp(lambda x: layers(x, weight, bias), (x,), (x,)),
    )
    with use_backend("reference"), pytest.raises(RuntimeError, match="forward-mode"):
        torch.func.jvp(lambda x: op(x, weight, bias), (x,), (x,))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic, backend) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(op, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (2, 5):
        inputs = make(torch.float32, batch)
        ours, torchs = compiled(*inputs), layers(*inputs)
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)
        close(torch.autograd.grad(ours.sum(), inputs), torch.autograd.grad(torchs.sum(), inputs))


@pytest.mark.slow
def test_compile_with_inductor(backend) -> None:
    torch._dynamo.reset()
    model = torch.nn.Sequential(ConvReLUMaxPool2d(1, 8, 3), ConvReLUMaxPool2d(8, 16, 3), torch.nn.Flatten())
    x = torch.randn(4, 1, 28, 28).to(memory_format=torch.channels_last)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
    compiled(x).sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).sum().backward()
    close(grads, [p.grad for p in model.parameters()])


@pytest.mark.filterwarnings("error::UserWarning")
def test_compile_in_auto_mode() -> None:
    torch._dynamo.reset()
    inputs = make(torch.float32)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), layers(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("plain", [False, True])
def test_export_with_dynamic_batch(plain, backend) -> None:
    layer = ConvReLUMaxPool2d(3, 8, 3, padding="same").eval()
    layer.plain = plain
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(layer, (torch.randn(2, 3, 10, 10),), dynamic_shapes=({0: batch},)).module()
    x = torch.randn(7, 3, 10, 10)
    torch.testing.assert_close(exported(x), layer(x))


@pytest.mark.quick_interpreted
def test_autocast(backend) -> None:
    x, weight, bias = make(torch.float32)
    served = registry.backend(backend).serves(cases.by_name("mixed-1").geometry, torch.bfloat16, torch.device("cpu"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if isinstance(served, str):
            with pytest.raises(RuntimeError, match="cannot serve"):
                op(x, weight, bias)
            return
        y = op(x, weight, bias)
        expected = layers(x, weight, bias)
        assert y.dtype == expected.dtype == torch.bfloat16
        y.float().square().sum().backward()
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)
    assert weight.grad.dtype == torch.float32
    doubles = make(torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layers(*doubles).dtype == torch.float64


def test_the_forwards_backend_serves_its_backward() -> None:
    inputs = make(torch.float32)
    with use_backend("reference"):
        y = op(*inputs)
    close(torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(layers(*inputs).sum(), inputs))
