"""Seconds from uint8 images on the host to final weights, and the test accuracy: whole-step graphs, then the trainer.

Without MNIST the same runs on noise of its shape, which says nothing of accuracy; the rows say so.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_steps.subjects import FORMS, Bench, Images, Numbers, Rows, precise
from benchmarks.gpu_steps.whole_steps import whole_step
from convpool import use_backend

TARGET = 0.99
_SEEDS, _SEEDS_OF_NOISE, _TRAINER_SEEDS = 10, 2, 4


@dataclass(frozen=True)
class Recipe:
    """How a whole-step graph trains: peak is the highest learning rate."""

    model: str
    form: str
    batch: int
    steps: int
    peak: float
    numbers: Numbers = "tf32"


RECIPES = (
    Recipe("fast", "fused nchw", 256, 235, 1e-2),
    Recipe("fast", "pool_first channels_last", 256, 235, 1e-2),
    Recipe("fast", "eager nchw", 256, 235, 1e-2),
    Recipe("fast", "fused channels_last", 384, 157, 1e-2),
    Recipe("cnn2", "fused channels_last", 256, 235, 6e-3),
    Recipe("cnn2", "pool_first channels_last", 256, 235, 6e-3),
    Recipe("fast", "fused channels_last", 512, 118, 1.2e-2, "bf16"),
)
TRAINED = ("fast", "speedrun", "cnn2")


def rows(bench: Bench) -> Rows:
    yield {"what": "data"}, lambda: {"real": bench.images.real, "note": _note(bench.images)}
    for recipe in bench.some(RECIPES):
        key = {"what": "whole-step graph", **vars(recipe)}
        yield key, partial(_graphs, bench, recipe)
    for name in bench.some(TRAINED):
        for backend in ("auto", "triton") if not bench.rehearses else ("auto",):
            yield {"what": "trainer", "model": name, "backend": backend}, partial(_trainer, bench, name, backend)


def _note(images: Images) -> str:
    return "MNIST" if images.real else "no --data: noise of MNIST's shape, accuracies mean nothing"


def _graphs(bench: Bench, recipe: Recipe) -> dict[str, Any]:
    form = next(each for each in FORMS if each.name == recipe.form)
    step = whole_step(bench, recipe.model, form, 8 if bench.rehearses else recipe.batch, recipe.numbers)
    row: dict[str, Any] = {"capture_s": None if bench.rehearses else step.capture()}
    if bench.rehearses:
        step.body()
    seeds = range(1 if bench.rehearses else _SEEDS if bench.images.real else _SEEDS_OF_NOISE)
    runs = [step.learn(bench.images, 2 if bench.rehearses else recipe.steps, recipe.peak, seed) for seed in seeds]
    return row | {"seconds": [seconds for seconds, _ in runs], "accuracy": [accuracy for _, accuracy in runs]}


def _trainer(bench: Bench, name: str, backend: str) -> dict[str, Any]:
    """The project's own trainer by its preset; the first run pays for what happens once."""
    from mnistfast.data.loader import DeviceData
    from mnistfast.options.learning import TrainConfig
    from mnistfast.training.inference import predict
    from mnistfast.training.recipe import built, learn

    precise("tf32")
    found: dict[str, Any] = {"seconds": [], "accuracy": [], "steps": []}
    for seed in range(1 if bench.rehearses else _TRAINER_SEEDS if bench.images.real else _SEEDS_OF_NOISE):
        config = TrainConfig(model=name, seed=seed, **({"max_steps": 2} if bench.rehearses else {}))
        model = built(config, 10, torch.device(bench.device))
        began = _now(bench)
        with use_backend(backend):
            learnt = learn(model, bench.images.train, config)
            found["seconds"].append(round(_now(bench) - began, 4))
            test = DeviceData(bench.images.test, torch.device(bench.device), learnt.mean, learnt.std)
            logits, truth = predict(learnt.model, test)
        found["accuracy"].append(float((logits.argmax(1) == truth).double().mean()))
        found["steps"].append(learnt.steps)
    return found


def _now(bench: Bench) -> float:
    if not bench.rehearses:
        torch.cuda.synchronize()
    return time.perf_counter()
