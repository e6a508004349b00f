"""Whether a backend computes what torch computes: one check for tests, self-check and benchmarks.

The oracle is `eager.relu_then_pool` in float64 under torch's own autograd. On integer-valued data all sums are exact,
so value, winners and gradients must be equal to the last bit. On random data a bound on rounding decides, and since two
nearly equal conv outputs may swap ranks, winners count only where the oracle's lead exceeds that bound, and gradients
are compared with torch's gradients of the conv output gathered at the backend's own winners.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from convpool import eager, planning
from convpool.autograd import ConvReLUMaxPool2dFunction
from convpool.geometry import DEAD, Geometry, Settings
from convpool.testing.cases import Case
from convpool.torch_ops import winner_values, winners

Layout = Literal["nchw", "channels_last"]
Layer: TypeAlias = Callable[[Tensor, Tensor, Tensor | None, Settings], Tensor]


@dataclass(frozen=True)
class Inputs:
    """One call with the gradient sent back through it; x, weight, bias as leaves without requires_grad."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    dy: Tensor
    settings: Settings

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """x, weight, and bias where there is one."""
        return (self.x, self.weight) if self.bias is None else (self.x, self.weight, self.bias)

    def arguments(self, tensors: Sequence[Tensor]) -> Any:
        """What a layer is called with, these in the place of `tensors`."""
        x, weight, *bias = tensors
        return x, weight, bias[0] if bias else None, self.settings

    @property
    def geometry(self) -> Geometry:
        return Geometry.of(tuple(self.x.shape), tuple(self.weight.shape), self.settings)


@dataclass(frozen=True)
class Parity:
    """`error[name]`: the largest error of y, dx, dw, db over its bound; of code, the share of wrong winners."""

    error: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return all(error <= 1 for name, error in self.error.items() if name != "code") and not self.error.get("code")

    def __str__(self) -> str:
        return ", ".join(f"{name} {error:.2g}" for name, error in self.error.items())


