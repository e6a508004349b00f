"""Carrying a prepared training to its end, in a folder that is new or that it was stopped in."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

from mnistfast.devices import environment
from mnistfast.errors import CheckpointError
from mnistfast.options.commands import RunOptions
from mnistfast.options.resuming import settled
from mnistfast.report.page import percent
from mnistfast.report.screen import Screen
from mnistfast.report.tensorboard import ScalarWriter
from mnistfast.results.finish import Outcome, finish
from mnistfast.runs.checkpoint import LAST
from mnistfast.runs.integrity import decoding
from mnistfast.runs.recorder import Recorder, begin_recording, check_metrics, environment_of, take_up
from mnistfast.runs.run_folder import RunFolder
from mnistfast.runs.state import STATE
from mnistfast.stop import Interrupted, StopRequest
from mnistfast.tasks.prepared import Prepared
from mnistfast.training.chosen import seconds_to_measure
from mnistfast.training.trainer import Record, Trainer

CHANCE = 1.5  # times 1 / classes: a model below that after an epoch has learnt nothing


def carry_out(prepared: Prepared, options: RunOptions, command: str, screen: Screen) -> Outcome:
    """Takes a training to its end in a folder new or old.

    Args:
        prepared: what is trained.
        options: where to write.
        command: the command line, to be written down.
        screen: what to tell whom.

    Raises:
        CheckpointError: the folder to go on in is damaged, or another run's, or began with other files.
        DivergedError: the loss is no longer a finite number.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP came; the state is saved.
        StorageError: no space, or the folder is not ours any more.
        UsageError: the folder is not free.
    """
    if options.resume is None:
        model, seed = prepared.info.model, prepared.config.seed
        folder = RunFolder.create(options.out, model, seed, overwrite=options.overwrite)
    else:
        folder = RunFolder.reopen(options.resume)
    with folder:
        if options.resume is None:
            recorder = begin(prepared, folder, command, screen)
        else:
            recorder = resume(prepared, folder, screen)
        with prepared.trainer.chosen.in_force():
            learn(prepared, recorder, screen, tensorboard=options.tensorboard)
            return finish(recorder, prepared.trainer, prepared.dataset, prepared.config, prepared.compare)


def follow(prepared: Prepared, screen: Screen, *, resume: bool) -> None:
    """Trains in step with the first process, which has the run's folder. Raises as `carry_out`."""
    trainer = prepared.trainer
    if resume:
        trainer.load_state_dict(prepared.trainer.ranks.of_first(dict))
    else:
        choose(trainer, screen)
        _save(trainer, None)
    with trainer.chosen.in_force():
        learn(prepared, None, screen)


def begin(prepared: Prepared, folder: RunFolder, command: str, screen: Screen) -> Recorder:
    """Takes a new folder into use and writes down what is about to happen; from here on the run can be resumed."""
    announce(prepared, folder, screen)
    dataset, config, trainer = prepared.dataset, prepared.config, prepared.trainer
    choose(trainer, screen)
    data = {"name": dataset.name, "source": dataset.source, "hashes": dict(prepared.hashes)}
    noted = _machine(prepared) | {"data": data, "command": command}
    recorder = begin_recording(
        folder, prepared.info, noted, settled(config), config.to_yaml(), trainer.state_dict(), _judged(trainer)
    )
    trainer.last_good = recorder.last_good
    return recorder


