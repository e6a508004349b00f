"""Training a model from random weights."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from convpool import choices
from mnistfast.data.datasets import Dataset
from mnistfast.data.statistics import channel_stats
from mnistfast.models.zoo import build
from mnistfast.options.commands import RunOptions
from mnistfast.options.learning import TrainConfig
from mnistfast.report.screen import Screen
from mnistfast.results.finish import Outcome
from mnistfast.runs.checkpoint import CheckpointInfo
from mnistfast.tasks.prepared import Prepared, hold_out, limited, load_data, on_device, place, refuse_early, set_up
from mnistfast.tasks.run import carry_out, follow
from mnistfast.training.ranks import Ranks
from mnistfast.training.trainer import Trainer


@choices.use(None)  # a user's table, which may change, has no say in what a training begins with
def prepare(
    config: TrainConfig,
    dataset: Dataset,
    device: torch.device,
    ranks: Ranks = Ranks(),  # noqa: B008  # frozen: a team of one
) -> Prepared:
    """Returns the training of `config` on `dataset`, before its first step.

    Raises:
        DataError: the model does not take the images.
        UsageError: what is asked for does not suit the images.
    """
    config = set_up(config, dataset, device)
    everything = np.arange(len(dataset.train.labels))
    config, train, held = hold_out(dataset.train, limited(dataset.train.labels, everything, config), config)
    torch.manual_seed(config.seed)
    model = build(config.model, classes=len(dataset.classes), dropout=config.dropout)
    mean, std = channel_stats(train.images)
    info = CheckpointInfo(config.model, model.arguments, dataset.classes, mean, std, model.input_size)
    place(model, dataset, device)
    val = on_device(held, device, info) if held else None
    trainer = Trainer(model, on_device(train, device, info), val, config, ranks)
    return Prepared("train", config, dataset, dataset.hashes, info, trainer)


def train(config: TrainConfig, options: RunOptions, command: str, screen: Screen) -> Outcome | None:
    """Trains a model, or goes on training it, and scores it.

    Args:
        config: what to train; for a run that is resumed its own (`options.resuming`).
        options: where to write.
        command: the command line, to be written down.
        screen: what to tell whom.

    Returns:
        What came out, or None in those of several processes that are not the first.

    Raises:
        MnistfastError: any of its kinds; nothing is left half written.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP.
    """
    ranks = Ranks.of_environment()
    device = refuse_early(config, options, ranks)
    with ranks.joined(device):
        return _train_together(config, options, command, screen, device, ranks)


def _train_together(
    config: TrainConfig, options: RunOptions, command: str, screen: Screen, device: torch.device, ranks: Ranks
) -> Outcome | None:
    """Does what `train` does once the processes are joined; what it makes ends with it, and so before the group."""
    dataset = ranks.after_first(partial(load_data, config, offline=options.offline))
    if dataset.notice:
        screen.say(dataset.notice)
    prepared = prepare(config, dataset, device, ranks)
    if not ranks.first:
        follow(prepared, screen, resume=options.resume is not None)
        return None
    return carry_out(prepared, options, command, screen)
