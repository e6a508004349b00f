"""The project's own trainings, in any form of a model, their steps called or replayed; the images lie on the device."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from benchmarks.gpu_steps.subjects import Bench, Numbers
from convpool import use_backend
from mnistfast.data.datasets import Split
from mnistfast.data.loader import DeviceData
from mnistfast.data.statistics import channel_stats
from mnistfast.options.learning import TrainConfig
from mnistfast.training.launching import LEAST, Launcher
from mnistfast.training.trainer import Trainer


def preset(bench: Bench, name: str, numbers: Numbers = "tf32", **options: Any) -> TrainConfig:
    """A model's preset for the device, with other options; in a rehearsal of two small steps."""
    if bench.rehearses:
        options |= {"batch_size": 8, "first_batch": None, "max_steps": 2}
    return TrainConfig(model=name, device=bench.device, precision="bf16" if numbers == "bf16" else "fp32", **options)


def on_device(bench: Bench, split: Split) -> DeviceData:
    """Images and labels on the device, normalised as the training images are."""
    return DeviceData(split, torch.device(bench.device), *channel_stats(bench.images.train.images[::10]))


def ready(bench: Bench, model: nn.Module, data: DeviceData, config: TrainConfig) -> Trainer:
    """A training before its first step, which is recorded already where steps are to be replayed.

    In a rehearsal the recording is stood in for: a replay calls the step.

    Raises:
        RuntimeError: steps cannot be replayed.
    """
    asked, batch = config.graph, config.batch_size
    if bench.rehearses:
        config = replace(config, graph="off")
    with use_backend(bench.ours):
        trainer = Trainer(model, data, None, config)  # type: ignore[arg-type]
        if bench.rehearses and asked == "on":
            trainer.launcher = Launcher(
                trainer.learner, Counter({batch: LEAST}), lambda step: SimpleNamespace(replay=step)
            )
        trainer.prepare()
    if asked == "on" and batch not in trainer.launcher.sizes:
        raise RuntimeError(trainer.launcher.obstacle)
    return trainer


@dataclass
class Steps:
    """Calls of one step after the other: those of an epoch that have a whole batch, over and over.

    Attributes:
        bench: whose backend computes the fused layers.
        trainer: as `ready` returns it.
        taken: steps so far.
    """

    bench: Bench
    trainer: Trainer
    taken: int = 0

    def __call__(self) -> None:
        """The step as the trainer launches it."""
        plan, batch = self.trainer.plan, self.trainer.config.batch_size
        if self.taken % min(plan.steps, plan.images // batch) == 0:
            self.trainer.learner.cursor.move(0, 0)
        with use_backend(self.bench.ours):
            self.trainer.launcher.take(batch)
        self.taken += 1


def now(bench: Bench) -> float:
    """Seconds since any moment, once the device has done what it was given."""
    if not bench.rehearses:
        torch.cuda.synchronize()
    return time.perf_counter()
