"""Run as a program, by test_prepared.py: launches that were worked out once, before a driver that only listens.

Kernels are compiled for a GPU that is not here; the listening driver is that of benchmarks/launch_cost.py. A prepared
launch must hand it what Triton's own launch does, and give way to that where somebody has to see it.
"""

import sys
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
import triton
from launch_cost import Driver, stand_in_driver
from torch import Tensor
from triton.compiler.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from convpool.gpu import launch
from convpool.gpu.prepared import ordinary_launches
from convpool.testing import cases, parity

ordinary: list[str] = []  # kernels launched by Triton's own way


class Launcher:
    """Stands for Triton's: every compiled kernel has one, and what is launched goes where they all listen."""

    hears: Callable[..., None]

    def __init__(self, source: Any, metadata: Any) -> None:
        pass

    def __call__(self, *arguments: Any) -> None:
        Launcher.hears(*arguments)


def listening() -> list[tuple[Any, ...]]:
    """What the driver is handed from now on: grid, stream, kernel, and arguments with pointers as numbers."""
    heard: list[tuple[Any, ...]] = []

    def hear(x: int, y: int, z: int, stream: int, function: int, metadata: Any, _: Any, *rest: Any) -> None:
        arguments = [a.data_ptr() if isinstance(a, Tensor) else a for a in rest[2:]]
        heard.append((x, y, z, stream, function, metadata, arguments))

    Launcher.hears = hear
    return heard


def passes(inputs: parity.Inputs, plan: str) -> Callable[[], None]:
    """A forward and backward pass into the same memory at each call."""
    i, g = inputs, inputs.geometry
    _, code = launch.forward(i.x, i.weight, i.bias, g, plan, True)
    needs = True, True, i.bias is not None

    def both() -> None:
        bound = launch.bind(i.x, i.weight, i.bias, g, plan)
        bound.forward(i.x, i.weight, i.bias, True)
        bound.backward(i.dy, code, i.x, i.weight, needs)

    return both


def forget() -> None:
    """What was worked out, which goes where ordinary launches are asked for."""
    with ordinary_launches():
        pass


def check_repeats(driver: Driver, name: str, plan: str, shift: int) -> None:
    """The second pass is prepared, and differs from the first only in where its results lie."""
    inputs = parity.make_inputs(cases.by_name(name))
    if shift:  # x begins 4 bytes after what Triton takes for aligned
        room = torch.empty(inputs.x.numel() + 1)[1:].view_as(inputs.x).copy_(inputs.x)
        inputs = parity.Inputs(room, inputs.weight, inputs.bias, inputs.dy, inputs.settings)
    both = passes(inputs, plan)
    forget()
    heard = listening()
    ordinary.clear()
    both()
    first, by_triton = list(heard), len(ordinary)
    assert by_triton == len(first) > 0, (name, plan)
    heard.clear()
    both()
    assert len(ordinary) == by_triton, "the second pass was prepared"
    assert len(heard) == len(first)
    for before, after in zip(first, heard, strict=True):
        assert before[:6] == after[:6]
        assert [type(a) for a in before[6]] == [type(a) for a in after[6]]
        differ = [n for n, (a, b) in enumerate(zip(before[6], after[6], strict=True)) if a != b]
        assert all(isinstance(after[6][n], int) and after[6][n] > 1 << 20 for n in differ), "only addresses differ"


def check_alignment_is_looked_at(driver: Driver) -> None:
    """One launch object, an aligned and an unaligned x: the kernels are two, whatever came first."""
    inputs = parity.make_inputs(cases.by_name("cnn-1"))
    room = torch.empty(inputs.x.numel() + 1)[1:].view_as(inputs.x)
    bound = launch.bind(inputs.x, inputs.weight, inputs.bias, inputs.geometry, "fused")
    heard = listening()
    for _ in range(3):
        for x in (inputs.x, room):
            bound.forward(x, inputs.weight, inputs.bias, True)
    kernels = [entry[4] for entry in heard]
    assert kernels[0] != kernels[1]
    assert kernels == kernels[:2] * 3


def check_streams(driver: Driver) -> None:
    inputs = parity.make_inputs(cases.by_name("cnn-1"))
    bound = launch.bind(inputs.x, inputs.weight, inputs.bias, inputs.geometry, "fused")
    heard = listening()
    for stream in (0, 7, 8):
        driver.get_current_stream = lambda device, stream=stream: stream  # type: ignore[method-assign]
        bound.forward(inputs.x, inputs.weight, inputs.bias, True)
        bound.forward(inputs.x, inputs.weight, inputs.bias, True)
    assert [entry[3] for entry in heard] == [0, 0, 7, 7, 8, 8]
    driver.get_current_stream = lambda device: 0  # type: ignore[method-assign]


def check_ways_round(driver: Driver) -> None:
    """Hooks, tools that ask for ordinary launches, and a Triton that offers less get Triton's own launch."""
    inputs = parity.make_inputs(cases.by_name("cnn-1"))

    def launched_ordinarily(bound: Any) -> bool:
        ordinary.clear()
        bound.forward(inputs.x, inputs.weight, inputs.bias, True)
        return bool(ordinary)

    bound = launch.bind(inputs.x, inputs.weight, inputs.bias, inputs.geometry, "fused")
    launched_ordinarily(bound)
    assert not launched_ordinarily(bound)
    told: list[Any] = []
    runtime = triton.knobs.runtime
    for chain in (runtime.launch_enter_hook, runtime.launch_exit_hook):
        chain.add(told.append)
        assert launched_ordinarily(bound)
        chain.remove(told.append)
    assert not launched_ordinarily(bound)
    with ordinary_launches():
        assert launched_ordinarily(bound)
        assert launched_ordinarily(launch.bind(inputs.x, inputs.weight, inputs.bias, inputs.geometry, "fused"))
    assert not launched_ordinarily(bound)
    for name in ("run", "function", "packed_metadata"):
        run = JITFunction.run
        JITFunction.run = lambda self, *a, **k: run(self, *a, **k) and Less(name)  # noqa: B023 (called in this turn)
        forget()
        bound = launch.bind(inputs.x, inputs.weight, inputs.bias, inputs.geometry, "fused")
        assert launched_ordinarily(bound)
        assert launched_ordinarily(bound), f"without {name}"
        JITFunction.run = run


class Less:
    """A compiled kernel that lacks one attribute."""

    def __init__(self, lacking: str) -> None:
        for name in {"run", "function", "packed_metadata"} - {lacking}:
            setattr(self, name, None)


def main() -> None:
    run = JITFunction.run

    def noting(self: Any, *args: Any, **kwargs: Any) -> CompiledKernel:
        ordinary.append(self.__name__)
        return run(self, *args, **kwargs)

    JITFunction.run = noting

    with stand_in_driver() as driver:
        driver.launcher_cls = Launcher  # type: ignore[method-assign,assignment]
        listening()
        numbers = count(1)  # of the kernels, in the order in which they are loaded
        driver.utils.load_binary = lambda name, kernel, shared, device: (object(), next(numbers), 32, 0, 1024)
        for name, plan in (("cnn-1", "fused"), ("batch-1", "fused"), ("batch-1", "split")):
            for shift in (0, 1):
                check_repeats(driver, name, plan, shift)
        check_alignment_is_looked_at(driver)
        check_streams(driver)
        check_ways_round(driver)
    print("all as Triton launches")


if __name__ == "__main__":
    sys.exit(main())
