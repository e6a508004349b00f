"""From uint8 images to final weights in one call: what the time to an accuracy is the time of."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mnistfast.data.datasets import Split
from mnistfast.data.loader import DeviceData
from mnistfast.data.statistics import channel_stats
from mnistfast.models.zoo import Classifier, build
from mnistfast.options.learning import TrainConfig
from mnistfast.training.trainer import Trainer

# Evenly spaced images that mean and deviation are taken from, which they suit to half a percent: all of MNIST's would
# take 0.07 s of a training of half a second.
STATISTICS_IMAGES = 6_000


@dataclass(frozen=True)
class Learnt:
    """What came out of a training.

    Attributes:
        model: with its final weights.
        mean, std: what the images were normalised with, for each channel.
        steps: optimiser steps taken, their number fixed beforehand.
        replayed: whether they were a recorded one, replayed; else each was called.
        recording: seconds of the call in which that one was warmed up and recorded.
    """

    model: Classifier
    mean: tuple[float, ...]
    std: tuple[float, ...]
    steps: int
    replayed: bool
    recording: float


def learn(model: Classifier, train: Split, config: TrainConfig) -> Learnt:
    """Trains `model` on all of `train` by the recipe of `config`, and returns it.

    All that depends on the images happens in here: their statistics, normalisation, order and augmentation. Nothing is
    held out, scored or written. When it returns, the device may still be at work.

    Args:
        model: on its device, with freshly drawn weights.
        train: images uint8 and labels in memory.
        config: optimiser, schedule, batch size, epochs, seed and the like.

    Raises:
        DivergedError: the loss is no longer a finite number.
    """
    mean, std = channel_stats(train.images[:: max(1, len(train.images) // STATISTICS_IMAGES)])
    data = DeviceData(train, next(model.parameters()).device, mean, std)
    trainer = Trainer(model, data, None, config)
    for _ in trainer.run():
        pass
    launcher = trainer.launcher
    return Learnt(trainer.judged, mean, std, trainer.step, bool(launcher.sizes), launcher.seconds)


def built(config: TrainConfig, classes: int, device: torch.device) -> Classifier:
    """Returns the model of `config` on `device`, its weights drawn from the configuration's seed."""
    torch.manual_seed(config.seed)
    return build(config.model, classes=classes, dropout=config.dropout).to(device)
