"""conv -> BatchNorm2d under its batch's statistics -> ReLU -> max-pool: torch's own forms, ours, and right or wrong.

A layer here is a function of what `conv_bn_relu_max_pool2d` takes first, x to running_var, and the settings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from convpool import eager, planning
from convpool.batchnorm import conv_bn_relu_max_pool2d
from convpool.protocol import Plan
from convpool.testing.candidates import ParityError, Through, in_layout, timed_calls
from convpool.testing.cases import Case
from convpool.testing.parity import Inputs, Layout, Parity, make_inputs, undecided, worst
from convpool.testing.timing import Call

NormLayer: TypeAlias = Callable[..., Tensor]

# Of the largest element; torch's own layers in float32 were seen off by 5e-5, in the running mean in channels_last.
_TOLERANCE = 2e-4
_MOMENTUM, _EPS = 0.1, 1e-5  # nn.BatchNorm2d's


@dataclass(frozen=True)
class NormInputs(Inputs):
    """One call in training mode; the conv has no bias, which the norm takes away."""

    gamma: Tensor
    beta: Tensor
    running: tuple[Tensor, Tensor]  # mean and variance

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.x, self.weight, self.gamma, self.beta

    def arguments(self, tensors: Sequence[Tensor]) -> Any:
        x, weight, *norm = tensors
        return x, weight, None, *norm, *self.running, self.settings


def make_norm_inputs(case: Case, *, device: torch.device | str = "cpu", seed: int = 0) -> NormInputs:
    """Random tensors for a case: those of `make_inputs`, gamma about 1 and beta about 0; buffers as a new norm's."""
    plain = make_inputs(replace(case, bias=False), device=device, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    gamma, beta = (torch.randn(case.out_channels, generator=generator).mul(0.3).to(device) for _ in range(2))
    running = torch.zeros_like(gamma), torch.ones_like(gamma)
    return NormInputs(plain.x, plain.weight, None, plain.dy, plain.settings, 1 + gamma, beta, running)


def _torch_layers(*arguments: Any, pool_first: bool) -> Tensor:
    x, weight, bias, gamma, beta, mean, variance, settings = arguments
    z = F.batch_norm(eager.conv(x, weight, bias, settings), mean, variance, gamma, beta, True, _MOMENTUM, _EPS)
    return F.relu(eager.pool(z, settings)) if pool_first else eager.pool(F.relu(z), settings)


# torch's own ways to compute the layer, by name: what a speed-up is measured against.
PLAIN: dict[str, tuple[NormLayer, Layout]] = {
    name + ", channels_last" * (layout == "channels_last"): (partial(_torch_layers, pool_first=pool_first), layout)
    for name, pool_first in (("eager", False), ("pool before ReLU", True))
    for layout in ("nchw", "channels_last")
}


class NormThrough(Through):
    """The layer by a backend, or by whom `auto` chooses."""

    def compute(self, tensors: Sequence[Any], options: Mapping[str, Any]) -> Tensor:
        return conv_bn_relu_max_pool2d(*tensors, training=True, momentum=_MOMENTUM, eps=_EPS, **options)


def explained(inputs: NormInputs, backend: str) -> Plan:
    """Who computes the layer when asked by the name of a backend or `auto`, and why."""
    return planning.plan_for(inputs.x, inputs.weight, inputs.settings, backend, planning.normalised)


def norm_calls(inputs: NormInputs, layer: NormLayer, layout: Layout, *, dx: bool) -> list[Call]:
    """Calls, forward and backward, of a layer that was found to compute what torch computes.

    Raises:
        ParityError: its result is wrong for these inputs.
    """
    inputs = in_layout(inputs, layout)
    parity = check_norm_layer(inputs, layer, dx=dx)
    if not parity.ok:
        raise ParityError(f"wrong result for x {tuple(inputs.x.shape)}, {layout}, normalised: {parity}")
    return timed_calls(inputs, layer, dx=dx, backward=True)


def check_norm_layer(inputs: NormInputs, layer: NormLayer, *, dx: bool = True) -> Parity:
    """Hold a layer against torch's in float64: value, running statistics and gradients.

    No gradient goes back through a window whose winner rounding may decide.
    """
    precise = _of_type(inputs, torch.float64)
    dy = torch.where(_decided(precise), precise.dy, 0)
    expected = _results(replace(precise, dy=dy), PLAIN["eager"][0], dx)
    got = _results(replace(_of_type(inputs, inputs.x.dtype), dy=dy.to(inputs.dy.dtype)), layer, dx)
    return Parity(
        {name: worst(got[name], value, _TOLERANCE * value.abs().max().item()) for name, value in expected.items()}
    )


def _of_type(inputs: NormInputs, dtype: torch.dtype) -> NormInputs:
    """A copy, whose running statistics nobody else updates."""
    names = "x", "weight", "dy", "gamma", "beta"
    mean, variance = (t.to(dtype, copy=True) for t in inputs.running)
    return replace(inputs, running=(mean, variance), **{name: getattr(inputs, name).to(dtype) for name in names})


def _decided(inputs: NormInputs) -> Tensor:
    z = eager.conv(inputs.x, inputs.weight, None, inputs.settings)
    z = F.batch_norm(z, None, None, inputs.gamma, inputs.beta, True, eps=_EPS)
    return ~undecided(z, inputs.geometry, _TOLERANCE * z.abs().max().item())


def _results(inputs: NormInputs, layer: NormLayer, dx: bool) -> dict[str, Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs.tensors]
    wanted = leaves if dx else leaves[1:]
    y = layer(*inputs.arguments(leaves if dx else [inputs.x, *wanted]))
    grads = torch.autograd.grad(y, wanted, inputs.dy)
    names = ("dx", "dw", "dgamma", "dbeta")[-len(grads) :]
    mean, variance = inputs.running
    return {"y": y.detach(), "mean": mean, "variance": variance, **dict(zip(names, grads, strict=True))}
