"""Looking for better settings of a training, judged by validation images alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnistfast.data.augment import AUGMENTATIONS
from mnistfast.data.datasets import Dataset, Split
from mnistfast.devices import choose_device
from mnistfast.errors import DeviceError, DivergedError, UsageError
from mnistfast.files.atomic import write_json
from mnistfast.options.commands import SearchOptions
from mnistfast.options.learning import TrainConfig
from mnistfast.report.page import percent
from mnistfast.report.screen import Screen
from mnistfast.runs import run_folder
from mnistfast.runs.run_folder import RunFolder
from mnistfast.tasks.prepared import data_option, load_data
from mnistfast.tasks.run import choose
from mnistfast.tasks.train import prepare

# What is looked for where the user has not settled it, each as a question to an Optuna trial, which the preset's own
# value must be able to answer. Decay is decoupled: the optimiser is adamw unless another is given.
SPACE: dict[str, Callable[[Any, TrainConfig], Any]] = {
    "lr": lambda trial, _: trial.suggest_float("lr", 1e-4, 3e-2, log=True),
    "batch_size": lambda trial, base: trial.suggest_categorical(
        "batch_size", sorted({32, 64, 128, 256, base.batch_size})
    ),
    "weight_decay": lambda trial, _: trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True),
    "dropout": lambda trial, _: trial.suggest_float("dropout", 0.0, 0.6),
    "augment": lambda trial, _: trial.suggest_categorical("augment", upright()),
}


@dataclass(frozen=True)
class Best:
    """What a search found.

    Attributes:
        folder: where search.json and best.yaml are.
        settings: what was looked for.
        accuracy: on the validation images.
        preset_accuracy: that of the first trial, the preset's own settings; None if it diverged.
        trials: how many there were.
    """

    folder: Path
    settings: dict[str, Any]
    accuracy: float
    preset_accuracy: float | None
    trials: int


def search(given: Mapping[str, Any], options: SearchOptions, command: str, screen: Screen) -> Best:
    """Trains with one setting after the other, each chosen after what came out before (Optuna's TPE).

    The first trial has the preset's settings. What is known is on disk after each trial. The test images are taken away
    before anything is trained.

    Args:
        given: the options of `TrainConfig` that are settled; those of `SPACE` that are not are looked for.
        options: how many trials, and where to write.
        command: the command line, to be written down.
        screen: what to tell whom.

    Raises:
        DivergedError: every trial did.
        MnistfastError: any of its kinds.
    """
    optuna = _optuna()
    wanted = [name for name in SPACE if name not in given]
    if not wanted:
        raise UsageError("nothing is left to look for", f"All of {', '.join(SPACE)} are given")
    base = TrainConfig(**{"optimizer": "adamw", **given})
    if not base.val:
        raise UsageError("--val is 0", "A search needs validation images to judge by", "--val 0.1")
    device = choose_device(base.device)
    dataset = load_data(base, offline=options.offline)
    if dataset.notice:
        screen.say(dataset.notice)
    base = replace(base, data=data_option(base, dataset))
    dataset = _without_test(dataset)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=base.seed))
    first = {name: getattr(base, name) for name in wanted} | (
        {"weight_decay": 1e-6} if "weight_decay" in wanted else {}
    )
    study.enqueue_trial(first)
    with RunFolder.create(options.out, f"search-{base.model}", base.seed, overwrite=options.overwrite) as folder:
        folder.start()
        screen.log = folder.log
        screen.say(f"looking for {', '.join(wanted)} in {options.trials} trials; writing to {folder.path}")
        tried: list[dict[str, Any]] = []
        for number in range(options.trials):
            trial = study.ask()
            settings = {name: SPACE[name](trial, base) for name in wanted}
            accuracy = validated(replace(base, **settings), dataset, device, screen)
            study.tell(trial, accuracy or 0.0)
            tried.append(settings | {"val_accuracy": accuracy})
            best = max(tried, key=lambda one: -1.0 if one["val_accuracy"] is None else one["val_accuracy"])
            found = {name: best[name] for name in wanted}
            write_json(folder / run_folder.SEARCH, {"command": command, "trials": tried}, folder.write)
            if best["val_accuracy"] is not None:
                folder.write(folder / run_folder.SEARCHED, replace(base, **found).to_yaml())
            reached = "diverged" if accuracy is None else f"validation accuracy {percent(accuracy)}"
            screen.say(f"trial {number + 1}/{options.trials}: {reached}, {_words(settings)}")
        if best["val_accuracy"] is None:
            raise DivergedError(f"all {len(tried)} trials diverged", fix="a smaller --lr")
    return Best(folder.path, found, best["val_accuracy"], tried[0]["val_accuracy"], len(tried))


def validated(config: TrainConfig, dataset: Dataset, device: torch.device, screen: Screen) -> float | None:
    """Returns the validation accuracy of the best epoch, None where the training diverged."""
    trainer = prepare(config, dataset, device).trainer
    choose(trainer, screen)
    try:
        with trainer.chosen.in_force():
            for _ in trainer.run():
                pass
    except DivergedError:
        return None
    assert trainer.best is not None
    accuracy: float = trainer.best["val_accuracy"]
    return accuracy


def _without_test(dataset: Dataset) -> Dataset:
    nothing = Split(dataset.test.images[:0], np.zeros(0, np.int64))
    return replace(dataset, test=nothing)


def upright() -> list[str]:
    """Returns the augmentations that turn no character into another."""
    return [name for name, how in AUGMENTATIONS.items() if not how.flip]


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in settings.items()
    )


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise DeviceError("a search needs Optuna", str(error), "pip install 'mnistfast[search]'") from error
    return optuna
