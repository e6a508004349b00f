"""The one way speed is measured: interleaved rounds in one process, medians with their spread, nothing without parity.

Candidates take turns within each round, so that a change of clock or of neighbours meets all of them. On a CPU the wall
clock is read around repeated calls; on a GPU events are, around the replay of a graph that holds the calls, over enough
copies of the inputs that none is found in the cache.
"""

import ctypes
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from convpool import eager, planning
from convpool.functional import conv_relu_max_pool2d
from convpool.geometry import Settings
from convpool.layout import memory_format
from convpool.parity import Inputs, Layout, check

Call: TypeAlias = Callable[[], object]
Layer: TypeAlias = Callable[[Tensor, Tensor, Tensor | None, Settings], Tensor]

_BLOCK_SECONDS = 2e-3  # of calls between two readings of the clock: its error and Python's loop vanish in it
_LEAST_ROUNDS = 7

# torch's own ways to compute the layer, by name: what a speed-up is measured against.
PLAIN: dict[str, tuple[Layer, Layout]] = {
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


def compare(calls: Mapping[str, Sequence[Call]], device: torch.device, seconds: float = 1.0) -> dict[str, Timing]:
    """Time each candidate: a sequence of equal calls, one for each copy of its inputs.

    Args:
        calls: by candidate's name, what to run; every candidate has run once before it is timed.
        device: where the calls compute.
        seconds: how long to measure, all candidates together (at least 7 rounds are made).
    """
    block = _gpu_block if device.type == "cuda" else _cpu_block
    blocks = {name: block(sequence) for name, sequence in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples[names[0]]) < _LEAST_ROUNDS:
        for name in names:
            samples[name].append(blocks[name]())
        names.append(names.pop(0))  # nobody always follows the same neighbour's caches
    return {name: _summary(values) for name, values in samples.items()}


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
        ParityError: a backend's result is wrong.
    """
    device = inputs.x.device
    copies = _copies(inputs)
    calls = {
        name: [_call(layer, _as(i, layout), dx, backward) for i in copies] for name, (layer, layout) in PLAIN.items()
    }
    for backend in backends:
        for layout in layouts:
            if backend != "auto":
                _require_parity(_as(inputs, layout), backend)
            layer = _through(backend)
            calls[f"{backend}, {layout}"] = [_call(layer, _as(i, layout), dx, backward) for i in copies]
    return compare(calls, device, seconds)


def best_plain(timings: Mapping[str, Timing]) -> str:
    """The name of the fastest of torch's own forms."""
    return min(PLAIN, key=lambda name: timings[name].median)


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
    dy = dy.contiguous(memory_format=memory_format(x, weight))

    def train() -> object:
        return torch.autograd.grad(layer(x, leaves[1], bias, inputs.settings), wanted, dy)

    return train


def _through(backend: str) -> Layer:
    def auto(x: Tensor, weight: Tensor, bias: Tensor | None, s: Settings) -> Tensor:
        return conv_relu_max_pool2d(
            x,
            weight,
            bias,
            s.stride,
            (s.padding[0], s.padding[2]),
            s.dilation,
            s.groups,
            pool_kernel_size=s.pool_kernel,
            pool_stride=s.pool_stride,
            pool_padding=s.pool_padding,
            pool_dilation=s.pool_dilation,
            ceil_mode=s.ceil_mode,
        )

    def named(x: Tensor, weight: Tensor, bias: Tensor | None, s: Settings) -> Tensor:
        with planning.use_backend(backend):
            return auto(x, weight, bias, s)

    return auto if backend == "auto" else named


def _require_parity(inputs: Inputs, backend: str) -> None:
    parity = check(inputs, backend)
    if not parity.ok:
        raise ParityError(f"backend {backend!r} is wrong for x {tuple(inputs.x.shape)}: {parity}")


def _as(inputs: Inputs, layout: Layout) -> Inputs:
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


def _cpu_block(calls: Sequence[Call]) -> Callable[[], float]:
    tune_allocator()

    def run(times: int) -> float:
        begin = time.perf_counter()
        for _ in range(times):
            for call in calls:
                call()
        return time.perf_counter() - begin

    run(1)  # warm: thread pools, primitive caches
    times = max(1, round(_BLOCK_SECONDS / run(1)))
    return lambda: run(times) / (times * len(calls))


def _gpu_block(calls: Sequence[Call]) -> Callable[[], float]:
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
    return run


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
