"""The one way speed is measured: interleaved rounds in one process, medians with their spread, nothing without parity.

Candidates take turns within each round, so that a change of clock or of neighbours meets all of them. On a CPU the wall
clock is read around repeated calls; on a GPU, where the calls can be replayed, events are, around a graph that holds
them, over enough copies of the inputs that none is found in the cache.
"""

import ctypes
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from convpool import eager, planning
from convpool.functional import conv_relu_max_pool2d
from convpool.geometry import Settings
from convpool.layout import memory_format
from convpool.protocol import Plan
from convpool.testing.parity import Inputs, Layer, Layout, check, check_layer

Call: TypeAlias = Callable[[], object]
Candidate: TypeAlias = tuple[Layer, Layout]

_BLOCK_SECONDS = 2e-3  # of calls between two readings of the clock: its error and Python's loop vanish in it
_SLOW_SECONDS = 0.5  # of a call that is worth no second run before it is timed: what its first one did more is little
_LEAST_ROUNDS = 7

# torch's own ways to compute the layer, by name: what a speed-up is measured against.
PLAIN: dict[str, Candidate] = {
    "eager": (eager.relu_then_pool, "nchw"),
    "eager, channels_last": (eager.relu_then_pool, "channels_last"),
    "pool before ReLU, channels_last": (eager.pool_then_relu, "channels_last"),
}


class ParityError(RuntimeError):
    """A candidate computes something else than torch; its speed means nothing."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and quartiles over the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median * 1e3:.3f} ms [{self.low * 1e3:.3f}, {self.high * 1e3:.3f}]"


class Race:
    """Candidates that take turns: each round runs a block of calls of every one of them.

    Attributes:
        samples: by candidate's name, seconds of one call, a sample for each round.
    """

    def __init__(self, calls: Mapping[str, Sequence[Call]], device: torch.device, *, replay: bool = True) -> None:
        """Warm every candidate up, and choose how many calls make a block.

        Args:
            calls: by candidate's name, what to run: a sequence of equal calls, one for each copy of its inputs.
            device: where the calls compute.
            replay: on a GPU, time the replay of a graph of the calls, not the calls with what Python spends on them.
        """
        self._device, self._replay = device, replay
        self._random = random.Random(0)
        self._blocks: dict[str, Block] = {}
        self.samples: dict[str, list[float]] = {}
        for name, sequence in calls.items():
            self.add(name, sequence)

    def add(self, name: str, calls: Sequence[Call]) -> None:
        """Let one more candidate take part; what was measured without it does not count."""
        if self._device.type == "cuda" and self._replay:
            self._blocks[name] = _replayed_block(calls)
        else:
            self._blocks[name] = _called_block(calls, self._device)
        self.samples = {name: [] for name in self._blocks}

    def calls(self, name: str) -> int:
        """How many calls one turn of the candidate makes."""
        return self._blocks[name].calls

    def foretold(self, name: str) -> float:
        """Seconds of one of the candidate's calls, as far as the warm-up tells."""
        return self._blocks[name].seconds / self._blocks[name].calls

    def turn(self, name: str) -> None:
        """Run one block of the candidate."""
        self.samples[name].append(self._blocks[name].run())

    def others(self, name: str) -> None:
        """Run a block of every candidate but this one."""
        for other in self._shuffled():
            if other != name:
                self.turn(other)

    def rounds(self, seconds: float, least: int = _LEAST_ROUNDS) -> int:
        """How many rounds fill this time, as far as the warm-up tells."""
        return max(least, round(seconds / sum(block.seconds for block in self._blocks.values())))

    def run(self, seconds: float, least: int = _LEAST_ROUNDS) -> dict[str, Timing]:
        """Go round for this long, `least` rounds at least, and sum up."""
        for _ in range(self.rounds(seconds, least)):
            for name in self._shuffled():
                self.turn(name)
        return self.timings()

    def _shuffled(self) -> list[str]:
        """The candidates in a new order: nobody always finds the caches as the same neighbour left them."""
        return self._random.sample(list(self._blocks), len(self._blocks))

    def timings(self) -> dict[str, Timing]:
        """What the rounds so far come to."""
        return {name: _summary(values) for name, values in self.samples.items()}


