"""Time to accuracy: how long recipes take from uint8 images in memory to final weights, and how good those are.

The clock runs over `training.recipe.learn` alone, the recording of a step that is replayed included. Importing, reading
files, building models, first-time costs (thread pools, compilers, caches: a throw-away training of each entrant on
noise) and scoring lie outside and are listed apart.
The entrants take turns seed by seed, and each run's accuracy is read once, after its clock has stopped.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch

from convpool import use_backend
from convpool.testing import candidates, machine
from mnistfast.data.datasets import Dataset, Split
from mnistfast.data.loader import DeviceData
from mnistfast.data.sampling import holdout
from mnistfast.data.sources import load
from mnistfast.devices import choose_device, environment, use_threads
from mnistfast.measure.forms import FORMS, FUSED, backend_for
from mnistfast.models.zoo import check_images
from mnistfast.options.commands import TimeToOptions
from mnistfast.options.learning import TrainConfig
from mnistfast.report.page import percent
from mnistfast.report.screen import Screen
from mnistfast.training.inference import predict
from mnistfast.training.recipe import built, learn

HELD_OUT = 10_000  # training images to judge on instead of the test set: as many as it has


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        seed: of the weights and the order of the images.
        seconds: on the clock.
        accuracy: share of the scored images, read once.
        steps: of the optimiser, their number fixed beforehand.
        replayed: whether they were a recorded one, replayed.
        recording: seconds of `seconds` in which that one was warmed up and recorded.
        build, score: seconds outside the clock.
    """

    seed: int
    seconds: float
    accuracy: float
    steps: int
    replayed: bool
    recording: float
    build: float
    score: float


@dataclass
class Entrant:
    """A recipe in one form, and its runs.

    Attributes:
        model: whose preset is the recipe.
        form: of `measure.forms.FORMS`.
        first: seconds of a throw-away training on noise before all others, first-time costs included.
        runs: one for each seed.
    """

    model: str
    form: str
    first: float = 0.0
    runs: list[Run] = field(default_factory=list)

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{self.model} on {'fused layers' if self.form == FUSED else self.form}"

    def summary(self) -> dict[str, Any]:
        """Returns the figures as plain numbers, the runs last."""
        seconds, accuracies = ([getattr(run, key) for run in self.runs] for key in ("seconds", "accuracy"))
        unrecorded = [run.seconds - run.recording for run in self.runs]
        return {
            "name": self.name,
            "model": self.model,
            "form": self.form,
            "n": len(self.runs),
            "steps": self.runs[0].steps,
            "launched": "replayed" if all(run.replayed for run in self.runs) else "called",
            "seconds": {"median": median(seconds), "mean": mean(seconds), "low": min(seconds), "high": max(seconds)},
            "seconds_without_recording": {"median": median(unrecorded), "mean": mean(unrecorded)},
            "accuracy": {
                "mean": mean(accuracies),
                "deviation": stdev(accuracies) if len(accuracies) > 1 else None,
                "low": min(accuracies),
                "high": max(accuracies),
            },
            "outside_the_clock": {
                "first_training": self.first,
                "build": mean(run.build for run in self.runs),
                "score": mean(run.score for run in self.runs),
            },
            "runs": [asdict(run) for run in self.runs],
        }


def time_to(options: TimeToOptions, command: str, screen: Screen) -> dict[str, Any]:
    """Times the recipes of `options` and returns the result, ready for JSON; each run is told to `screen`.

    Raises:
        MnistfastError: data, device, a diverged training.
    """
    threads, device = use_threads(options.threads), choose_device(options.device)
    began = time.perf_counter()
    dataset = load(options.data, offline=options.offline)
    reading = time.perf_counter() - began
    if dataset.notice:
        screen.say(dataset.notice)
    train, scored = _splits(dataset, validate=options.validate)
    models = dict.fromkeys([options.model, *([options.against] if options.against else [])])
    plain = {"all": tuple(candidates.PLAIN), "channels_last": ("eager, channels_last",), "fused": ()}[options.forms]
    entrants = [Entrant(model, form) for model in models for form in (FUSED, *plain)]
    on = "held-out training" if options.validate else "test"
    judged = f"{len(scored.labels):,} {on} images of {dataset.name}"
    machine.keep_freed_memory()
    screen.say(machine.setting(device))
    screen.say(f"{len(train.labels):,} training images, judged by {judged}")
    for entrant in race(entrants, train, scored, len(dataset.classes), device, options.seeds):
        run = entrant.runs[-1]
        recording = f", {run.recording:.3f} s of it recording a step" if run.replayed else ""
        screen.say(f"seed {run.seed:<3} {run.seconds:8.3f} s  {percent(run.accuracy)}  {entrant.name}{recording}")
    return {
        "command": command,
        "setting": machine.setting(device),
        "environment": environment(device, threads),
        "target": options.target,
        "training_images": len(train.labels),
        "judged_by": judged,
        "data": {"name": dataset.name, "hashes": dataset.hashes},
        "outside_the_clock": {"reading": reading},
        "entrants": [entrant.summary() for entrant in entrants],
    }


def _splits(dataset: Dataset, *, validate: bool) -> tuple[Split, Split]:
    """Returns what is learnt from and what is scored: the two splits, or parts of the training images alone."""
    if not validate:
        return dataset.train, dataset.test
    images, labels = dataset.train.images, dataset.train.labels
    kept, held = holdout(labels, min(HELD_OUT, len(labels) // 6), seed=0)
    return Split(images[kept], labels[kept]), Split(images[held], labels[held])


def race(
    entrants: Sequence[Entrant],
    train: Split,
    scored: Split,
    classes: int,
    device: torch.device,
    seeds: int,
) -> Iterator[Entrant]:
    """Runs every entrant once with each of the seeds 0, 1, ..., in turns, and yields the entrant after its run.

    Args:
        entrants: to be filled in.
        train: what is learnt from.
        scored: what the final weights are judged by, once.
        classes: number of classes.
        device: where everything happens.
        seeds: how many.

    Raises:
        DataError: the images do not fit a model.
        DivergedError: a training's loss is no longer a finite number.
    """
    noise = Split(np.random.default_rng(0).integers(0, 256, train.images.shape, np.uint8), train.labels)
    # Nothing looks at `scored` but the runs that count.
    unscored = Split(noise.images[:1000], noise.labels[:1000])
    for entrant in entrants:
        entrant.first = _run(entrant, 0, noise, unscored, classes, device).seconds
    order = list(entrants)
    for seed in range(seeds):
        for entrant in order:
            run = _run(entrant, seed, train, scored, classes, device)
            entrant.runs.append(run)
            yield entrant
        order.append(order.pop(0))  # nobody always follows the same neighbour


def _run(entrant: Entrant, seed: int, train: Split, scored: Split, classes: int, device: torch.device) -> Run:
    config = TrainConfig(model=entrant.model, seed=seed, device=str(device))
    begin = _now(device)
    fused = built(config, classes, device)
    check_images(fused, train.images.shape[1:], "the data")
    model = FORMS[entrant.form](fused)
    gc.collect()  # what earlier runs left behind is not collected at this one's cost
    start = _now(device)
    with use_backend(backend_for(device)):
        learnt = learn(model, train, config)
    end = _now(device)
    logits, labels = predict(learnt.model, DeviceData(scored, device, learnt.mean, learnt.std))
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    return Run(
        seed,
        end - start,
        accuracy,
        learnt.steps,
        learnt.replayed,
        learnt.recording,
        start - begin,
        _now(device) - end,
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
