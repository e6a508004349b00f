"""Each kernel launched otherwise than shipped: what it takes, how long, and whether it still computes the same.

A candidate and the shipped launch take turns, so that their ratio holds whatever the clock does. In a rehearsal the
candidates are compiled for sm_90 and not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache, partial
from itertools import product
from typing import Any, TypeAlias

import torch

from benchmarks.gpu_steps import launches
from benchmarks.gpu_steps.candidates import changes, pairs, singles
from benchmarks.gpu_steps.subjects import BATCHES, Bench, Layer, Rows, precise, usual_layout
from convpool.gpu.config import Launch
from convpool.gpu.offline import TARGETS, compiled_launches, resources

# The layers whose launches count most, then those in the other format.
SWEPT = ("cnn-2", "cnn-1", "fast-2", "fast-1", "lenet-2", "accurate-3", "speed-2", "lenet-1")
OTHER_FORMAT = ("cnn-2", "fast-2", "cnn-1", "fast-1")
# Sums in another order differ by rounding; nearly equal values that swap ranks do not show in what one kernel fills.
LIMITS = {"tf32": 2e-3, "bf16": 1e-2, "ieee": 1e-4}
Around: TypeAlias = Callable[[str, Launch, int], list[Launch]]
_TARGET = TARGETS["sm_90"]


def swept(bench: Bench) -> list[Layer]:
    """In order of value."""
    if bench.rehearses:
        return [Layer("lenet-2", 4, "bf16", "channels_last")]
    found = [
        Layer(name, batch, numbers, usual_layout(name))
        for numbers in ("tf32", "bf16")
        for name in SWEPT
        for batch in BATCHES  # most of their kernels are the same
    ]
    other = {"nchw": "channels_last", "channels_last": "nchw"}
    found += [
        Layer(name, BATCHES[0], numbers, other[usual_layout(name)])  # type: ignore[arg-type]
        for numbers in ("tf32", "bf16")
        for name in OTHER_FORMAT
    ]
    return found


def candidates(layer: Layer, around: Around) -> Iterator[tuple[str, Launch, Launch]]:
    """Kernel, candidate, shipped launch."""
    for kernel, shipped in launches.shipped_launches(layer).items():
        if kernel == "sum_partials" and layer.numbers == "bf16":
            continue  # it sums float32 there too
        for launch in around(kernel, shipped, layer.case.out_channels):
            yield kernel, launch, shipped


def rows(bench: Bench) -> Rows:
    for around, layer in product((singles, pairs), swept(bench)):
        compared = cache(partial(_shipped, layer, bench.device))  # once a kernel
        if bench.rehearses:
            with compiled_launches(_TARGET):
                found = bench.some([*candidates(layer, around)])
        else:
            found = candidates(layer, around)  # type: ignore[assignment]
        for kernel, launch, shipped in found:
            key = {**layer.key, "kernel": kernel, "changed": changes(kernel, shipped, launch), "launch": asdict(launch)}
            if bench.rehearses:
                yield key, partial(_compiled, layer, kernel, launch)
            else:
                yield key, partial(_measured, bench, layer, kernel, launch, compared)


def ahead() -> Iterator[Callable[[], object]]:
    """What a GPU will be asked to launch, on "meta"."""
    for around, layer in product((singles, pairs), swept(Bench("cuda"))):
        for kernel, launch, _ in candidates(layer, around):
            yield partial(_launched, layer, kernel, launch)


def _launched(layer: Layer, kernel: str, launch: Launch) -> launches.Recorded:
    """Launch on "meta", inside compiled_launches; the kernel's own launch."""
    precise(layer.numbers)
    inputs = layer.inputs("meta")
    with launches.recorded(dry=True):
        _, code = launches.pass_of("forward", inputs, None)
    with launches.recorded() as seen, launches.launched_as(kernel, lambda _: launch):
        launches.pass_of(kernel, inputs, code)
    return next(each for each in reversed(seen) if each.name == kernel)


def _compiled(layer: Layer, kernel: str, launch: Launch) -> dict[str, Any]:
    with compiled_launches(_TARGET):
        _launched(layer, kernel, launch)
    with compiled_launches(_TARGET) as compiled:
        _launched(layer, kernel, launch)
        return asdict(resources(next(each for each in reversed(compiled) if each.name == kernel).kernel))


def _shipped(layer: Layer, device: str, kernel: str) -> tuple[Any, ...]:
    """Inputs, what the shipped kernels fill, and the shipped launch of this kernel."""
    inputs = layer.inputs(device)
    _, code = launches.pass_of("forward", inputs, None)
    with launches.recorded() as seen:
        filled = launches.pass_of(kernel, inputs, code)
    return inputs, code, filled, next(each for each in reversed(seen) if each.name == kernel)


def _measured(
    bench: Bench, layer: Layer, kernel: str, launch: Launch, compared: Callable[[str], tuple[Any, ...]]
) -> dict[str, Any]:
    precise(layer.numbers)
    inputs, code, want, shipped = compared(kernel)
    with launches.recorded() as seen, launches.launched_as(kernel, lambda _: launch):
        got = launches.pass_of(kernel, inputs, code)
    candidate = next(each for each in reversed(seen) if each.name == kernel)
    error = max(_difference(a, b) for a, b in zip(got, want, strict=True))
    row = {"error": round(error, 7), **candidate.facts()}
    if not error <= LIMITS[layer.numbers]:
        return row | {"failed": "wrong result"}
    times = bench.race({"shipped": shipped.again, "candidate": candidate.again}, times=20, seconds=0.01)
    ratio = times["candidate"]["us"] / times["shipped"]["us"]
    return row | times["candidate"] | {"shipped_us": times["shipped"]["us"], "ratio": round(ratio, 4)}


def _difference(got: torch.Tensor, want: torch.Tensor) -> float:
    """Of values, as a share of their norm; of winners, as a share of their number."""
    if got.dtype == torch.uint8:
        return float((got != want).float().mean())
    return float((got.float() - want.float()).norm() / want.float().norm().clamp_min(1e-30))
