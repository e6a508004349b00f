"""Errors against float64, next to those of torch's own float32 layers."""

import pytest
import torch
from torch import Tensor

from convpool import eager
from convpool.cpu import native
from convpool.geometry import DEAD
from convpool.protocol import Plan
from convpool.testing import cases
from convpool.testing.parity import Inputs, make_inputs
from convpool.torch_ops import offset_in_window, winner_values
from tests.convpool.samples import apply

SEEDS, MANY_OUTPUTS = 8, 20_000  # the largest of few errors says little: small cases are drawn several times
NAMES = ("y", "dx", "dw", "db")
EPS = torch.finfo(torch.float32).eps

pytestmark = pytest.mark.skipif(native.BACKEND.unavailable() is not None, reason="the libraries are not built")


def leaves_of(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor | None]:
    x, weight, *bias = (t.detach().requires_grad_() for t in inputs.tensors)
    return x, weight, bias[0] if bias else None


def errors(
    inputs: Inputs, y: Tensor, code: Tensor, leaves: tuple[Tensor | None, ...]
) -> dict[str, tuple[float, float]]:
    """Of y and of the gradients for these winners: the largest error, and the largest magnitude."""
    wanted = [t for t in leaves if t is not None]
    found = [y.detach(), *torch.autograd.grad(y, wanted, inputs.dy)]
    exact = [t.detach().double().requires_grad_() for t in wanted]
    x, weight, *bias = exact
    value = eager.relu_then_pool(x, weight, bias[0] if bias else None, inputs.settings)
    through_winners = winner_values(x, weight, bias[0] if bias else None, code, inputs.geometry)
    expected = [value.detach(), *torch.autograd.grad(through_winners, exact, inputs.dy.double())]
    return {
        name: ((got.double() - want).abs().max().item(), want.abs().max().item())
        for name, got, want in zip(NAMES, found, expected, strict=False)
    }


def by_torch(inputs: Inputs) -> dict[str, tuple[float, float]]:
    leaves = leaves_of(inputs)
    best, position = eager.pool_with_positions(eager.conv(*leaves, inputs.settings).detach(), inputs.settings)
    code = torch.where(best <= 0, DEAD, offset_in_window(position, inputs.geometry)).to(torch.uint8)
    return errors(inputs, eager.relu_then_pool(*leaves, inputs.settings), code, leaves)


def by_kernels(inputs: Inputs) -> dict[str, tuple[float, float]]:
    leaves = leaves_of(inputs)
    y, code = apply(*leaves, inputs.settings, "cpu")
    return errors(inputs, y, code, leaves)


@pytest.mark.slow
def test_errors_are_at_most_twice_torchs() -> None:
    """In the worse of torch's two formats. Errors below two units in the last place of the largest value pass."""
    worse, tried = [], 0
    for case in cases.CASES:
        plan = native.BACKEND.serves(case.geometry, torch.float32, torch.device("cpu"))
        if not case.batch or not isinstance(plan, Plan):
            continue
        seeds = 1 if torch.Size(case.geometry.output_shape).numel() > MANY_OUTPUTS else SEEDS
        drawn = [make_inputs(case, layout=layout, seed=s) for s in range(seeds) for layout in ("nchw", "channels_last")]
        ours, theirs = [by_kernels(inputs) for inputs in drawn], [by_torch(inputs) for inputs in drawn]
        tried += 1
        for name in ours[0]:
            error, allowed = (max(e[name][0] for e in all_errors) for all_errors in (ours, theirs))
            if error > max(2 * allowed, 2 * EPS * max(e[name][1] for e in ours)):
                worse.append(f"{case.name}, {name}: {error:.3g}, torch {allowed:.3g}")
    assert tried > 70
    assert not worse, "\n".join(worse)