def compare(calls: Mapping[str, Sequence[Call]], device: torch.device, seconds: float = 1.0) -> dict[str, Timing]:
    """Time candidates against each other: a `Race` of so many seconds, all candidates together, in 7 rounds or more."""
    return Race(calls, device).run(seconds)


def compare_layer(
    inputs: Inputs,
    backends: Sequence[str] = ("auto",),
    *,
    layouts: Sequence[Layout] = ("nchw", "channels_last"),
    dx: bool = True,
    backward: bool = True,
    seconds: float = 1.0,
) -> dict[str, Timing]:
    """Time one layer by torch's own forms (`PLAIN`) and by backends in the given layouts, named "backend, layout".

    Args:
        inputs: the layer; converted to each candidate's layout beforehand.
        dx: whether x needs a gradient (a network's first layer does not).
        backward: time forward and backward, else the forward pass of inference.

    Raises:
        ParityError: a candidate's result is wrong.
    """
    ours: dict[str, Candidate] = {
        f"{backend}, {layout}": (Through(backend), layout) for backend in backends for layout in layouts
    }
    calls = {
        name: layer_calls(inputs, *candidate, dx=dx, backward=backward) for name, candidate in (PLAIN | ours).items()
    }
    return compare(calls, inputs.x.device, seconds)


def layer_calls(inputs: Inputs, layer: Layer, layout: Layout, *, dx: bool, backward: bool) -> list[Call]:
    """Calls of a layer that was found to compute what torch computes, one for each copy of its inputs.

    Raises:
        ParityError: its result is wrong for these inputs.
    """
    inputs = in_layout(inputs, layout)
    plan = explained(inputs, layer.backend) if isinstance(layer, Through) else None
    exact = inputs.x.device.type == "cpu" or (plan is not None and plan.plan == "fused")
    found = {
        data: check_layer(inputs, layer, integers=data == "integers", exact=exact, dx=dx, backward=backward)
        for data in ("integers", "random numbers")
    }
    if plan and plan.keeps_codes:
        found[f"random numbers, with the winners of backend {plan.backend}"] = check(inputs, plan.backend)
    for data, parity in found.items():
        if not parity.ok:
            raise ParityError(f"wrong result for x {tuple(inputs.x.shape)}, {layout}, on {data}: {parity}")
    return [_call(layer, i, dx, backward) for i in _copies(inputs)]


def compiled(layer: Layer, mode: str = "default") -> Layer:
    """The layer by torch.compile, for the fixed shapes that it is called with."""
    return torch.compile(lambda *arguments: layer(*arguments), fullgraph=True, dynamic=False, mode=mode)


def best_plain(timings: Mapping[str, Timing]) -> str:
    """The name of the fastest of torch's own forms."""
    return min(PLAIN, key=lambda name: timings[name].median)


def pin_precision(device: torch.device) -> None:
    """Make torch's convolutions and products on a GPU round as float32 does: TF32, its default there, fails parity.

    Of torch's flags old and new, all that speak of it: one of them alone makes torch refuse to read the others, or
    leaves the word to a setting of the whole process.
    """
    if device.type == "cuda":
        cudnn: Any = torch.backends.cudnn
        cudnn.allow_tf32 = False
        cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "ieee"
        torch.set_float32_matmul_precision("highest")