def resume(prepared: Prepared, folder: RunFolder, screen: Screen) -> Recorder:
    """Continues from the folder's state; what is refused here leaves the folder as it was.

    Raises:
        CheckpointError: the state is missing or damaged, or belongs to other files.
    """
    trainer = prepared.trainer
    noted = environment_of(folder)
    _check_files(prepared, folder, noted["data"])
    recorder, state = take_up(folder, prepared.info, noted["run"], settled(prepared.config))
    shared = prepared.trainer.ranks.of_first(lambda: state)
    with decoding(folder / STATE, fix="train anew with another --out"):
        trainer.load_state_dict(shared)
    check_metrics(folder, trainer.step, trainer.step // trainer.plan.steps_per_epoch)
    screen.say(f"resumed {folder.path} after step {trainer.step}")
    announce(prepared, folder, screen)
    now = _machine(prepared)
    changed = [f"{key} {noted[key]!s:.100} is now {now[key]}" for key in now if noted.get(key, now[key]) != now[key]]
    if changed:
        screen.warn(f"bits may differ from an uninterrupted run: {'; '.join(changed)}")
    folder.cut_metrics(trainer.step)
    return recorder


def _check_files(prepared: Prepared, folder: RunFolder, data: Mapping[str, Any]) -> None:
    """Raises CheckpointError unless the files are those that the run began with, as it wrote down in `data`."""
    if prepared.weights and data["hashes"].get("source") != prepared.hashes["source"]:
        raise CheckpointError(
            f"{folder.path} began from other weights than those of {prepared.weights}",
            "The file that it began from had another hash",
            "--from with the run's own source",
        )
    if data["hashes"] != prepared.hashes:
        raise CheckpointError(
            f"{folder.path} was trained on other images than those in {prepared.dataset.source}",
            f"It was trained on {data.get('source')}, whose files have other hashes",
            "--data with the run's own images",
        )


def announce(prepared: Prepared, folder: RunFolder, screen: Screen) -> None:
    """Takes the folder into use and says what is about to be done."""
    folder.start()
    screen.log = folder.log
    trainer, epochs, world = prepared.trainer, prepared.trainer.plan.epochs, prepared.trainer.ranks.world
    processes = f", {world} processes" if world > 1 else ""
    held = f"{len(trainer.val):,} held out" if trainer.val else "none held out (the last epoch counts as the best)"
    screen.say(
        f"{prepared.info.model} on {prepared.dataset.name}: {len(trainer.train):,} training images, {held}; "
        f"{epochs} epoch{'s' * (epochs > 1)} on {trainer.device} ({prepared.config.threads} CPU threads{processes}); "
        f"writing to {folder.path}"
    )
    for remark in prepared.remarks:
        (screen.warn if remark.warning else screen.say)(remark.text)


def choose(trainer: Trainer, screen: Screen) -> None:
    """Measures before the first step by which plans it is fastest, where that is asked for, and says so."""
    seconds = seconds_to_measure(
        trainer.config, trainer.device, trainer.plan.steps, replayed=trainer.launcher.to_replay
    )
    if seconds:
        screen.say(f"measuring for at most {seconds:.0f} s which plans of the fused layers are fastest")
        trainer.choose(seconds)
        screen.say(f"plans of fused layers: {trainer.chosen.words}")


def learn(prepared: Prepared, recorder: Recorder | None, screen: Screen, *, tensorboard: bool = False) -> None:
    """Trains to the end and saves after every epoch, where this process is the one that saves.

    Raises:
        DivergedError: the loss is no longer a finite number.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP came; the state is saved.
    """
    trainer, ranks = prepared.trainer, prepared.trainer.ranks
    scalars = ScalarWriter(recorder.folder.path, trainer.step) if recorder and tensorboard else None
    epochs, images = trainer.plan.epochs, len(trainer.train)
    with StopRequest() as stop:
        trainer.prepare()
        if trainer.launcher.sizes or trainer.launcher.obstacle:
            screen.say(f"steps are {trainer.launcher.words}")
        with screen.progress(epochs, images, trainer.images_seen) as progress:
            for record in trainer.run():
                progress.step(trainer.images_seen, *trainer.recent)
                if record:
                    _save(trainer, recorder, record)
                    progress.epoch(record)
                    if scalars:
                        scalars.add(record)
                    if ranks.first:
                        _warn_of_chance(trainer, record, screen)
                if ranks.any(stop.signum is not None):
                    _save(trainer, recorder)
                    raise _stopped(stop.signum or signal.SIGTERM, trainer.step, prepared.command, recorder)
    if trainer.step < trainer.plan.steps:
        screen.say(f"stopped early: no better epoch for {trainer.stale_epochs}")


def _save(trainer: Trainer, recorder: Recorder | None, record: Record | None = None) -> None:
    """Saves a training; of several processes each takes part in gathering the state, the one with a recorder writes."""
    state = trainer.state_dict()
    if recorder:
        recorder.save(state, _judged(trainer), record)
        trainer.last_good = recorder.last_good


def _judged(trainer: Trainer) -> dict[str, Any]:
    weights: dict[str, Any] = trainer.judged.state_dict()
    return weights


def _stopped(signum: int, step: int, command: str, recorder: Recorder | None) -> Interrupted:
    saved = ""
    if recorder:
        folder = recorder.folder
        saved = f"; saved {folder / LAST}. Continue: mnistfast {command} --resume {folder.path}"
    return Interrupted(signum, f"stopped at step {step}{saved}")


def _warn_of_chance(trainer: Trainer, record: Record, screen: Screen) -> None:
    accuracy: float = record["val_accuracy" if trainer.val else "accuracy"]
    if record["epoch"] == 1 and accuracy < CHANCE / trainer.model.classes:
        screen.warn(f"accuracy {percent(accuracy)} after 1 epoch: labels shuffled, or --lr too high?")


def _machine(prepared: Prepared) -> dict[str, Any]:
    """Returns what the bits of the run depend on besides its options."""
    trainer = prepared.trainer
    steps = {"steps": "replayed" if trainer.launcher.to_replay else "called"}
    return environment(trainer.device, prepared.config.threads or 0, trainer.ranks.world) | steps
