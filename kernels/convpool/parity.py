"""Whether a backend computes what torch computes: one check for tests, self-check and benchmarks.

The oracle is `eager.relu_then_pool` in float64 under torch's own autograd. On integer-valued data all sums are exact, so
value, winners and gradients must be equal to the last bit. On random data a bound on rounding decides, and since two
nearly equal conv outputs may swap ranks, winners count only where the oracle's lead exceeds that bound, and gradients are
compared with torch's gradients of the conv output gathered at the backend's own winners.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from convpool import eager
from convpool.autograd import ConvReLUMaxPool2dFunction
from convpool.cases import Case
from convpool.geometry import DEAD, Geometry, Settings
from convpool.torch_ops import winner_position, winner_values

Layout = Literal["nchw", "channels_last"]


@dataclass(frozen=True)
class Inputs:
    """One call with the gradient sent back through it; x, weight, bias as leaves without requires_grad."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    dy: Tensor
    settings: Settings

    @property
    def geometry(self) -> Geometry:
        return Geometry.of(tuple(self.x.shape), tuple(self.weight.shape), self.settings)


@dataclass(frozen=True)
class Parity:
    """`error[name]`: largest error of y, dx, dw, db as a multiple of its bound, and `code`: the share of wrong winners."""

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
    """Random tensors for a case: standard normal, with weights scaled to keep z near 1, or small integers with many ties."""
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
    """Compare one forward and backward of `backend` with the oracle; `exact` asks for equality (integer-valued data)."""
    x, weight, bias = (t.detach().requires_grad_() if t is not None else None for t in (inputs.x, inputs.weight, inputs.bias))
    y, code = ConvReLUMaxPool2dFunction.apply(x, weight, bias, inputs.settings, backend)
    leaves = [t for t in (x, weight, bias) if t is not None]
    grads = torch.autograd.grad(y, leaves, inputs.dy)
    return compare(inputs, y.detach(), code, dict(zip(("dx", "dw", "db"), grads, strict=False)), exact=exact)


def compare(inputs: Inputs, y: Tensor, code: Tensor, grads: dict[str, Tensor], *, exact: bool = False) -> Parity:
    """Hold given results against the oracle."""
    if inputs.x.shape[0] == 0:
        empty = y.numel() == 0 and all(not g.any() for g in grads.values())
        return Parity({"y": 0.0 if empty else float("inf")})
    x, weight, bias = (None if t is None else t.double() for t in (inputs.x, inputs.weight, inputs.bias))
    bounds = _Bounds(inputs)
    error = {"y": _worst(y, eager.relu_then_pool(x, weight, bias, inputs.settings), bounds.y, exact)}
    error["code"] = _wrong_winners(code, x, weight, bias, inputs, 0.0 if exact else bounds.y)
    leaves = {"dx": x, "dw": weight} | ({} if bias is None else {"db": bias})
    for leaf in leaves.values():
        leaf.requires_grad_()
    if exact:
        value = eager.relu_then_pool(x, weight, bias, inputs.settings)
    else:
        value = winner_values(x, weight, bias, code, inputs.geometry)
    expected = torch.autograd.grad(value, list(leaves.values()), inputs.dy.double())
    for (name, got), want in zip(grads.items(), expected, strict=True):
        error[name] = _worst(got, want, getattr(bounds, name), exact)
    return Parity(error)


class _Bounds:
    """Largest rounding error to expect of y, dx, dw and db.

    A sum of n products, each rounded, is off by about sqrt(n) eps times the sum of their magnitudes (the errors are
    independent; Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 4.2, gives n eps as the worst case).
    The magnitudes are those of the same convolution of absolute values; 2 + sqrt(n) leaves room for the bias and the store.
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

        x.requires_grad_(), weight.requires_grad_()
        z = eager.conv(x, weight, bias, inputs.settings)
        # Each live gradient counted at every position of its window is more than any one winner can receive.
        spread = torch.nn.functional.interpolate(dy, z.shape[2:]) * max(1, _windows_per_position(g))
        dx, dw = torch.autograd.grad(z, (x, weight), spread)
        self.y = bound(g.reduction, z.detach())
        self.dx = bound(g.out_channels * g.kernel[0] * g.kernel[1] * _windows_per_position(g), dx)
        self.dw = bound(g.batch * g.pooled_height * g.pooled_width, dw)
        self.db = bound(g.batch * g.pooled_height * g.pooled_width, dy.sum((0, 2, 3)))


def _windows_per_position(g: Geometry) -> int:
    s = g.settings
    return -(-s.pool_kernel[0] // s.pool_stride[0]) * -(-s.pool_kernel[1] // s.pool_stride[1])


def _worst(got: Tensor, expected: Tensor, bound: float, exact: bool) -> float:
    if got.shape != expected.shape:
        return float("inf")
    difference = (got.double() - expected).abs()
    if not difference.isfinite().all():
        return float("inf")
    if exact:
        return float("inf") if difference.any() else 0.0
    return float(difference.max()) / bound


def _wrong_winners(
    code: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, inputs: Inputs, bound: float
) -> float:
    """Share of windows whose winner differs from torch's, among those that rounding cannot have decided."""
    geometry, s = inputs.geometry, inputs.settings
    z = eager.conv(x, weight, bias, s)
    best, position = torch.nn.functional.max_pool2d(
        z, s.pool_kernel, s.pool_stride, s.pool_padding, s.pool_dilation, s.ceil_mode, return_indices=True
    )
    row, column = winner_position(code, geometry)
    same = torch.where(best > 0, (row * geometry.conv_width + column == position) & (code != DEAD), code == DEAD)
    if bound:
        without_best = _windows(z, geometry).scatter(-1, _offset_in_window(position, geometry)[..., None], -torch.inf)
        lead = best - without_best.amax(-1)
        same |= (lead <= 2 * bound) & (best.abs() > 2 * bound) | (best.abs() <= 2 * bound)
    return 1 - float(same.double().mean())


def _windows(z: Tensor, geometry: Geometry) -> Tensor:
    """[N, C, pooled_height, pooled_width, window]: what each window sees, -inf outside the map."""
    s = geometry.settings
    i = torch.arange(geometry.pooled_height)[:, None] * s.pool_stride[0] + torch.arange(s.pool_kernel[0]) * s.pool_dilation[0]
    j = torch.arange(geometry.pooled_width)[:, None] * s.pool_stride[1] + torch.arange(s.pool_kernel[1]) * s.pool_dilation[1]
    below = max(0, int(i.max()) + 1 - s.pool_padding[0] - geometry.conv_height)
    right = max(0, int(j.max()) + 1 - s.pool_padding[1] - geometry.conv_width)
    padded = torch.nn.functional.pad(z, (s.pool_padding[1], right, s.pool_padding[0], below), value=-torch.inf)
    seen = padded[:, :, i[:, None, :, None], j[None, :, None, :]]  # [N, C, PH, PW, window height, window width]
    return seen.flatten(4)


def _offset_in_window(position: Tensor, geometry: Geometry) -> Tensor:
    s = geometry.settings
    i = torch.arange(geometry.pooled_height)[:, None] * s.pool_stride[0] - s.pool_padding[0]
    j = torch.arange(geometry.pooled_width) * s.pool_stride[1] - s.pool_padding[1]
    row = (position.cpu() // geometry.conv_width - i) // s.pool_dilation[0]
    column = (position.cpu() % geometry.conv_width - j) // s.pool_dilation[1]
    return (row * s.pool_kernel[1] + column).to(position.device)
