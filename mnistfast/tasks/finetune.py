"""Fine-tuning: a trained model made good at a new task."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from convpool import choices
from mnistfast.data.check import content_keys
from mnistfast.data.datasets import Dataset, Split
from mnistfast.data.sampling import draw_part, draw_shots
from mnistfast.errors import DataError, UsageError
from mnistfast.models.adapters import choose, learning_names
from mnistfast.options.commands import RunOptions
from mnistfast.options.finetuning import FinetuneConfig
from mnistfast.report.screen import Screen
from mnistfast.results.finish import Outcome
from mnistfast.tasks.comparison import Comparison
from mnistfast.tasks.prepared import (
    Prepared,
    Remark,
    hold_out,
    limited,
    load_data,
    on_device,
    place,
    refuse_early,
    set_up,
)
from mnistfast.tasks.repeat import Draws, repeat
from mnistfast.tasks.run import carry_out
from mnistfast.tasks.source import Source, Start, open_source
from mnistfast.training.epoch import Replay
from mnistfast.training.inference import embed
from mnistfast.training.trainer import Trainer


@choices.use(None)  # a user's table, which may change, has no say in what a training begins with
def prepare(
    config: FinetuneConfig, dataset: Dataset, device: torch.device, source: Source
) -> tuple[Prepared, Comparison]:
    """Returns the fine-tuning of `source` on `dataset` by `config`, before its first step, and what it is judged by.

    Raises:
        DataError: the model does not take the images, or was tested with all of them.
        UsageError: what is asked for does not suit the images or the model.
    """
    config = set_up(config, dataset, device)
    usable, left_out = _usable(config, dataset, source.old)
    config, train, held = hold_out(dataset.train, usable, config)
    method, count = config.how
    torch.manual_seed(config.seed)
    start = Start(source, dataset.classes, fresh=method.fresh, keep=not config.drop_old_head)
    model, info = start.make()
    place(model, dataset, device)
    learnt = on_device(train, device, info)
    val = on_device(held, device, info) if held else None
    embedding_seconds = 0.0
    if method.frozen_body and config.augment == "none":  # it would make the same of an image in every epoch
        began = time.perf_counter()
        learnt, val = embed(model, learnt), embed(model, val) if val else None
        embedding_seconds = time.perf_counter() - began
    _check_unfreezing(config, config.planned_epochs(len(learnt)))
    replay = None
    if config.replay:
        assert start.old_head is not None  # see FinetuneConfig
        replay = Replay(on_device(_old_samples(config, source.old, dataset.test), device, info), start.old_head)
    old_head = replay.head if replay else 0
    tuning = choose(
        model, method.name, count, lr_mult=config.lr_mult, unfreeze_at=config.unfrozen_at, old_head=old_head
    )
    trainer = Trainer(model, learnt, val, config, tuning=tuning, replay=replay)
    learning = learning_names(model, tuning)
    comparison = Comparison(start, dataset, config, trainer, tuning, learning, left_out, embedding_seconds)
    hashes = dataset.hashes | {"source": source.md5} | _of_old(source.old)
    remarks, compare = tuple(_remarks(comparison)), comparison.write
    return Prepared("finetune", config, dataset, hashes, info, trainer, config.source, remarks, compare), comparison


def _usable(config: FinetuneConfig, dataset: Dataset, old: Dataset | None) -> tuple[np.ndarray, int]:
    """Returns the indices of the training images less those of the source's test set, or of a few of each class.

    Also how many were left out because they are in that set.
    """
    train = dataset.train
    seen = _among(train, [old.test]) if old else np.zeros(len(train.labels), bool)
    left_out = int(seen.sum())
    if left_out == len(seen):
        why = "What a model was tested with is not for learning"
        raise DataError(f"all training images of {dataset.name} are in the source's test set", why)
    usable = np.flatnonzero(~seen)
    if config.shots:
        return usable[draw_shots(train.labels[usable], config.shots, config.seed)], left_out
    return limited(train.labels, usable, config), left_out


def _check_unfreezing(config: FinetuneConfig, epochs: int) -> None:
    late = [at for at in config.unfrozen_at if at > epochs]
    if late:
        raise UsageError(f"--unfreeze-at names epoch {late[0]}", f"There are {epochs}", "--epochs")


def _old_samples(config: FinetuneConfig, old: Dataset | None, test: Split) -> Split:
    """Returns what is replayed of the source's training images: none of a test set, old or new."""
    assert old is not None  # see `open_source`
    allowed = np.flatnonzero(~_among(old.train, [old.test, test]))
    labels = old.train.labels[allowed]
    count = round(config.replayed[1] * len(labels))
    if not count:
        raise UsageError(f"--replay {config.replay}", f"That is none of {len(labels):,} images")
    chosen = allowed[draw_part(labels, count, config.seed)]
    return Split(old.train.images[chosen], old.train.labels[chosen])


def _among(split: Split, others: list[Split]) -> np.ndarray:
    """Returns which images of `split`, bool (N,), are also in one of `others`, pixel by pixel."""
    known = {key for other in others for key in content_keys(other)}
    return np.array([key in known for key in content_keys(split)], bool)


def _of_old(old: Dataset | None) -> dict[str, str]:
    return {f"old-{role}": md5 for role, md5 in old.hashes.items()} if old else {}


def _remarks(comparison: Comparison) -> Iterator[Remark]:
    """Yields what is to be said as a fine-tuning begins."""
    source = comparison.start.source
    learning = f"{comparison.tuning.trained:,} parameters learn"
    yield Remark(f"from {source.words}; {comparison.config.method}: {learning}")
    if source.notice:
        yield Remark(source.notice, warning=True)
    if source.old:
        yield Remark(f"left out {comparison.left_out:,} training images that are in the source's test set")
    if comparison.embedding_seconds:
        yield Remark(f"the frozen body's features were computed once, in {comparison.embedding_seconds:.1f} s")


def finetune(config: FinetuneConfig, options: RunOptions, command: str, screen: Screen) -> Outcome | Draws:
    """Fine-tunes a model, or goes on with it, and compares it with what it was.

    Args:
        config: what to fine-tune, and how; for a run that is resumed its own.
        options: where to write.
        command: the command line, to be written down.
        screen: what to tell whom.

    Returns:
        What came out; `Draws` when it was repeated.

    Raises:
        MnistfastError: any of its kinds; nothing is left half written.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("finetune works in one process", "torchrun started several", "leave torchrun out")
    device = refuse_early(config, options)
    dataset = load_data(config, offline=options.offline)
    if dataset.notice:
        screen.say(dataset.notice)
    config, source = open_source(config, dataset, offline=options.offline)
    make = partial(prepare, dataset=dataset, device=device, source=source)
    if config.repeats > 1:
        return repeat(make, config, options, command, screen)
    prepared, _ = make(config)
    return carry_out(prepared, options, command, screen)
