"""The gradient kernels beyond the shared oracle tests: phases kept apart, and any order of a grid's programs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from convpool.gpu import backend as gpu_backend
from convpool.testing import cases, parity

if not gpu_backend.INTERPRETED:
    pytest.skip("looks into Triton's interpreter, which this process does not run", allow_module_level=True)
if missing := gpu_backend.BACKEND.unavailable():
    pytest.skip(missing, allow_module_level=True)

from triton.runtime import interpreter

from convpool.gpu import config, launch
from convpool.gpu.prepared import ordinary_launches
from tests.convpool.gpu.test_kernels import guarded

pytestmark = pytest.mark.triton


@pytest.fixture
def apart(monkeypatch) -> Iterator[list[int]]:
    """input_grad keeps phases apart wherever it can, in small blocks; which it did is noted."""
    chosen = config.input_grad
    noted: list[int] = []

    def small(*arguments: Any) -> config.Launch:
        found = chosen(*arguments)
        noted.append(found.apart)
        return replace(found, rows=16, columns=16, summed=max(found.summed // 2, 16))

    monkeypatch.setattr(config, "UNROLLED_PRODUCTS", 100)
    monkeypatch.setattr(config, "FILLS_A_TILE", 1)
    monkeypatch.setattr(config, "input_grad", small)
    with ordinary_launches():
        yield noted


# Strides, dilations, paddings, groups, overlapping and dilated windows; channels that fill no block and more than one.
GEOMETRIES = (
    "batch-33-groups",
    "channels-17-33",
    "stride-2-padded",
    "stride-1x2",
    "same-even-dilated",
    "pool-dilated-overlap",
)


def gradients(inputs: parity.Inputs, plan: str = "fused") -> tuple[torch.Tensor, ...]:
    code = launch.forward(inputs.x, inputs.weight, inputs.bias, inputs.geometry, plan, True)[1]
    return launch.backward(inputs.dy, code, inputs.x, inputs.weight, inputs.geometry, plan, (True, True, True))


@pytest.mark.slow
@pytest.mark.parametrize("name", GEOMETRIES)
def test_phases_apart_serve_any_geometry(name, apart) -> None:
    case = cases.by_name(name)
    inputs = parity.make_inputs(replace(case, batch=min(case.batch, 2)), integers=True)
    with guarded():
        found = parity.check(inputs, "triton", exact=True)
    assert found.ok, found
    assert set(apart) == {inputs.settings.pool_stride[1] * inputs.settings.stride[1]}


@pytest.mark.slow
def test_an_infinite_weight_reaches_its_winners_alone(apart, monkeypatch) -> None:
    """By way of single winners, phases apart or mixed."""
    case = replace(cases.by_name("batch-1"), size=(6, 6), out_channels=2)
    inputs = parity.make_inputs(case, integers=True)
    inputs.weight[1, 2, 0, 1] = torch.inf
    dx = gradients(inputs)[0]
    monkeypatch.setattr(config, "FILLS_A_TILE", 1000)
    with ordinary_launches():  # which are chosen anew
        mixed = gradients(inputs)[0]
    torch.testing.assert_close(dx, mixed, rtol=0, atol=0, equal_nan=True)
    assert apart[0] > apart[-1] == 0
    assert 0 < dx.isinf().sum() < dx.numel() / 2


@contextmanager
def programs_in_order(step: int) -> Iterator[None]:
    """The i-th program to run is number step * i - 1 of its grid, modulo the grid: -1 reverses it."""
    builder, place = interpreter.InterpreterBuilder, interpreter.InterpreterBuilder.set_grid_idx

    def elsewhere(self: Any, x: int, y: int, z: int) -> None:
        place(self, (step * x - 1) % self.grid_dim[0], y, z)

    builder.set_grid_idx = elsewhere
    try:
        yield
    finally:
        builder.set_grid_idx = place


@pytest.mark.parametrize("plan", [pytest.param("fused", marks=pytest.mark.slow), "split"])
def test_the_order_of_programs_changes_no_bit(plan, apart, monkeypatch) -> None:
    chosen = config.weight_grad

    def small(*arguments: Any) -> config.Launch:
        return replace(chosen(*arguments), rows=16, columns=16, summed=16, ranges=5)

    monkeypatch.setattr(config, "weight_grad", small)
    inputs = parity.make_inputs(cases.by_name("channels-5-7"))
    first = gradients(inputs, plan)
    for step in (-1, 101):
        with programs_in_order(step):
            again = gradients(inputs, plan)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
