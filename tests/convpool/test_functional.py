"""The public op: formats, dtypes, what it refuses, what it allocates and what it keeps."""

import numpy as np
import pytest
import torch
from torch import nn

from convpool import ConvReLUMaxPool2d, conv_relu_max_pool2d, eager, explain, known, registry, use_backend
from convpool.layout import has_channels_last_strides
from convpool.testing import cases, parity

FORMATS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("x_format", FORMATS, ids=str)
@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
@pytest.mark.parametrize("name", ["cnn-1", "cnn-2", "one-channel-each", "resnet-stem", "groups-2", "kernel-1"])
def test_memory_format_is_eagers(name, x_format, weight_format, backend) -> None:
    inputs = parity.make_inputs(cases.by_name(name))
    x = inputs.x.clone(memory_format=x_format)
    weight = inputs.weight.clone(memory_format=weight_format)
    expected = eager.relu_then_pool(x, weight, inputs.bias, inputs.settings)
    y = conv_relu_max_pool2d(x, weight, inputs.bias, **cases.by_name(name).options)
    assert y.stride() == expected.stride()
    assert y.dtype == expected.dtype


@pytest.mark.parametrize("name", ["cnn-1", "cnn-2", "mixed-1"])
def test_auto_is_torch_to_rounding_and_in_format(name) -> None:
    case = cases.by_name(name)
    for layout in ("nchw", "channels_last"):
        inputs = parity.make_inputs(case, layout=layout)
        expected = eager.relu_then_pool(inputs.x, inputs.weight, inputs.bias, inputs.settings)
        y = conv_relu_max_pool2d(inputs.x, inputs.weight, inputs.bias, **case.options)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        assert y.stride() == expected.stride()


def test_unbatched_input(backend) -> None:
    x, weight, bias = torch.randn(3, 9, 9), torch.randn(4, 3, 3, 3), torch.randn(4)
    y = conv_relu_max_pool2d(x, weight, bias)
    assert y.shape == (4, 3, 3)
    torch.testing.assert_close(y, conv_relu_max_pool2d(x[None], weight, bias)[0])


@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
@pytest.mark.parametrize("innermost", [False, True])
def test_unbatched_output_is_contiguous_as_eagers(innermost, weight_format, backend) -> None:
    x = torch.randn(9, 9, 3).permute(2, 0, 1) if innermost else torch.randn(3, 9, 9)
    weight = torch.randn(4, 3, 3, 3).to(memory_format=weight_format)
    expected = torch.max_pool2d(torch.conv2d(x, weight).relu(), 2)
    y = conv_relu_max_pool2d(x, weight)
    assert y.stride() == expected.stride()
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_lists_count_as_pairs(backend) -> None:
    x, weight = torch.randn(1, 3, 9, 9), torch.randn(4, 3, 3, 3)
    assert torch.equal(
        conv_relu_max_pool2d(x, weight, stride=[1, 2], pool_kernel_size=[2, 1]),
        conv_relu_max_pool2d(x, weight, stride=(1, 2), pool_kernel_size=(2, 1)),
    )


@pytest.mark.parametrize(
    ("x", "weight", "bias", "error", "words"),
    [
        ([1.0], torch.ones(1, 1, 1, 1), None, TypeError, "x must be a Tensor, got list"),
        (torch.ones(1, 1, 4, 4), None, None, TypeError, "weight must be a Tensor, got NoneType"),
        (torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1, 1), 3, TypeError, "bias must be a Tensor, got int"),
        (torch.ones(4, 4), torch.ones(1, 1, 1, 1), None, ValueError, r"x must be \(N, C, H, W\).*got shape \(4, 4\)"),
        (torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1), None, ValueError, "weight must be .* got shape"),
        (torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1, 1), torch.ones(2), ValueError, r"bias must have shape \(1,\)"),
        (torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1, 1).half(), None, TypeError, "weight must have the dtype of x"),
        (
            torch.ones(1, 1, 4, 4),
            torch.ones(1, 1, 1, 1),
            torch.ones(1, dtype=torch.float64),
            TypeError,
            "bias must have the dtype of x, torch.float32, got torch.float64",
        ),
        (
            torch.ones(1, 1, 4, 4),
            torch.ones(1, 1, 1, 1, device="meta"),
            None,
            ValueError,
            "weight must have the device of x, cpu, got meta",
        ),
    ],
)
def test_refusals(x, weight, bias, error, words) -> None:
    with pytest.raises(error, match=words):
        conv_relu_max_pool2d(x, weight, bias)


