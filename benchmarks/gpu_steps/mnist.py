"""Trainings on MNIST by the models' presets, over seeds: seconds, and the test accuracy.

First prepared ones: the images lie on the device, where steps are replayed one is recorded, and the clock runs from
there to final weights. Then the same in one call, from uint8 images on the host. Without MNIST all this runs on noise
of its shape, which says nothing of accuracy; the rows say so.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.gpu_steps.subjects import FORMS, Bench, Form, Images, Rows, model, precise
from benchmarks.gpu_steps.trainers import now, on_device, preset, ready
from convpool import use_backend
from mnistfast.data.loader import DeviceData
from mnistfast.models.zoo import Classifier
from mnistfast.training.inference import predict
from mnistfast.training.recipe import learn

MODELS = ("fast", "speedrun", "cnn2")
_ORDER = ("fused channels_last", "fused nchw", "pool_first channels_last", "eager nchw")
_SEEDS, _SEEDS_OF_NOISE, _SEEDS_OF_CALLS = 10, 2, 4


def rows(bench: Bench) -> Rows:
    yield {"what": "data"}, lambda: {"real": bench.images.real, "note": _note(bench.images)}
    forms = {form.name: form for form in FORMS}
    for graph, form, name in bench.some([*product(("on",), _ORDER, MODELS), ("off", _ORDER[0], MODELS[0])]):
        key = {"what": "prepared", "model": name, "form": form, "graph": graph, "numbers": "tf32"}
        yield key, partial(_prepared, bench, name, forms[form], graph)
    # In one call nothing stands in for a recording: a rehearsal only calls.
    ways = [("off", "auto")] if bench.rehearses else [*product(("on", "off"), ("triton", "auto"))]
    for (graph, backend), name in product(ways, bench.some(MODELS)):
        key = {"what": "trainer", "model": name, "backend": backend, "graph": graph}
        yield key, partial(_in_one_call, bench, name, backend, graph)


def _note(images: Images) -> str:
    return "MNIST" if images.real else "no --data: noise of MNIST's shape, accuracies mean nothing"


def _prepared(bench: Bench, name: str, form: Form, graph: str) -> dict[str, Any]:
    precise("tf32")
    train, test = (on_device(bench, split) for split in (bench.images.train, bench.images.test))
    found: dict[str, Any] = {"seconds": [], "accuracy": [], "recording": []}
    for seed in _seeds(bench, _SEEDS):
        config = preset(bench, name, seed=seed, graph=graph)
        trainer = ready(bench, model(name, form, bench.device, seed), train, config)
        began = now(bench)
        with use_backend(bench.ours):
            for _ in trainer.run():
                pass
            found["seconds"].append(round(now(bench) - began, 5))
            found["accuracy"].append(_accuracy(trainer.judged, test))
        found["recording"].append(round(trainer.launcher.seconds, 4))
    return found | {"batch": config.batch_size, "steps": trainer.step}


def _in_one_call(bench: Bench, name: str, backend: str, graph: str) -> dict[str, Any]:
    """The first run pays for what happens once."""
    precise("tf32")
    form = next(form for form in FORMS if form.name == "fused nchw")
    found: dict[str, Any] = {"seconds": [], "accuracy": [], "recording": [], "steps": []}
    for seed in _seeds(bench, _SEEDS_OF_CALLS):
        config = preset(bench, name, seed=seed, graph=graph)
        network: Any = model(name, form, bench.device, seed)
        began = now(bench)
        with use_backend(backend):
            learnt = learn(network, bench.images.train, config)
            found["seconds"].append(round(now(bench) - began, 4))
            if learnt.replayed != (graph == "on"):
                raise RuntimeError("no step could be recorded")
            test = DeviceData(bench.images.test, torch.device(bench.device), learnt.mean, learnt.std)
            found["accuracy"].append(_accuracy(learnt.model, test))
        found["recording"].append(round(learnt.recording, 4))
        found["steps"].append(learnt.steps)
    return found


def _seeds(bench: Bench, of_mnist: int) -> range:
    return range(1 if bench.rehearses else of_mnist if bench.images.real else _SEEDS_OF_NOISE)


def _accuracy(network: Classifier, data: DeviceData) -> float:
    logits, labels = predict(network, data)
    return float((logits.argmax(1) == labels).double().mean())
