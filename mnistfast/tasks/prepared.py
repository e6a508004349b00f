"""What a task hands over before anything is written: all that it refuses, it has refused by then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from mnistfast.data.augment import AUGMENTATIONS
from mnistfast.data.datasets import Dataset, Split
from mnistfast.data.loader import DeviceData
from mnistfast.data.sampling import draw_part, holdout
from mnistfast.data.sources import anywhere, load
from mnistfast.devices import check_graph, choose_device, fast_format, use_deterministic, use_threads
from mnistfast.errors import UsageError
from mnistfast.models.zoo import Classifier, check_images
from mnistfast.options.commands import RunOptions
from mnistfast.options.learning import LearnConfig
from mnistfast.report.tensorboard import check_installed
from mnistfast.results.finish import Compare
from mnistfast.runs.checkpoint import CheckpointInfo
from mnistfast.runs.run_folder import check_free
from mnistfast.training.ranks import Ranks
from mnistfast.training.trainer import Trainer

Config = TypeVar("Config", bound=LearnConfig)


@dataclass(frozen=True)
class Remark:
    """Something to say of a run as it begins; a warning is heard even by who wants quiet."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Prepared:
    """A training that can begin, or go on.

    Attributes:
        command: what resumes such a run.
        config: what is learnt, with all that only the run could know filled in.
        dataset: the task's, whose test images are scored in the end.
        hashes: MD5 of everything that the run begins with; a resumed run must find the same.
        info: the header of its checkpoints.
        trainer: has the model, and the images that it learns from and is judged by.
        weights: the file that the model's first weights are from, "" for drawn ones; `hashes` has it as `source`.
        remarks: what is to be said as it begins, after the first line.
        compare: says what else there is to say in the end.
    """

    command: str
    config: LearnConfig
    dataset: Dataset
    hashes: Mapping[str, str]
    info: CheckpointInfo
    trainer: Trainer
    weights: str = ""
    remarks: tuple[Remark, ...] = ()
    compare: Compare | None = None


def refuse_early(
    config: LearnConfig,
    options: RunOptions,
    ranks: Ranks = Ranks(),  # noqa: B008  # frozen: a team of one
) -> torch.device:
    """Refuses what is cheap to refuse, before data are read, which may have to be fetched; returns the device.

    Raises:
        DeviceError: the device, or what TensorBoard or `graph` needs, is not there.
        UsageError: there is no such device, or the folder to write to is not free.
    """
    device = choose_device(config.device, ranks.local)
    check_graph(config.graph, device)
    if options.tensorboard:
        check_installed()
    if config.deterministic:
        use_deterministic()
    if ranks.first and options.resume is None:
        check_free(options.out, overwrite=options.overwrite)
    return device


def load_data(config: LearnConfig, *, offline: bool) -> Dataset:
    """Returns the data that `config` names, as it wants them.

    Raises:
        DataError, StorageError, UsageError: as `data.sources.load`.
    """
    return load(config.data, offline=offline, resize=config.resize, gray=config.gray, classes=config.classes)


def set_up(config: Config, dataset: Dataset, device: torch.device) -> Config:
    """Sets the process up for a training by `config`; returns it with what is known then filled in.

    Raises:
        UsageError: the augmentation does not suit the classes.
    """
    threads = use_threads(config.threads)
    check_augmentation(config.augment, dataset)
    return replace(config, data=data_option(config, dataset), threads=threads, device=str(device))


def check_augmentation(name: str, dataset: Dataset) -> None:
    """Refuses an augmentation that turns the images of one class into another's.

    Raises:
        UsageError: it mirrors, and the classes are characters.
    """
    if AUGMENTATIONS[name].flip and all(len(one) == 1 for one in dataset.classes):
        why = f"The classes of {dataset.name} are characters: a mirrored one is another or none"
        raise UsageError(f"--augment {name} mirrors images", why, "--augment mild")


def data_option(config: LearnConfig, dataset: Dataset) -> str:
    """Returns what `--data` must be to find the same images from any folder."""
    return dataset.name if config.data is None else anywhere(config.data)


def limited(labels: np.ndarray, allowed: np.ndarray, config: LearnConfig) -> np.ndarray:
    """Returns the indices of `allowed` images, or those of --limit of them, the same share of each class."""
    if config.limit is None or config.limit >= len(allowed):
        return allowed
    return allowed[draw_part(labels[allowed], config.limit, config.seed)]


def hold_out(split: Split, usable: np.ndarray, config: Config) -> tuple[Config, Split, Split | None]:
    """Parts the `usable` images into those to learn from and those to judge by, None where there are none of them.

    Returns:
        `config` with the epochs that suit them filled in, and both parts.

    Raises:
        UsageError: there are too few images.
    """
    parts = holdout(split.labels[usable], config.val_count(len(usable)), config.seed)
    kept, held = (Split(split.images[usable[part]], split.labels[usable[part]]) for part in parts)
    return replace(config, epochs=config.planned_epochs(len(kept.labels))), kept, held if len(held.labels) else None


def place(model: Classifier, dataset: Dataset, device: torch.device) -> None:
    """Brings `model` to `device`, its weights as it wants them to lie.

    Raises:
        DataError: it does not take the images of `dataset`.
    """
    check_images(model, dataset.train.images.shape[1:], dataset.name)
    model.to(device, memory_format=fast_format(device))  # type: ignore[call-overload]


def on_device(split: Split, device: torch.device, info: CheckpointInfo) -> DeviceData:
    """Returns images that are normalised as `info` has it."""
    return DeviceData(split, device, info.mean, info.std)
