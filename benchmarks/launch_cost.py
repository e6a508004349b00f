"""What Python spends on a fused call on a GPU, without one: a stand-in for Triton's driver launches nothing.

    python benchmarks/launch_cost.py [--seconds N] [--out FOLDER]

Kernels are compiled for sm_90 and "loaded"; every launch goes through all of Triton's and of our Python down to the C
function that would hand it to the driver. Tensors lie on the CPU, their backend is `triton`. Beside it run the least
that an op of its own can cost, a `torch.autograd.Function` that saves the same tensors and allocates the same results,
and torch's three layers (on the CPU, computing: their figure is of little use but for its order). All take turns in one
process; one image of 8x8 with 3 channels, 8 outputs, 3x3.

`--out` keeps the table: launch_cost.json and launch_cost.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from gpu_tables import keep
from torch import Tensor
from torch.nn import functional as F
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from convpool import conv_relu_max_pool2d, register_backend, use_backend
from convpool.geometry import Geometry
from convpool.gpu.backend import TritonBackend
from convpool.gpu.prepared import ordinary_launches
from convpool.protocol import ORDINARY, Plan, Use
from convpool.testing.timing import Race
from convpool.torch_private import forget_driver

TARGET = GPUTarget("cuda", 90, 32)


def launch_nothing(*_: Any) -> None:
    """Stands where a launch goes to C."""


class Driver:
    """As much of a Triton driver as launching asks for; what would launch does nothing."""

    def __init__(self) -> None:
        properties = {"multiprocessor_count": 132, "max_shared_mem": 227 << 10}
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: properties,
            load_binary=lambda name, kernel, shared, device: (object(), 1, 32, 0, 1024),
        )

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return launch_nothing

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class StandIn(TritonBackend):
    """Takes the CPU's tensors for a GPU's."""

    def unavailable(self) -> str | None:
        return None

    def serves(self, geometry: Geometry, dtype: torch.dtype, device: torch.device, use: Use = ORDINARY) -> Plan | str:
        return super().serves(geometry, dtype, torch.device("cuda"), use)


@contextmanager
def stand_in_driver() -> Iterator[Driver]:
    """Inside, `use_backend("triton")` serves the CPU's tensors, and launches end in the yielded driver."""
    found = Driver()
    driver.set_active(found)
    register_backend("triton", StandIn, devices=("cuda",))
    try:
        yield found
    finally:
        forget_driver(driver)


@contextmanager
def launches_by_triton() -> Iterator[list[str]]:
    """Inside, launches go Triton's own way, and the kernels are named in the list."""
    names: list[str] = []
    run = JITFunction.run

    def noting(self: Any, *arguments: Any, **options: Any) -> Any:
        names.append(self.__name__)
        return run(self, *arguments, **options)

    JITFunction.run = noting
    try:
        with ordinary_launches():
            yield names
    finally:
        JITFunction.run = run


class Bare(torch.autograd.Function):
    """Saves what the op saves and allocates what it allocates; computes nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, ...]) -> Tensor:
        y = torch.empty(size)
        ctx.save_for_backward(x, weight, torch.empty(size, dtype=torch.uint8))
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, _ = ctx.saved_tensors
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        return dx, torch.empty_like(weight), weight.new_empty(weight.shape[0]), None


def measure(seconds: float, *, needs_dx: bool) -> dict[str, Any]:
    """Microseconds of a call, and launches: forward, and forward with backward."""
    torch.set_num_threads(1)
    x = torch.randn(1, 3, 8, 8, requires_grad=needs_dx)
    weight, bias = torch.randn(8, 3, 3, 3, requires_grad=True), torch.randn(8, requires_grad=True)
    leaves = [t for t in (x, weight, bias) if t.requires_grad]
    dy = torch.randn(1, 8, 3, 3)
    forwards: dict[str, Callable[[], Tensor]] = {
        "bare function": lambda: Bare.apply(x, weight, bias, (1, 8, 3, 3)),
        "op": lambda: conv_relu_max_pool2d(x, weight, bias),
        "three layers": lambda: F.max_pool2d(F.relu(F.conv2d(x, weight, bias)), 2),
    }
    found: dict[str, Any] = {"needs_dx": needs_dx}
    calls: dict[str, Callable[[], object]] = {
        **{f"{name}, forward": call for name, call in forwards.items()},
        **{
            f"{name}, both": lambda call=call: torch.autograd.grad(call(), leaves, dy)
            for name, call in forwards.items()
        },
    }
    with use_backend("triton"):
        for name in ("op, forward", "op, both"):
            calls[name]()  # compiles
            with launches_by_triton() as names:
                calls[name]()
            found[f"{name}: launches"] = len(names)
        race = Race({name: [call] for name, call in calls.items()}, x.device)
        found |= {name: round(1e6 * timing.median, 2) for name, timing in race.run(seconds, least=21).items()}
    found["forward beyond bare, a launch"] = round(
        (found["op, forward"] - found["bare function, forward"]) / found["op, forward: launches"], 2
    )
    backward = (found["op, both"] - found["op, forward"]) - (
        found["bare function, both"] - found["bare function, forward"]
    )
    found["backward beyond bare, a launch"] = round(
        backward / (found["op, both: launches"] - found["op, forward: launches"]), 2
    )
    return found


def as_markdown(table: list[dict[str, Any]]) -> str:
    lines = [
        "# What Python spends on a fused call, launches of nothing",
        "",
        "By `python benchmarks/launch_cost.py`, microseconds, medians of calls that take turns in one process; "
        f"Triton {triton.__version__}, torch {torch.__version__}, no GPU.",
        "",
        "| | with dx | without |",
        "| --- | ---: | ---: |",
    ]
    lines += [f"| {name} | {table[0][name]} | {table[1][name]} |" for name in table[0] if name != "needs_dx"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each of the two races")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    with stand_in_driver():  # one for both: what is kept of a launch leads to the driver that it met
        table = [measure(options.seconds, needs_dx=needs_dx) for needs_dx in (True, False)]
    print(as_markdown(table), end="")
    if options.out:
        keep(options.out, "launch_cost", table, as_markdown(table))


if __name__ == "__main__":
    main()
