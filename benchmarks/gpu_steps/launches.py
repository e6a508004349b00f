"""Kernel launches as things to look at: by which plan a layer is launched, what exactly, and otherwise than shipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from triton.runtime.jit import JITFunction

from benchmarks.gpu_steps.subjects import Layer, precise
from convpool.gpu import config, launch
from convpool.gpu.config import Launch
from convpool.gpu.prepared import ordinary_launches
from convpool.layout import memory_format, new_code, new_output
from convpool.protocol import Needs
from convpool.testing.parity import Inputs


def launch_fused(inputs: Inputs, needs: Needs) -> tuple[Any, ...]:
    """Launch the fused plan's kernels for one forward and backward pass: y, code, dx, dw, db."""
    i, g = inputs, inputs.geometry
    y, code = launch.forward(i.x, i.weight, i.bias, g, "fused", True)
    return y, code, *launch.backward(i.dy, code, i.x, i.weight, g, "fused", needs)


def launch_split(inputs: Inputs) -> None:
    """Launch the split plan's own two kernels on a conv output of zeros."""
    i, g = inputs, inputs.geometry
    shape = (g.batch, g.out_channels, g.conv_height, g.conv_width)
    z = i.x.new_zeros(shape).contiguous(memory_format=memory_format(i.x, i.weight, i.settings))
    y = new_output(i.x, i.weight, g)
    code = new_code(y, True)
    launch.pool(z, i.bias, g, y, code)
    launch.expand(i.dy, code, g, z)


@dataclass(frozen=True)
class Recorded:
    """One launch as it was made; `again` makes it once more."""

    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.function.__name__

    def again(self) -> Any:
        """Launch, and return the compiled kernel."""
        return JITFunction.run(self.function, *self.arguments, **self.options)

    def facts(self) -> dict[str, Any]:
        """The grid, and what a block takes of a multiprocessor."""
        kernel = self.again()
        return {
            "grid": list(self.options["grid"]),
            "registers": kernel.n_regs,
            "spills": kernel.n_spills,
            "shared": kernel.metadata.shared,
            "warps": kernel.metadata.num_warps,
        }


@contextmanager
def recorded(*, dry: bool = False) -> Iterator[list[Recorded]]:
    """Inside, launches are recorded; made too, unless `dry`."""
    seen: list[Recorded] = []
    run = JITFunction.run

    def note(self: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(Recorded(self, arguments, options))
        return None if dry else run(self, *arguments, **options)

    JITFunction.run = note
    try:
        with ordinary_launches():
            yield seen
    finally:
        JITFunction.run = run


@contextmanager
def launched_as(kernel: str, change: Callable[[Launch], Launch]) -> Iterator[list[Launch]]:
    """Inside, `kernel` is launched as `change` makes of the shipped launch; yields the shipped ones met."""
    name = "forward" if kernel.startswith("forward") else kernel
    shipped, met = getattr(config, name), []

    def changed(*arguments: Any) -> Launch:
        met.append(shipped(*arguments))
        return change(met[-1])

    setattr(config, name, changed)
    try:
        with ordinary_launches():
            yield met
    finally:
        setattr(config, name, shipped)


def pass_of(kernel: str, inputs: Inputs, code: Tensor | None) -> tuple[Any, ...]:
    """Launch the kernel and those that it cannot be launched without; what they fill.

    Args:
        code: the winners, which the kernels of the backward pass read.
    """
    i, g = inputs, inputs.geometry
    if kernel.startswith("forward"):
        return launch.forward(i.x, i.weight, i.bias, g, "fused", True)
    assert code is not None
    needs = (True, False, False) if kernel == "input_grad" else (False, True, True)
    found = launch.backward(i.dy, code, i.x, i.weight, g, "fused", needs)
    return tuple(each for each, need in zip(found, needs, strict=True) if need)


def shipped_launches(layer: Layer) -> dict[str, Launch]:
    """By kernel, how a layer is launched; nothing is compiled or run."""
    precise(layer.numbers)
    inputs, found = layer.inputs("meta"), {}
    for kernel in ("forward", "weight_grad", "sum_partials", *(["input_grad"] if layer.dx else [])):
        with recorded(dry=True) as seen, launched_as(kernel, lambda each: each) as met:
            launch_fused(inputs, (layer.dx, True, True))
        name = seen[0].name if kernel == "forward" else kernel
        found[name] = met[0]
    return found
