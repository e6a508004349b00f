"""The layer: parameters and keys of nn.Conv2d, construction from layers, padding modes, tracing, pickling."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from convpool import ConvReLUMaxPool2d, conv_relu_max_pool2d


def layers_of(layer: ConvReLUMaxPool2d, x: torch.Tensor) -> torch.Tensor:
    pool = nn.MaxPool2d(
        layer.pool_kernel_size, layer.pool_stride, layer.pool_padding, layer.pool_dilation, ceil_mode=layer.ceil_mode
    )
    return pool(nn.Conv2d.forward(layer, x).relu())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1, "bias": False},
        {"padding": "same", "dilation": 2},
        {"groups": 3, "pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1, "ceil_mode": True},
        {"padding": 2, "padding_mode": "reflect"},
        {"padding": (1, 2), "padding_mode": "circular"},
        {"padding": "same", "padding_mode": "replicate"},
    ],
)
def test_computes_what_the_layers_compute(options, backend) -> None:
    torch.manual_seed(0)
    layer = ConvReLUMaxPool2d(3, 6, 3, **options)
    x = torch.randn(2, 3, 12, 11)
    torch.testing.assert_close(layer(x), layers_of(layer, x), rtol=1e-5, atol=1e-5)
    layer.plain = True
    torch.testing.assert_close(layer(x), layers_of(layer, x))


def test_parameters_and_initialisation_are_those_of_conv2d() -> None:
    torch.manual_seed(3)
    layer = ConvReLUMaxPool2d(4, 8, 3)
    torch.manual_seed(3)
    conv = nn.Conv2d(4, 8, 3)
    assert list(layer.state_dict()) == list(conv.state_dict()) == ["weight", "bias"]
    assert torch.equal(layer.weight, conv.weight)
    assert torch.equal(layer.bias, conv.bias)
    conv.load_state_dict(layer.state_dict())


def test_from_layers_shares_parameters_and_mode(backend) -> None:
    conv = nn.Conv2d(3, 6, 3, stride=2, padding=1, padding_mode="circular").eval()
    pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
    layer = ConvReLUMaxPool2d.from_layers(conv, pool)
    x = torch.randn(2, 3, 13, 13)
    assert layer.weight is conv.weight
    assert layer.bias is conv.bias
    assert not layer.training
    torch.testing.assert_close(layer(x), pool(conv(x).relu()), rtol=1e-5, atol=1e-5)


def test_from_layers_refuses() -> None:
    with pytest.raises(TypeError, match=r"nn.Conv2d, nn.MaxPool2d, got Conv1d, MaxPool2d"):
        ConvReLUMaxPool2d.from_layers(nn.Conv1d(1, 1, 1), nn.MaxPool2d(2))
    with pytest.raises(ValueError, match="return_indices"):
        ConvReLUMaxPool2d.from_layers(nn.Conv2d(1, 1, 1), nn.MaxPool2d(2, return_indices=True))


class Doubled(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("conv", "hooked", "words"),
    [
        (Doubled(1, 1, 1), False, "conv must compute what nn.Conv2d does, got Doubled"),
        (weight_norm(nn.Conv2d(1, 1, 1)), False, "conv must have parameters of its own, got a parametrized one"),
        (nn.LazyConv2d(1, 1), False, "conv must know its sizes, got a lazy one"),
        (nn.Conv2d(1, 1, 1), True, "pool must have no hooks"),
    ],
)
def test_from_layers_refuses_what_it_would_lose(conv, hooked, words) -> None:
    pool = nn.MaxPool2d(2)
    if hooked:
        pool.register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match=words):
        ConvReLUMaxPool2d.from_layers(conv, pool)


def test_refusals_at_construction() -> None:
    with pytest.raises(ValueError, match="pool_kernel_size must be at least 1, got 0"):
        ConvReLUMaxPool2d(1, 1, 3, pool_kernel_size=0)


def test_repr_names_the_pool() -> None:
    layer = ConvReLUMaxPool2d(1, 2, 3, pool_kernel_size=3, pool_stride=2, ceil_mode=True)
    layer.plain = True
    assert repr(layer) == (
        "ConvReLUMaxPool2d(1, 2, kernel_size=(3, 3), stride=(1, 1), "
        "pool_kernel_size=3, pool_stride=2, ceil_mode=True, plain=True)"
    )


@pytest.mark.parametrize("plain", [False, True])
def test_contiguous_output_flattens_without_a_copy(backend, plain) -> None:
    layer = ConvReLUMaxPool2d(4, 6, 3, contiguous_output=True).to(memory_format=torch.channels_last)
    layer.plain = plain
    x = torch.randn(2, 4, 10, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = layer(x)
    assert y.is_contiguous()
    assert y.flatten(1).data_ptr() == y.data_ptr()
    torch.testing.assert_close(y, layers_of(layer, x), rtol=1e-5, atol=1e-5)
    (dx,) = torch.autograd.grad(y.sum(), x)  # x.grad would take the format of x, whatever that of dx
    assert dx.is_contiguous(memory_format=torch.channels_last)


def test_fx_records_one_node() -> None:
    model = nn.Sequential(ConvReLUMaxPool2d(1, 4, 3), nn.Flatten())
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [conv_relu_max_pool2d]
    x = torch.randn(2, 1, 10, 10)
    torch.testing.assert_close(traced(x), model(x))


@pytest.mark.parametrize("inside", [False, True], ids=["itself", "inside another"])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit")
def test_torchscript_takes_the_trace_of_a_plain_layer_alone(backend, inside) -> None:
    layer, x = ConvReLUMaxPool2d(2, 4, 3), torch.randn(2, 2, 10, 10)
    model = nn.Sequential(layer, nn.Flatten()) if inside else layer
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace cannot record"):
        torch.jit.trace(model, x)
    for layer.plain in (False, True):
        with pytest.raises(RuntimeError, match=r"torch\.jit\.script cannot compile"):
            torch.jit.script(model)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))


def test_copies() -> None:
    layer, x = ConvReLUMaxPool2d(1, 4, 3), torch.randn(2, 1, 10, 10)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))


def test_a_parametrised_weight_is_the_one_used(backend) -> None:
    layer, x = ConvReLUMaxPool2d(2, 4, 3), torch.randn(2, 2, 10, 10)
    nn.utils.parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.data.mul_(2)
    torch.testing.assert_close(layer(x), layers_of(layer, x), rtol=1e-5, atol=1e-5)
    layer(x).sum().backward()
    assert layer.parametrizations.weight.original0.grad is not None
