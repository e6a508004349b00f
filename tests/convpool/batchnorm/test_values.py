"""The op against torch's own layers in float64: every geometry, each kind of norm, both memory formats.

In float64 everything is torch's, but for rounding. In float32 rounding may choose another winner: integers, on which
nothing is rounded, show that winners are torch's, and random numbers how far from float64 value and gradients are.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from convpool import conv_bn_relu_max_pool2d, conv_relu_max_pool2d, eager, planning
from convpool.batchnorm import operators
from convpool.batchnorm.eager import bn_relu_max_pool
from convpool.batchnorm.fold import Statistics
from convpool.geometry import DEAD, Geometry
from convpool.layout import has_channels_last_strides
from convpool.testing import cases
from convpool.testing.cases import Case
from convpool.testing.parity import Inputs, Layout, make_inputs
from convpool.torch_ops import offset_in_window, winners
from tests.convpool.batchnorm.oracle import NORMALISED, double, error, on_backends, refusal, run

EPS = 1e-5
LAYOUTS = ("nchw", "channels_last")
FORMATS = (torch.contiguous_format, torch.channels_last)

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Norm:
    """A kind of norm: its options, and which of the layer's vectors there are."""

    momentum: float
    eps: float
    affine: bool = True
    conv_bias: bool = False
    special: bool = False  # some of gamma is 0, and the last channel is dead

    def tensors(self, inputs: Inputs) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)

        def draw(scale: float) -> Tensor:
            drawn = torch.randn(inputs.weight.shape[0], generator=generator, dtype=torch.float64) * scale
            return drawn.to(inputs.x.dtype)

        found = {"x": inputs.x, "weight": inputs.weight}
        if self.conv_bias:
            found["bias"] = draw(1.0)
        if self.affine:
            found |= {"gamma": draw(1.0), "beta": draw(0.3)}
        if self.special:
            found["gamma"][1::3] = 0
            found["beta"][-1] = -30
        return found


NORMS = {
    "special": Norm(0.3, 1e-2, conv_bias=True, special=True),
    "usual": Norm(0.1, EPS),
    "not-affine": Norm(1.0, EPS, affine=False),
}


@pytest.mark.parametrize("case", NORMALISED)
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(name, layout, marks=[] if (name, layout) == ("special", "nchw") else [pytest.mark.slow])
        for name in NORMS
        for layout in LAYOUTS
    ],
)
@on_backends(torch.float64)
def test_float64(case: Case, name: str, layout: Layout, backend: str) -> None:
    inputs, norm = make_inputs(case, torch.float64, layout), NORMS[name]
    tensors, options = norm.tensors(inputs), {"momentum": norm.momentum, "eps": norm.eps}
    ours = run(partial(conv_bn_relu_max_pool2d, training=True, **case.options), tensors, inputs.dy, **options)
    torchs = run(partial(bn_relu_max_pool, settings=case.settings), tensors, inputs.dy, **options)
    if norm.conv_bias:
        assert not ours.pop("dbias").any(), "the mean takes the bias away; torch makes rounding errors of it"
    for result, got in ours.items():
        assert error(got, torchs[result]) < 1e-11, result


@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
@pytest.mark.parametrize("x_format", FORMATS, ids=str)
@pytest.mark.parametrize(
    "name", ["cnn-1", "cnn-2", "one-channel-each", "resnet-stem", "one-window", "groups-2", "contiguous-output-overlap"]
)
@on_backends(torch.float32)
def test_memory_formats_are_torchs(name: str, x_format, weight_format, backend: str) -> None:
    """Of the result; the gradients' are those of the op without a norm."""
    case = cases.by_name(name)
    inputs = make_inputs(case)
    x = inputs.x.clone(memory_format=x_format).requires_grad_()
    weight = inputs.weight.clone(memory_format=weight_format).requires_grad_()
    z = F.batch_norm(eager.conv(x, weight, None, case.settings), None, None, training=True)
    pooled = eager.pool(F.relu(z), case.settings)
    y = conv_bn_relu_max_pool2d(x, weight, training=True, **case.options)
    assert y.stride() == (pooled.contiguous() if case.settings.contiguous_output else pooled).stride()
    without = conv_relu_max_pool2d(x, weight, **case.options)
    for ours, plain in zip(*(torch.autograd.grad(t.sum(), (x, weight)) for t in (y, without)), strict=True):
        assert ours.stride() == plain.stride()


class Found(NamedTuple):
    """What the operators make of a call, in the order of their results."""

    y: Tensor
    code: Tensor
    statistics: Statistics
    grads: dict[str, Tensor]


def by_operators(inputs: Inputs, gamma: Tensor, beta: Tensor, backend: str) -> Found:
    x, weight, packed = inputs.x, inputs.weight, inputs.settings.pack()
    call = planning.plan_for(x, weight, inputs.settings, backend, planning.normalised).call
    y, code, *found = operators.forward(x, weight, gamma, beta, EPS, packed, call, True)
    dy = torch.empty_like(y).copy_(inputs.dy)
    grads = operators.backward(dy, code, x, weight, gamma, *found, EPS, packed, call, [True] * 4)
    return Found(y, code, Statistics(*found), dict(zip(("dx", "dw", "dgamma", "dbeta"), grads, strict=True)))


def normalised_winners(
    x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, code: Tensor, geometry: Geometry
) -> Tensor:
    """What torch's conv and norm make of each window's winner, 0 where dead."""
    won = winners(code, geometry)
    z = F.batch_norm(eager.conv(x, weight, None, geometry.settings), None, None, gamma, beta, True, 0.0, EPS)
    picked = z.flatten(2).gather(2, (won.row * geometry.conv_width + won.column).flatten(2))
    return torch.where(won.live, picked.view(geometry.output_shape), 0)


