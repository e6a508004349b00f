"""A training run: from options to a finished run folder."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from mnistfast.data.augment import AUGMENTATIONS
from mnistfast.data.datasets import Dataset, Split
from mnistfast.data.loader import DeviceData
from mnistfast.data.sampling import draw_part, holdout
from mnistfast.data.sources import anywhere, load
from mnistfast.data.statistics import channel_stats
from mnistfast.devices import choose_device, environment, fast_format, use_deterministic, use_threads
from mnistfast.errors import CheckpointError, UsageError
from mnistfast.files.atomic import read_json, write_json
from mnistfast.models.adapters import merge, merged
from mnistfast.models.zoo import Classifier, build, check_images
from mnistfast.options.commands import RunOptions
from mnistfast.options.learning import LearnConfig, TrainConfig
from mnistfast.report import metrics, page, plots
from mnistfast.report.screen import Screen
from mnistfast.report.tensorboard import ScalarWriter, check_installed
from mnistfast.results.evaluation import score
from mnistfast.runs import run_folder
from mnistfast.runs.checkpoint import BEST, ENV, LAST, CheckpointInfo, save_checkpoint
from mnistfast.runs.integrity import decoding
from mnistfast.runs.run_folder import RunFolder
from mnistfast.runs.state import STATE, load_state, save_state
from mnistfast.stop import Interrupted, StopRequest
from mnistfast.training.ranks import Ranks
from mnistfast.training.trainer import Record, Trainer, predict

# A resumed run may change these, where hashes tell whether files are the same; anything else would make it another run.
FREE_ON_RESUME = frozenset({"data", "source", "old_data", "device", "threads"})
Config = TypeVar("Config", bound=LearnConfig)
CHANCE = 1.5  # times 1 / classes: a model below that after an epoch has learnt nothing


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        folder: the run's folder.
        scores: of `report.metrics.score` on the test images, with the best epoch's weights.
        best: the record of the best epoch.
        test: which images were scored, in words.
        seconds: time spent training.
        comparison: of a fine-tuned model, what `FinetuneRun` says of before and after.
    """

    folder: Path
    scores: dict[str, Any]
    best: Record
    test: str
    seconds: float
    comparison: dict[str, Any]


