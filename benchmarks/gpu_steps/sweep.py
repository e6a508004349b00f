"""Each kernel launched otherwise than shipped: what it takes, how long, and whether it still computes the same.

A candidate must fill every tensor with the same bits as the shipped launch, on small integers, whose sums are exact in
any order. Both take turns when they are timed, so that their ratio holds whatever the clock does. In a rehearsal the
candidates are compiled for sm_90 and not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import product
from typing import Any, TypeAlias

import torch

from benchmarks.gpu_steps import launches
from benchmarks.gpu_steps.candidates import changes, pairs, singles
from benchmarks.gpu_steps.subjects import BATCHES, Bench, Layer, Rows, precise, usual_layout
from convpool.gpu.config import Launch
from convpool.gpu.offline import TARGETS, compiled_launches, resources
from convpool.testing.parity import Inputs

# The layers whose launches count most, then those in the other format.
SWEPT = ("cnn-2", "cnn-1", "fast-2", "fast-1", "lenet-2", "accurate-3", "speed-2", "lenet-1")
OTHER_FORMAT = ("cnn-2", "fast-2", "cnn-1", "fast-1")
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
        compared = cache(partial(_Shipped.of, layer, bench.device))  # once a kernel
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
    return _last(kernel, seen)


def _compiled(layer: Layer, kernel: str, launch: Launch) -> dict[str, Any]:
    with compiled_launches(_TARGET) as compiled:
        _launched(layer, kernel, launch)
    return asdict(resources(next(each for each in reversed(compiled) if each.name == kernel).kernel))


@dataclass(frozen=True)
class _Shipped:
    """What a candidate is held against: the shipped launch of the kernel, what it reads, and what it fills."""

    inputs: Inputs
    code: torch.Tensor
    launch: launches.Recorded
    exact: tuple[Inputs, torch.Tensor, tuple[torch.Tensor, ...]]  # integers, their winners, what comes of them

    @classmethod
    def of(cls, layer: Layer, device: str, kernel: str) -> _Shipped:
        integers, inputs = (layer.inputs(device, integers=integers) for integers in (True, False))
        _, exact_code = launches.pass_of("forward", integers, None)
        exact = integers, exact_code, launches.pass_of(kernel, integers, exact_code)
        _, code = launches.pass_of("forward", inputs, None)
        with launches.recorded() as seen:
            launches.pass_of(kernel, inputs, code)
        return cls(inputs, code, _last(kernel, seen), exact)


def _measured(
    bench: Bench, layer: Layer, kernel: str, launch: Launch, shipped_of: Callable[[str], _Shipped]
) -> dict[str, Any]:
    precise(layer.numbers)
    shipped = shipped_of(kernel)
    integers, exact_code, want = shipped.exact
    with launches.launched_as(kernel, lambda _: launch):
        with launches.recorded() as seen:
            launches.pass_of(kernel, shipped.inputs, shipped.code)
        got = launches.pass_of(kernel, integers, exact_code)  # into memory that has just held other numbers
    candidate = _last(kernel, seen)
    row = candidate.facts()
    if not all(map(_equal, got, want)):
        return row | {"failed": "wrong result"}
    times = bench.race({"shipped": shipped.launch.again, "candidate": candidate.again}, times=20, seconds=0.01)
    ratio = times["candidate"]["us"] / times["shipped"]["us"]
    return row | times["candidate"] | {"shipped_us": times["shipped"]["us"], "ratio": round(ratio, 4)}


def _equal(got: torch.Tensor, want: torch.Tensor) -> bool:
    return torch.equal(got, want)


def _last(kernel: str, seen: list[launches.Recorded]) -> launches.Recorded:
    return next(each for each in reversed(seen) if each.name == kernel)