def through_winners(inputs: Inputs, norm: tuple[Tensor, Tensor], code: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """By torch in that type: the winners' values, and the gradients of x, weight, gamma and beta through them."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in (inputs.x, inputs.weight, *norm)]
    value = normalised_winners(*leaves, code, inputs.geometry)
    return [value.detach(), *torch.autograd.grad(value, leaves, inputs.dy.to(dtype))]


# Each with a power of two of conv positions: then the mean of integers is no rounded number.
ON_INTEGERS = (
    Case("direct", 4, 1, (10, 10), 6, (3, 3)),
    Case("kernel-5", 2, 3, (12, 12), 5, (5, 5)),
    Case("images", 16, 2, (8, 8), 5, (3, 3), {"padding": 1}),
    Case("one-image", 1, 3, (8, 16), 7, (3, 3), {"padding": 1}),
    Case("winograd", 2, 16, (8, 8), 20, (3, 3), {"padding": 1}),
    Case(
        "stem",
        2,
        3,
        (32, 16),
        20,
        (7, 7),
        {"stride": 2, "padding": 3, "pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1},
    ),
    Case("groups", 2, 6, (8, 8), 18, (3, 3), {"groups": 3, "padding": 1}),
    Case("depthwise", 2, 8, (8, 8), 8, (3, 3), {"groups": 8, "padding": 1}),
    Case("dilated", 2, 4, (12, 10), 6, (3, 2), {"dilation": 2}),
    Case("same-even", 2, 3, (8, 8), 6, (4, 4), {"padding": "same"}),
    Case("rows-that-no-window-sees", 2, 3, (10, 10), 6, (3, 3), {"pool_kernel_size": 2, "pool_stride": 3}),
    Case("overlap-ceil", 2, 3, (10, 10), 6, (3, 3), {"pool_kernel_size": 3, "pool_stride": 2, "ceil_mode": True}),
    Case("one-window", 8, 4, (4, 4), 10, (3, 3)),
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ON_INTEGERS, ids=str)
@on_backends(torch.float32)
def test_integers_are_exact(case: Case, layout: Layout, backend: str) -> None:
    """gamma is the standard deviation or its negative, and beta the mean but for an integer: the op that remains has
    integers for weight, or their negatives, and for bias. Ties abound."""
    inputs = make_inputs(case, layout=layout, integers=True)
    z = eager.conv(inputs.x.double(), inputs.weight.double(), None, case.settings)
    mean, variance = z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)
    sign = 1 - 2 * (torch.arange(case.out_channels) % 3 == 1).double()
    bias = torch.arange(case.out_channels).double() % 5 - 2
    gamma, beta = sign * (variance + EPS).sqrt(), sign * mean + bias
    found = by_operators(inputs, gamma, beta, backend)
    assert torch.equal(found.statistics.mean, mean)
    assert error(found.statistics.variance, variance) < 1e-13
    best, position = eager.pool_with_positions(sign[:, None, None] * z + bias[:, None, None], case.settings)
    assert torch.equal(found.y.double(), best.relu())
    assert torch.equal(found.code, torch.where(best <= 0, DEAD, offset_in_window(position, case.geometry)))
    _, *expected = through_winners(inputs, (gamma, beta), found.code, torch.float64)
    bounds = {"dx": 1e-6, "dw": 1e-7, "dgamma": 1e-12, "dbeta": 1e-12}  # gamma and beta are float64 here
    for (name, got), want in zip(found.grads.items(), expected, strict=True):
        assert error(got, want) < bounds[name], name


ROUNDING = 4 * torch.finfo(torch.float32).eps  # so small an error passes, whatever torch's is


@pytest.mark.parametrize("case", NORMALISED)
@on_backends(torch.float32)
def test_float32(case: Case, backend: str) -> None:
    """At most twice as far from float64 as torch's float32 layers in the worse of their formats; gradients are compared
    through the same winners."""
    reason = refusal(backend, case, torch.float32)
    if reason:
        with pytest.raises(RuntimeError, match="cannot serve"):
            planning.plan_for(*make_inputs(case).tensors[:2], case.settings, backend, planning.normalised)
        return
    names = ("y", "dx", "dw", "dgamma", "dbeta")
    ours, torchs = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for layout in LAYOUTS:
        inputs = make_inputs(case, layout=layout)
        tensors = NORMS["usual"].tensors(inputs)
        norm = tensors["gamma"], tensors["beta"]
        found = by_operators(inputs, *norm, backend)
        assert has_channels_last_strides(found.code) == has_channels_last_strides(found.y)
        z = eager.conv(inputs.x.double(), inputs.weight.double(), None, case.settings)
        assert error(found.statistics.mean, z.mean((0, 2, 3))) < 1e-7
        assert error(found.statistics.variance, z.var((0, 2, 3), correction=0)) < 1e-7
        y = bn_relu_max_pool(**double(tensors), bias=None, settings=case.settings, eps=EPS)
        value, *grads = through_winners(inputs, norm, found.code, torch.float64)
        assert error(value, y) < ROUNDING, "a window's winner is not the best that it sees"
        plain = through_winners(inputs, norm, found.code, torch.float32)
        for name, got, other, want in zip(names, (found.y, *found.grads.values()), plain, (y, *grads), strict=True):
            ours[name] = max(ours[name], error(got, want))
            torchs[name] = max(torchs[name], error(other, want))
    for name in names:
        assert ours[name] <= max(2 * torchs[name], ROUNDING), f"{name}: {ours[name]:.2g}, torch {torchs[name]:.2g}"
