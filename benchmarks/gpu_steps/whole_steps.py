"""Whole training steps of three models in four forms: launch by launch, and as one replayed graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.gpu_steps.subjects import FORMS, USUAL, Bench, Form, Numbers, Rows, model, precise
from benchmarks.gpu_steps.whole_step import WholeStep

MODELS = ("cnn2", "fast", "lenet5")
BATCHES = (128, 512, 256, 1024)


def rows(bench: Bench) -> Rows:
    subjects = [*product(BATCHES, USUAL, MODELS)]
    for batch, numbers, name in bench.some(subjects):
        key = {"model": name, "batch": batch, "numbers": numbers}
        yield key, partial(_measure, bench, name, 8 if bench.rehearses else batch, numbers)


def whole_step(bench: Bench, name: str, form: Form, batch: int, numbers: Numbers) -> WholeStep:
    """A step of a model in one form, not yet captured; its fused layers are computed by the backend under test."""
    precise(numbers)
    built = model(name, form, bench.device)
    return WholeStep(built, bench.images, batch, bench.device, bf16=numbers == "bf16", backend=bench.ours)


def _measure(bench: Bench, network: str, batch: int, numbers: Numbers) -> dict[str, Any]:
    row: dict[str, Any] = {}
    steps: dict[str, WholeStep] = {}
    for form in FORMS:
        try:
            step = whole_step(bench, network, form, batch, numbers)
            step.body()
            row[form.name] = {}
            if not bench.rehearses:
                row[form.name] = {"capture_s": step.capture()}
            if not bench.rehearses and batch == BATCHES[0]:  # every batch launches as much
                row[form.name]["nodes"] = _nodes(step)
            steps[form.name] = step
        except Exception as failure:
            row[form.name] = {"failed": f"{type(failure).__name__}: {str(failure)[:200]}"}
    host = bench.race({name: step.body for name, step in steps.items()}, replay=False)
    graph = {} if bench.rehearses else bench.race({name: _many(step) for name, step in steps.items()}, replay=False)
    for name, found in host.items():
        row[name]["eager"] = found
    for name, found in graph.items():
        row[name]["graph"] = {key: round(us / _MANY, 3) for key, us in found.items() if key != "n"}
    return row


_MANY = 20  # replays between two readings of the clock, which waits for the GPU


def _many(step: WholeStep) -> Callable[[], None]:
    def run() -> None:
        for _ in range(_MANY):
            step.launch()

    return run


def _nodes(step: WholeStep) -> int:
    """Kernels and copies of the graph."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step.launch()
        torch.cuda.synchronize()
    return sum(each.count for each in seen.key_averages() if each.device_time_total)