def make_inputs(
    case: Case,
    dtype: torch.dtype = torch.float32,
    layout: Layout = "nchw",
    *,
    integers: bool = False,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Inputs:
    """Random tensors for a case: standard normal, weights scaled to keep z near 1; or small integers, full of ties."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...], scale: float) -> Tensor:
        if integers:
            t = torch.randint(-2, 3, shape, generator=generator, dtype=torch.float64)
        else:
            t = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        t = t.to(device, dtype)
        return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 and layout == "channels_last" else t

    geometry = case.geometry
    x = draw(case.x_shape, 1.0)
    weight = draw(case.weight_shape, geometry.reduction**-0.5)
    bias = draw((case.out_channels,), 0.5) if case.bias else None
    return Inputs(x, weight, bias, draw(geometry.output_shape, 1.0), case.settings)


def check(inputs: Inputs, backend: str, *, exact: bool = False) -> Parity:
    """Hold one forward and backward of `backend` against the oracle; `exact` asks for equality (integer data)."""
    leaves = [t.detach().requires_grad_() for t in inputs.tensors]
    call = planning.plan_for(inputs.x, inputs.weight, inputs.settings, backend).call
    y, code = ConvReLUMaxPool2dFunction.apply(*inputs.arguments(leaves), call)
    grads = torch.autograd.grad(y, leaves, inputs.dy)
    return check_results(inputs, y.detach(), code, dict(zip(("dx", "dw", "db"), grads, strict=False)), exact=exact)


def check_layer(
    inputs: Inputs,
    layer: Layer,
    *,
    integers: bool,
    exact: bool = True,
    dx: bool = True,
    backward: bool = True,
) -> Parity:
    """Hold any callable against the oracle, as it is: compiled, chosen by `auto`, or torch's own.

    Without its winners, gradients can be compared only where the values, and so the winners, are the oracle's to the
    last bit: `integers` puts small integers in the inputs' place. Otherwise the value alone is held to the bound of
    rounding.

    Args:
        exact: ask for equality on integers. A vendor's convolutions on a GPU may be fast transforms, whose sums round:
            without `exact` values and gradients are held to the bound of rounding, gradients where the values agree.
        dx: whether x has a gradient; kernels may differ where it has none.
        backward: False runs what inference runs.
    """
    if integers:
        inputs = _as_integers(inputs)
    needs = (backward and dx, backward, backward)
    leaves, precise = (
        [t.detach().to(dtype).requires_grad_(need) for t, need in zip(inputs.tensors, needs, strict=False)]
        for dtype in (inputs.x.dtype, torch.float64)
    )
    with torch.set_grad_enabled(backward):
        y = layer(*inputs.arguments(leaves))
        expected = eager.relu_then_pool(*inputs.arguments(precise))
    bounds, equal = _Bounds(inputs), integers and exact
    error = {"y": worst(y.detach(), expected.detach(), bounds.y, equal)}
    if integers and backward and (exact or torch.equal(y.detach().double(), expected.detach())):
        first = 0 if dx else 1
        got = torch.autograd.grad(y, leaves[first:], inputs.dy)
        wanted = torch.autograd.grad(expected, precise[first:], inputs.dy.double())
        for name, ours, theirs in zip(("dx", "dw", "db")[first:], got, wanted, strict=False):
            error[name] = worst(ours, theirs, getattr(bounds, name), equal)
    return Parity(error)


def check_call(inputs: Inputs, layer: Layer, *, exact: bool) -> Parity:
    """Hold any callable against the oracle on the inputs as they are, their strides and storage offsets included.

    Gradients are compared where rounding cannot have decided a winner: always if `exact`, that is on integers.
    """
    leaves = [t.detach().requires_grad_() for t in inputs.tensors]
    precise = [t.detach().double().contiguous().requires_grad_() for t in inputs.tensors]
    y, expected = layer(*inputs.arguments(leaves)), eager.relu_then_pool(*inputs.arguments(precise))
    bounds = _Bounds(inputs)
    error = {"y": worst(y.detach(), expected.detach(), bounds.y, exact)}
    z = eager.conv(*inputs.arguments(precise)).detach()
    if y.shape == expected.shape and (exact or not undecided(z, inputs.geometry, bounds.y).any()):
        got = torch.autograd.grad(y, leaves, inputs.dy)
        wanted = torch.autograd.grad(expected, precise, inputs.dy.double())
        for name, ours, theirs in zip(("dx", "dw", "db"), got, wanted, strict=False):
            error[name] = worst(ours, theirs, getattr(bounds, name), exact)
    return Parity(error)


def _as_integers(inputs: Inputs) -> Inputs:
    """Small integers, full of ties, in the shapes, types and layouts of the inputs."""
    generator = torch.Generator(inputs.x.device).manual_seed(0)

    def drawn(t: Tensor) -> Tensor:
        return torch.empty_like(t).random_(-2, 3, generator=generator)

    bias = None if inputs.bias is None else drawn(inputs.bias)
    return Inputs(drawn(inputs.x), drawn(inputs.weight), bias, drawn(inputs.dy), inputs.settings)


def check_results(inputs: Inputs, y: Tensor, code: Tensor, grads: dict[str, Tensor], *, exact: bool = False) -> Parity:
    """Hold given results against the oracle."""
    if inputs.x.shape[0] == 0:
        empty = y.numel() == 0 and all(not g.any() for g in grads.values())
        return Parity({"y": 0.0 if empty else float("inf")})
    leaves = [t.double().requires_grad_() for t in inputs.tensors]
    x, weight, bias, _ = inputs.arguments(leaves)
    bounds = _Bounds(inputs)
    value = eager.relu_then_pool(x, weight, bias, inputs.settings)
    error = {"y": worst(y, value.detach(), bounds.y, exact)}
    error["code"] = _wrong_winners(code, eager.conv(x, weight, bias, inputs.settings).detach(), inputs, bounds.y, exact)
    if not exact:
        value = winner_values(x, weight, bias, code, inputs.geometry)
    expected = torch.autograd.grad(value, leaves, inputs.dy.double())
    for (name, got), want in zip(grads.items(), expected, strict=True):
        error[name] = worst(got, want, getattr(bounds, name), exact)
    return Parity(error)


class _Bounds:
    """Largest rounding error to expect of y, dx, dw and db.

    A sum of n products, each rounded, is off by about sqrt(n) eps times the sum of their magnitudes (the errors are
    independent; Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 4.2, gives n eps as the worst case).
    The magnitudes are those of the same convolution of absolute values; the 2 leaves room for the bias and the store.
    Accumulators are float32 at least; storing in a half type adds that type's eps once.
    """

    def __init__(self, inputs: Inputs) -> None:
        g = inputs.geometry
        x, weight, dy = inputs.x.double().abs(), inputs.weight.double().abs(), inputs.dy.double().abs()
        bias = None if inputs.bias is None else inputs.bias.double().abs()
        compute = torch.finfo(torch.float64 if inputs.x.dtype == torch.float64 else torch.float32).eps
        store = torch.finfo(inputs.x.dtype).eps

        def bound(terms: float, magnitude: Tensor) -> float:
            return float(((2 + terms**0.5) * compute + store) * magnitude.max())

        z = eager.conv(x.requires_grad_(), weight.requires_grad_(), bias, inputs.settings)
        # Each live gradient counted at every position of its window is more than any one winner can receive.
        spread = F.interpolate(dy, z.shape[2:]) * max(1, _windows_per_position(g))
        dx, dw = torch.autograd.grad(z, (x, weight), spread)
        self.y = bound(g.reduction, z.detach())
        self.dx = bound(g.out_channels * g.kernel[0] * g.kernel[1] * _windows_per_position(g), dx)
        self.dw = bound(g.batch * g.pooled_height * g.pooled_width, dw)
        self.db = bound(g.batch * g.pooled_height * g.pooled_width, dy.sum((0, 2, 3)))


def _windows_per_position(g: Geometry) -> int:
    s = g.settings
    return -(-s.pool_kernel[0] // s.pool_stride[0]) * -(-s.pool_kernel[1] // s.pool_stride[1])


def worst(got: Tensor, expected: Tensor, bound: float, exact: bool = False) -> float:
    """The largest error over its bound."""
    if got.shape != expected.shape:
        return float("inf")
    difference = torch.where(got == expected, 0.0, (got.double() - expected).abs())  # inf - inf is no number
    if not difference.isfinite().all():
        return float("inf")
    if exact:
        return float("inf") if difference.any() else 0.0
    return float(difference.max()) / max(bound, sys.float_info.min)  # 0 where all that a conv output sees is padding


def _wrong_winners(code: Tensor, z: Tensor, inputs: Inputs, bound: float, exact: bool) -> float:
    """Share of windows whose winner differs from torch's, among those that rounding cannot have decided."""
    geometry = inputs.geometry
    best, position = eager.pool_with_positions(z, inputs.settings)
    won = winners(code, geometry)
    same = won.live & (won.row * geometry.conv_width + won.column == position)
    right = torch.where(best > 0, same, code == DEAD)
    if not exact:
        right |= undecided(z, inputs.geometry, bound)
    return float((~right).double().mean())  # not 1 - mean: a GPU averages ones to 1 - 1e-16


def undecided(z: Tensor, geometry: Geometry, bound: float) -> Tensor:
    """The windows whose winner, or whether there is one, errors of that size in z can decide."""
    seen = _windows(z, geometry)
    best = seen.amax(-1)
    lead = best - seen.topk(2).values[..., 1] if seen.shape[-1] > 1 else torch.full_like(best, torch.inf)
    return (lead <= 2 * bound) | (best.abs() <= 2 * bound)


def _windows(z: Tensor, geometry: Geometry) -> Tensor:
    """[N, C, pooled_height, pooled_width, window]: what each window sees, -inf outside the map."""
    s = geometry.settings

    def seen(pooled: int, i: int) -> Tensor:
        starts = torch.arange(pooled, device=z.device)[:, None] * s.pool_stride[i]
        return starts + torch.arange(s.pool_kernel[i], device=z.device) * s.pool_dilation[i]

    rows, columns = seen(geometry.pooled_height, 0), seen(geometry.pooled_width, 1)
    below = max(0, int(rows.max()) + 1 - s.pool_padding[0] - geometry.conv_height)
    right = max(0, int(columns.max()) + 1 - s.pool_padding[1] - geometry.conv_width)
    padded = F.pad(z, (s.pool_padding[1], right, s.pool_padding[0], below), value=-torch.inf)
    return padded[:, :, rows[:, None, :, None], columns[None, :, None, :]].flatten(4)