def resumed_config(saved: Mapping[str, Any], given: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Returns the options of a run to resume.

    Args:
        saved: the options of the run's config.yaml.
        given: the options given now.
        folder: the run, for messages.

    Raises:
        UsageError: an option is given with another value than the run has.
    """
    for name, value in given.items():
        if name not in FREE_ON_RESUME and saved.get(name) != value:
            raise UsageError(
                f"--{name.replace('_', '-')} is {value}, but {folder} was started with {saved.get(name)}",
                "A resumed run continues as it began",
                "leave the option out, or start a new run",
            )
    return {**saved, **{name: given[name] for name in FREE_ON_RESUME & given.keys()}}


class Run(Generic[Config]):
    """What one call of a command that trains works with, between its checks and its last line.

    Another command overrides what it does otherwise than `train`: `_usable`, `_start`, `_learnt_from`, `_make_trainer`,
    `_compare`, `_facts`.

    Attributes:
        command: what resumes such a run.
    """

    command = "train"

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        device: torch.device,
        screen: Screen,
        ranks: Ranks = Ranks(),  # noqa: B008  # frozen: a team of one
    ) -> None:
        """Prepares model, data and trainer; everything that can be refused is refused here, before a folder is made."""
        self.dataset, self.screen, self.ranks = dataset, screen, ranks
        threads, self.device = use_threads(config.threads), device
        check_augmentation(config.augment, dataset)
        labels = dataset.train.labels
        chosen = self._usable(config)
        parts = holdout(labels[chosen], config.val_count(len(chosen)), config.seed)
        kept, held = (chosen[part] for part in parts)
        epochs = config.planned_epochs(len(kept))
        self.config = replace(
            config, data=data_option(config, dataset), epochs=epochs, threads=threads, device=str(self.device)
        )
        images = dataset.train.images[kept]
        torch.manual_seed(config.seed)
        self.model, self.info = self._start(images)
        check_images(self.model, images.shape[1:], dataset.name)
        self.model.to(self.device, memory_format=fast_format(self.device))  # type: ignore[call-overload]
        self.val = self._learnt_from(Split(dataset.train.images[held], labels[held])) if len(held) else None
        self.trainer = self._make_trainer(self._learnt_from(Split(images, labels[kept])), epochs)
        # The best epoch that best.safetensors holds. None also after a resume: a crash may have left that file older or
        # newer than the state, and the next save makes it fit.
        self._exported: Record | None = None

    def _usable(self, config: Config) -> np.ndarray:
        """Returns the indices of the training images that may be learnt from and held out."""
        labels = self.dataset.train.labels
        if config.limit is not None and config.limit < len(labels):
            return draw_part(labels, config.limit, config.seed)
        return np.arange(len(labels))

    def _start(self, images: np.ndarray) -> tuple[Classifier, CheckpointInfo]:
        """Returns the model to begin with and its header; `images` are those that it will learn from."""
        config, classes = self.config, self.dataset.classes
        assert isinstance(config, TrainConfig)
        model = build(config.model, classes=len(classes), dropout=config.dropout)
        return model, CheckpointInfo(config.model, model.arguments, classes, *channel_stats(images), model.input_size)

    def _learnt_from(self, split: Split) -> DeviceData:
        """Returns training or validation images as the trainer gets them."""
        return self._on_device(split)

    def _make_trainer(self, train: DeviceData, epochs: int) -> Trainer:
        return Trainer(self.model, train, self.val, self.config, epochs, self.ranks)

    @property
    def hashes(self) -> dict[str, str]:
        """MD5 of everything that the run begins with; a resumed run must find the same."""
        return self.dataset.hashes

    def _on_device(self, split: Split) -> DeviceData:
        return DeviceData(split, self.device, self.info.mean, self.info.std)

    def announce(self, folder: RunFolder) -> None:
        """Takes the folder into use and says what is about to be done, in one line."""
        folder.start()
        self.screen.log = folder.log
        epochs = self.trainer.plan.epochs
        processes = f", {self.ranks.world} processes" if self.ranks.world > 1 else ""
        held = f"{len(self.val):,} held out" if self.val else "none held out (the last epoch counts as the best)"
        self.screen.say(
            f"{self.info.model} on {self.dataset.name}: {len(self.trainer.train):,} training images, {held}; "
            f"{epochs} epoch{'s' * (epochs > 1)} on {self.device} ({self.config.threads} CPU threads{processes}); "
            f"writing to {folder.path}"
        )

    def begin(self, folder: RunFolder, command: str) -> None:
        """Writes down what is about to happen; from here on the run can be resumed."""
        self.announce(folder)
        data = {"name": self.dataset.name, "source": self.dataset.source, "hashes": self.hashes}
        machine = environment(self.device, self.config.threads or 0, self.ranks.world)
        self.info = replace(self.info, run=secrets.token_hex(8))
        write_json(folder / ENV, machine | {"run": self.info.run, "data": data, "command": command}, folder.write)
        self._save(folder)
        folder.write(folder / run_folder.CONFIG, self.config.to_yaml())  # the last one: it is what makes a folder a run

    def resume(self, folder: RunFolder) -> None:
        """Continues from the folder's state; what is refused here leaves the folder as it was.

        Raises:
            CheckpointError: the state is missing or damaged, or belongs to other images.
        """
        env = _environment_of(folder)
        self.check_hashes(folder, env["data"])
        state = load_state(folder / STATE)
        self._take_up(folder, state, env["run"])
        shared = self.ranks.of_first(lambda: state)
        with decoding(folder / STATE, fix="train anew with another --out"):
            self.trainer.load_state_dict(shared)
        epochs = self.trainer.step // self.trainer.plan.steps_per_epoch
        if sum(record["step"] <= self.trainer.step for record in folder.metrics()) < epochs:
            raise CheckpointError(
                f"{folder / run_folder.METRICS} is missing or damaged", fix="train anew with another --out"
            )
        self.announce(folder)
        now = environment(self.device, self.config.threads or 0, self.ranks.world)
        changed = [f"{key} {env[key]!s:.100} is now {now[key]}" for key in now if env.get(key, now[key]) != now[key]]
        if changed:
            self.screen.warn(f"bits may differ from an uninterrupted run: {'; '.join(changed)}")
        folder.cut_metrics(self.trainer.step)

    def _take_up(self, folder: RunFolder, state: Mapping[str, Any], run: str) -> None:
        """Goes on as the run called `run`; raises CheckpointError where `state` is another's, or of other options."""
        if state.get("run", "") != run:
            raise CheckpointError(f"{folder / STATE} is another run's", f"{folder / ENV} is of run {run or 'unknown'}")
        mine, saved = self._options(), state.get("options", {})
        other = [name for name in mine if name in saved and saved[name] != mine[name]]
        if other:
            why = f"Its {other[0]} is {mine[other[0]]}, the run was trained with {saved[other[0]]}"
            raise CheckpointError(f"{folder / run_folder.CONFIG} does not fit {STATE}", why, "correct it")
        self.info = replace(self.info, run=run)

    def _options(self) -> dict[str, Any]:
        """Returns the options that a resumed run must have as it had them, as plain data."""
        return {name: value for name, value in asdict(self.config).items() if name not in FREE_ON_RESUME}

    def check_hashes(self, folder: RunFolder, data: Mapping[str, Any]) -> None:
        """Raises CheckpointError unless the files are those that the run began with, as it wrote down in `data`."""
        if data.get("hashes") != self.hashes:
            raise CheckpointError(
                f"{folder.path} was trained on other images than those in {self.dataset.source}",
                f"It was trained on {data.get('source')}, whose files have other hashes",
                "--data with the run's own images",
            )
        self.screen.say(f"resumed {folder.path} after step {self.trainer.step}")

    def follow(self, resume: bool) -> None:
        """Trains in step with the first process, which has the run's folder. Raises as `learn`."""
        if resume:
            self.trainer.load_state_dict(self.ranks.of_first(dict))
        else:
            self._save(None)
        self.learn(None)

    def learn(self, folder: RunFolder | None, *, tensorboard: bool = False) -> None:
        """Trains to the end, saving to `folder` after every epoch.

        Raises:
            DivergedError: the loss is no longer a finite number.
            Interrupted: Ctrl-C, SIGTERM or SIGHUP came; the state is saved.
        """
        trainer, images = self.trainer, len(self.trainer.train)
        scalars = ScalarWriter(folder.path, trainer.step) if folder and tensorboard else None
        with StopRequest() as stop, self.screen.progress(trainer.plan.epochs, images, trainer.images_seen) as progress:
            for record in trainer.run():
                progress.step(trainer.images_seen, *trainer.recent)
                if record:
                    self._save(folder, record)
                    progress.epoch(record)
                    if scalars:
                        scalars.add(record)
                    if self.ranks.first:
                        self._warn_of_chance(record)
                if self.ranks.any(stop.signum is not None):
                    self._save(folder)
                    saved = folder and (
                        f"; saved {folder / LAST}. Continue: mnistfast {self.command} --resume {folder.path}"
                    )
                    raise Interrupted(stop.signum or signal.SIGTERM, f"stopped at step {trainer.step}{saved or ''}")
        if trainer.step < trainer.plan.steps:
            self.screen.say(f"stopped early: no better epoch for {trainer.stale_epochs}")

    def _save(self, folder: RunFolder | None, record: Record | None = None) -> None:
        """Saves the state, which alone counts for resuming, then the two files that are for use.

        Of several processes each takes part in gathering the state; the one with the folder writes it.

        An epoch's `record` goes first: what a crash leaves of it beyond the state, resuming cuts off.
        """
        state = self.trainer.state_dict()
        if folder is None:
            return
        if record:
            folder.add_metrics(record)
        save_state(folder / STATE, state | {"run": self.info.run, "options": self._options()}, folder.write)
        self.trainer.last_good = f"{folder / LAST} (step {self.trainer.step})"
        self._export(folder)

    def _export(self, folder: RunFolder) -> None:
        best = self.trainer.best
        last = replace(self.info, metrics=self._last_record())
        save_checkpoint(folder / LAST, merged(self.trainer.judged.state_dict()), last, write=folder.write)
        if best and best is not self._exported:
            info = replace(self.info, metrics=best)
            save_checkpoint(folder / BEST, merged(self.trainer.best_weights), info, write=folder.write)
            self._exported = best

    def _last_record(self) -> Record:
        """Returns what is known of the weights as they are: the epoch's record, or the step alone within an epoch."""
        record = self.trainer.last_record
        return record if record and record["step"] == self.trainer.step else {"step": self.trainer.step}

    def _warn_of_chance(self, record: Record) -> None:
        accuracy: float = record["val_accuracy" if self.val else "accuracy"]
        if record["epoch"] == 1 and accuracy < CHANCE / self.model.classes:
            self.screen.warn(f"accuracy {page.percent(accuracy)} after 1 epoch: labels shuffled, or --lr too high?")

    def finish(self, folder: RunFolder) -> Outcome:
        """Calibrates the two checkpoints, scores the best one on the test images and writes the report."""
        best = self.trainer.best
        assert best is not None  # an epoch has ended
        merge(self.model)
        self._calibrate(folder, LAST, self.trainer.judged.state_dict(), self._last_record())
        info = self._calibrate(folder, BEST, self.trainer.best_weights, best)
        test = self.dataset.test
        scores = score(self.model, info, test, self.dataset.name, self.device)
        write_json(folder / run_folder.TEST, scores, folder.write)
        words = f"the {len(test.labels):,} test images of {self.dataset.name} ({self.dataset.source})"
        folder.log(f"test accuracy {page.accuracy_line(scores)} on {words}")
        comparison = self._compare(folder, info, scores)
        outcome = Outcome(folder.path, scores, best, words, self.trainer.seconds, comparison)
        folder.write(folder / run_folder.CURVES, plots.curves(folder.metrics()))
        folder.write(folder / run_folder.CONFUSION, plots.confusion(scores["confusion"], info.classes))
        folder.write(folder / run_folder.ERRORS, plots.errors(scores["worst_errors"], test.images))
        folder.write(folder / run_folder.REPORT, self._report(outcome, _environment_of(folder)["command"]))
        return outcome

    def _calibrate(
        self, folder: RunFolder, name: str, weights: Mapping[str, torch.Tensor], record: Record
    ) -> CheckpointInfo:
        weights = merged(weights)
        self.model.load_state_dict(weights)
        info = replace(self.info, metrics=record)
        if self.val is not None:
            info = replace(info, temperature=metrics.fit_temperature(*predict(self.model, self.val)))
        save_checkpoint(folder / name, weights, info, write=folder.write)
        return info

    def _compare(self, folder: RunFolder, info: CheckpointInfo, scores: dict[str, Any]) -> dict[str, Any]:
        """Returns what else is to be said of the finished model, whose header is `info`, as plain data."""
        return {}

    def _facts(self, outcome: Outcome) -> dict[str, object]:
        """Returns the rows of the report's first table."""
        parameters = sum(weight.numel() for weight in self.model.parameters())
        return {
            "model": f"{self.info.model}, {parameters:,} parameters",
            "training images": f"{len(self.trainer.train):,} of {self.dataset.name}",
            "validation images": f"{len(self.val) if self.val else 0:,}",
            "best epoch": f"{outcome.best['epoch']} of {self.trainer.plan.epochs}",
            "training time": f"{outcome.seconds:.1f} s on {self.device}, {self.config.threads} CPU threads",
        }

    def _report(self, outcome: Outcome, command: str) -> str:
        facts = self._facts(outcome)
        test = f"{outcome.test}. {self.dataset.notice}".removesuffix(". ")
        return page.report(outcome.folder.name, outcome.scores, test, facts, asdict(self.config), command)


def train(config: TrainConfig, options: RunOptions, command: str, screen: Screen) -> Outcome | None:
    """Trains a model, or goes on training it, and scores it.

    Args:
        config: what to train; for a run that is resumed its own (`resumed_config`).
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
    device = choose_device(config.device, ranks.local)  # what is cheap to refuse first: the data may have to be fetched
    if options.tensorboard:
        check_installed()
    if config.deterministic:
        use_deterministic()
    if ranks.first and options.resume is None:
        run_folder.check_free(options.out, overwrite=options.overwrite)
    with ranks.joined(device):
        dataset = ranks.after_first(
            partial(
                load,
                config.data,
                offline=options.offline,
                resize=config.resize,
                gray=config.gray,
                classes=config.classes,
            )
        )
        if dataset.notice:
            screen.say(dataset.notice)
        run = Run(config, dataset, device, screen, ranks)
        if not ranks.first:
            run.follow(options.resume is not None)
            return None
        return carry_out(run, options, command)


def carry_out(run: Run[Any], options: RunOptions, command: str) -> Outcome:
    """Takes `run` to its end in a folder new or old. Raises as `Run`'s methods do."""
    if options.resume is None:
        folder = RunFolder.create(options.out, run.info.model, run.config.seed, overwrite=options.overwrite)
    else:
        folder = RunFolder.reopen(options.resume)
    with folder:
        if options.resume is None:
            run.begin(folder, command)
        else:
            run.resume(folder)
        run.learn(folder, tensorboard=options.tensorboard)
        return run.finish(folder)


def check_augmentation(name: str, dataset: Dataset) -> None:
    """Refuses an augmentation that turns the images of one class into another's.

    Raises:
        UsageError: it mirrors, and the classes are characters.
    """
    if AUGMENTATIONS[name].flip and all(len(one) == 1 for one in dataset.classes):
        why = f"The classes of {dataset.name} are characters: a mirrored one is another or none"
        raise UsageError(f"--augment {name} mirrors images", why, "--augment mild")


def _environment_of(folder: RunFolder) -> dict[str, Any]:
    """Returns what `Run.begin` noted about the machine, the data and the command; raises CheckpointError."""
    path = folder / ENV
    found = {"run": "", **read_json(path)}  # runs from before checkpoints named theirs have none
    for name, kind in (("run", str), ("data", dict), ("command", str)):
        if not isinstance(found.get(name), kind) or (kind is dict and not isinstance(found[name].get("hashes"), dict)):
            raise CheckpointError(f"{path} is damaged", f"Its {name} is missing", "train anew with another --out")
    return found


def data_option(config: LearnConfig, dataset: Dataset) -> str:
    """Returns what `--data` must be to find the same images from any folder."""
    return dataset.name if config.data is None else anywhere(config.data)