def setting(device: torch.device) -> str:
    """What the figures hold for, in a line: processor, threads, versions, allocator."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return (
        f"{where}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {tune_allocator()}"
    )


@cache
def tune_allocator() -> str:
    """Keep glibc from returning freed memory, and say so.

    By default each call that frees 100 KB or more may give pages back and fault them in again at the next; eager
    PyTorch allocates more than a fused layer, and would be charged for that.
    """
    if not sys.platform.startswith("linux"):
        return "default allocator"
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    if not hasattr(libc, "mallopt") or not (libc.mallopt(trim_threshold, 2**31 - 1) and libc.mallopt(mmap_max, 0)):
        return "default allocator"
    return "allocator that keeps freed memory"


def _call(layer: Layer, inputs: Inputs, dx: bool, backward: bool) -> Call:
    x, weight, bias, dy = inputs.x, inputs.weight, inputs.bias, inputs.dy
    if not backward:

        def infer() -> object:
            with torch.no_grad():
                return layer(x, weight, bias, inputs.settings)

        return infer
    leaves = [t.detach().requires_grad_() for t in inputs.tensors]
    x = leaves[0] if dx else x
    wanted = leaves if dx else leaves[1:]
    bias = leaves[2] if bias is not None else None
    dy = dy.contiguous(memory_format=memory_format(x, weight, inputs.settings))

    def train() -> object:
        return torch.autograd.grad(layer(x, leaves[1], bias, inputs.settings), wanted, dy)

    return train


@dataclass(frozen=True)
class Through:
    """The layer by a backend, or by whom `auto` chooses: called as a module calls the op, with no context around it."""

    backend: str

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, s: Settings) -> Tensor:
        if self.backend != "auto" and planning.requested_backend() != self.backend:
            with planning.use_backend(self.backend):
                return self(x, weight, bias, s)
        return conv_relu_max_pool2d(
            x,
            weight,
            bias,
            s.stride,
            (s.padding[0], s.padding[2]) if s.symmetric_padding else "same",
            s.dilation,
            s.groups,
            pool_kernel_size=s.pool_kernel,
            pool_stride=s.pool_stride,
            pool_padding=s.pool_padding,
            pool_dilation=s.pool_dilation,
            ceil_mode=s.ceil_mode,
            contiguous_output=s.contiguous_output,
        )


def explained(inputs: Inputs, backend: str) -> Plan:
    """Who computes the layer when asked by the name of a backend or `auto`, and why."""
    x, weight = inputs.x, inputs.weight
    return planning.choose(tuple(x.shape), tuple(weight.shape), inputs.settings, x.dtype, x.device, backend)[1]


def in_layout(inputs: Inputs, layout: Layout) -> Inputs:
    """The same numbers, their 4-d tensors in one layout."""
    format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x, weight, dy = (torch.empty_like(t, memory_format=format).copy_(t) for t in (inputs.x, inputs.weight, inputs.dy))
    return Inputs(x, weight, inputs.bias, dy, inputs.settings)


def _copies(inputs: Inputs) -> list[Inputs]:
    """One on a CPU, whose caches hold a layer's input in training too; on a GPU as many as overflow its cache."""
    if inputs.x.device.type != "cuda":
        return [inputs]
    bytes_ = (inputs.x.numel() + inputs.dy.numel()) * inputs.x.element_size()
    count = 1 + 2 * torch.cuda.get_device_properties(inputs.x.device).L2_cache_size // max(1, bytes_)
    return [
        Inputs(inputs.x.clone(), inputs.weight, inputs.bias, inputs.dy.clone(), inputs.settings)
        for _ in range(min(count, 64))
    ]


@dataclass(frozen=True)
class Block:
    """Calls between two readings of the clock: `run` gives seconds of one of the `calls`, `seconds` foretells `run`."""

    run: Callable[[], float]
    calls: int
    seconds: float


def _called_block(calls: Sequence[Call], device: torch.device) -> Block:
    tune_allocator()

    def run(times: int) -> float:
        begin = time.perf_counter()
        for _ in range(times):
            for call in calls:
                call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - begin) / (times * len(calls))

    once, times = run(1), 1  # warm: thread pools, primitive caches
    if once < _SLOW_SECONDS:
        times = max(1, round(_BLOCK_SECONDS / (run(1) * len(calls))))
        once = run(times)
    return Block(lambda: run(times), times * len(calls), once * times * len(calls))


def _replayed_block(calls: Sequence[Call]) -> Block:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compile and choose algorithms before capturing, as torch.cuda.graph asks
        for _ in range(3):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def run() -> float:
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / len(calls)

    run()
    return Block(run, len(calls), run() * len(calls))


def _summary(samples: list[float]) -> Timing:
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, low, high, len(samples))


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            name = next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