@pytest.mark.parametrize("stride", [1.0, True, np.array([1, 1])], ids=str)
def test_what_equals_a_stride_is_none(stride) -> None:
    """Not even after the same call with a stride that is one: what is kept of that must not answer for this."""
    x, weight = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1, 1)
    conv_relu_max_pool2d(x, weight, stride=1)
    with pytest.raises(TypeError, match="stride must be an int, got"):
        conv_relu_max_pool2d(x, weight, stride=stride)


def test_freed_storage_is_refused(backend) -> None:
    weight = torch.ones(1, 1, 1, 1)
    x = torch.ones(1, 1, 4, 4)
    x.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"x of shape \(1, 1, 4, 4\) has no memory"):
        conv_relu_max_pool2d(x, weight)


def test_mkldnn_tensors_go_to_torchs_layers() -> None:
    x, weight = torch.randn(1, 3, 9, 9), torch.randn(4, 3, 3, 3)
    assert "layout" in explain(x.to_mkldnn(), weight).reason
    y = conv_relu_max_pool2d(x.to_mkldnn(), weight)
    torch.testing.assert_close(y.to_dense(), conv_relu_max_pool2d(x, weight), rtol=1e-5, atol=1e-5)


def test_auto_serves_what_no_kernel_can() -> None:
    """A window of more than 255 positions, under plain autograd; named backends say why they cannot."""
    x, weight = torch.randn(1, 1, 20, 20, requires_grad=True), torch.randn(2, 1, 3, 3)
    y = conv_relu_max_pool2d(x, weight, pool_kernel_size=17)
    y.sum().backward()
    assert explain(x, weight, pool_kernel_size=17).is_torch
    with use_backend("reference"), pytest.raises(RuntimeError, match="289 positions exceeds the 255"):
        conv_relu_max_pool2d(x, weight, pool_kernel_size=17)


def test_no_winners_are_kept_or_computed_without_gradients(backend, monkeypatch) -> None:
    asked = []
    kernels = registry.backend(backend)
    forward = kernels.forward
    known.forget()
    monkeypatch.delattr(type(kernels), "bind", raising=False)
    monkeypatch.setattr(
        type(kernels), "forward", lambda self, *args: (asked.append(args[-1]), forward(*args))[1], raising=True
    )
    x, weight = torch.randn(1, 1, 8, 8), torch.randn(2, 1, 3, 3, requires_grad=True)
    with torch.no_grad():
        conv_relu_max_pool2d(x, weight)
    with torch.inference_mode():
        conv_relu_max_pool2d(x, weight)
    conv_relu_max_pool2d(x, weight.detach())
    conv_relu_max_pool2d(x, weight)
    assert asked == [False, False, False, True]


def kept_bytes(model: nn.Module, x: torch.Tensor) -> int:
    """Bytes of the distinct storages autograd keeps for the backward pass, parameters not counted."""
    kept: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model(x).sum()
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    assert loss.requires_grad
    return sum(kept.values())


def test_a_fused_network_keeps_a_fifth_of_what_eager_keeps(backend) -> None:
    """`cnn2` at batch 128."""

    def network(plain: bool) -> nn.Module:
        layers = [ConvReLUMaxPool2d(1, 32, 3), ConvReLUMaxPool2d(32, 64, 3)]
        for layer in layers:
            layer.plain = plain
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10))

    x = torch.randn(128, 1, 28, 28)
    assert 5 * kept_bytes(network(plain=False), x) <= kept_bytes(network(plain=True), x)


def test_frozen_weight_keeps_no_input(backend) -> None:
    x = torch.randn(64, 8, 16, 16, requires_grad=True)
    layer = ConvReLUMaxPool2d(8, 4, 3)
    layer.weight.requires_grad_(False)
    assert kept_bytes(layer, x * 1) == 64 * 4 * 7 * 7


def test_channels_last_rule() -> None:
    """The strides decide where one channel makes both formats contiguous."""
    plain = torch.empty(2, 1, 4, 4)
    last = plain.contiguous(memory_format=torch.channels_last).as_strided((2, 1, 4, 4), (16, 1, 4, 1))
    assert not has_channels_last_strides(plain)
    assert has_channels_last_strides(last)
    assert has_channels_last_strides(torch.empty(2, 3, 4, 4).to(memory_format=torch.channels_last))
    assert not has_channels_last_strides(torch.empty(1, 3, 4, 4).expand(2, 3, 4, 4)[:, :1].expand(2, 3, 4, 4))
