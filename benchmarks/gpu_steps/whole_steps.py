"""Whole training steps of three models in four forms, as the trainer launches them: called, and replayed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.gpu_steps.subjects import FORMS, USUAL, Bench, Numbers, Rows, model, precise
from benchmarks.gpu_steps.trainers import Steps, on_device, preset, ready

MODELS = ("cnn2", "fast", "lenet5")
BATCHES = (128, 512, 256, 1024)
_GRAPHS = {"eager": "off", "graph": "on"}  # by the row's word for it, how steps are launched


def rows(bench: Bench) -> Rows:
    subjects = [*product(BATCHES, USUAL, MODELS)]
    for batch, numbers, name in bench.some(subjects):
        key = {"model": name, "batch": batch, "numbers": numbers}
        yield key, partial(_measure, bench, name, batch, numbers)


def _measure(bench: Bench, network: str, batch: int, numbers: Numbers) -> dict[str, Any]:
    precise(numbers)
    data, config = on_device(bench, bench.images.train), preset(bench, network, numbers, batch_size=batch)
    row: dict[str, Any] = {form.name: {} for form in FORMS}
    for how, graph in _GRAPHS.items():
        steps: dict[str, Steps] = {}
        for form in FORMS:
            try:
                trainer = ready(bench, model(network, form, bench.device), data, replace(config, graph=graph))
                step = Steps(bench, trainer)
                step()
            except Exception as failure:
                row[form.name]["failed"] = f"{type(failure).__name__}: {str(failure)[:200]}"
                continue
            steps[form.name] = step
            if graph == "on":
                row[form.name]["capture_s"] = round(trainer.launcher.seconds, 4)
                if not bench.rehearses and batch == BATCHES[0]:  # every batch launches as much
                    row[form.name]["nodes"] = _nodes(step)
        for name, found in (bench.race(steps, replay=False) if steps else {}).items():
            row[name][how] = found
    return row


def _nodes(step: Steps) -> int:
    """Kernels and copies of the graph."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    return sum(each.count for each in seen.key_averages() if each.device_time_total)
