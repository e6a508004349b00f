"""Each of our kernels alone, and what the vendor launches for the same layer."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.gpu_steps.layers import forms
from benchmarks.gpu_steps.subjects import BATCHES, LARGE, LAYERS, Bench, Layer, Rows, precise, usual_layout


def rows(bench: Bench) -> Rows:
    batches = (2,) if bench.rehearses else BATCHES
    subjects = [
        Layer(name, batch, numbers, usual_layout(name))
        for batch in batches
        for numbers in ("tf32", "bf16")
        for name in LAYERS
        if name not in LARGE
    ]
    for layer in bench.some(subjects):
        if not bench.rehearses:
            yield {**layer.key, "by": "ours"}, partial(_ours, bench, layer)
        yield {**layer.key, "by": "vendor"}, partial(_vendor, bench, layer)


def _ours(bench: Bench, layer: Layer) -> dict[str, Any]:
    from benchmarks.gpu_steps.launches import launch_fused, launch_split, recorded

    precise(layer.numbers)
    inputs = layer.inputs(bench.device)
    with recorded() as seen:
        launch_fused(inputs, (layer.dx, True, True))
        launch_split(inputs)
    times = bench.race({str(n): each.again for n, each in enumerate(seen)}, times=20)
    return {"kernels": [{"kernel": each.name, **each.facts(), **times[str(n)]} for n, each in enumerate(seen)]}


def _vendor(bench: Bench, layer: Layer) -> dict[str, Any]:
    """Kernels of a forward and backward pass by torch's own layers, as the profiler sees them: name, count, us."""
    from torch.profiler import ProfilerActivity, profile

    precise(layer.numbers)
    train = forms(layer.inputs(bench.device), layer.dx, bench)["pool_first"]["train"]
    train()
    times = 5
    with profile(activities=[ProfilerActivity.CPU if bench.rehearses else ProfilerActivity.CUDA]) as seen:
        for _ in range(times):
            train()
        if not bench.rehearses:
            torch.cuda.synchronize()
    kernels = [
        [each.key[:90], round(each.count / times, 1), round(each.device_time_total / times, 2)]
        for each in seen.key_averages()
        if each.device_time_total or bench.rehearses
    ]
    return {"kernels": kernels[:40]}
