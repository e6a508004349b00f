"""Fine-tuning: a trained model made good at a new task, and what that did to it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnistfast.data.check import content_keys
from mnistfast.data.datasets import Dataset, Split
from mnistfast.data.loader import DeviceData
from mnistfast.data.sampling import draw_part, draw_shots
from mnistfast.data.sources import load
from mnistfast.devices import choose_device, use_deterministic
from mnistfast.errors import CheckpointError, DataError, UsageError
from mnistfast.files.atomic import write_json
from mnistfast.models.adapters import adapter, choose, merge, merged, with_adapter
from mnistfast.models.zoo import Classifier, build
from mnistfast.options.commands import RunOptions
from mnistfast.options.finetuning import FinetuneConfig
from mnistfast.report import metrics, page
from mnistfast.report.screen import Screen
from mnistfast.report.tensorboard import check_installed
from mnistfast.results.evaluation import in_classes, score
from mnistfast.runs import run_folder
from mnistfast.runs.checkpoint import (
    ADAPTER_OF,
    CheckpointInfo,
    OldHead,
    find_checkpoint,
    load_checkpoint,
    read_tensors,
    save_checkpoint,
)
from mnistfast.runs.run_folder import RunFolder
from mnistfast.tasks.run import Outcome, Run, carry_out
from mnistfast.tasks.source import Source, md5_of, open_source
from mnistfast.training.ahead import Replay
from mnistfast.training.trainer import Trainer, embed


class FinetuneRun(Run[FinetuneConfig]):
    """A run that begins with a trained model.

    Attributes:
        left_out: how many training images are in the source's test set too, and so are not learnt from.
        tuning: what learns.
        old_head: which head answers the source's task, None when there is none any more.
    """

    command = "finetune"

    def __init__(
        self, config: FinetuneConfig, dataset: Dataset, device: torch.device, screen: Screen, source: Source
    ) -> None:
        self.source = source
        self.embedding_seconds = 0.0
        keeps = config.how[0] != "scratch" and not config.drop_old_head and source.info.classes
        self.old_head = 0 if dataset.classes == source.info.classes else 1 if keeps else None
        super().__init__(config, dataset, device, screen)

    def _usable(self, config: FinetuneConfig) -> np.ndarray:
        """Returns the indices of the training images less those of the source's test set, or a few of each class."""
        known = self.source.old.test if self.source.old else None
        train = self.dataset.train
        seen = _among(train, [known]) if known else np.zeros(len(train.labels), bool)
        self.left_out = int(seen.sum())
        if self.left_out == len(seen):
            why = "What a model was tested with is not for learning"
            raise DataError(f"all training images of {self.dataset.name} are in the source's test set", why)
        usable = np.flatnonzero(~seen)
        if config.shots:
            return usable[draw_shots(train.labels[usable], config.shots, config.seed)]
        if config.limit is not None and config.limit < len(usable):
            return usable[draw_part(train.labels[usable], config.limit, config.seed)]
        return usable

    def _start(self, images: np.ndarray) -> tuple[Classifier, CheckpointInfo]:
        return self._begin_with()

    def _begin_with(self) -> tuple[Classifier, CheckpointInfo]:
        """Returns the model before it learns anything, made anew; only its new weights hang on torch's generator."""
        model, info = self.source.make()
        if self.config.how[0] == "scratch":
            fresh = {name: value for name, value in info.arguments.items() if name != "old_classes"}
            model, info = build(info.model, **fresh), replace(info, old_heads=())
        return model, adapt(model, info, self.dataset.classes, keep=self.old_head is not None)

    def _learnt_from(self, split: Split) -> DeviceData:
        """Returns images, or, when a frozen body would make the same of them in every epoch, what it makes of them."""
        data = self._on_device(split)
        if self.config.how[0] != "head" or self.config.augment != "none":
            return data
        started = time.perf_counter()
        embedded = embed(self.model, data)
        self.embedding_seconds += time.perf_counter() - started
        return embedded

    def _make_trainer(self, train: DeviceData, epochs: int) -> Trainer:
        config, (kind, count) = self.config, self.config.how
        late = [at for at in config.unfrozen_at if at > epochs]
        if late:
            raise UsageError(f"--unfreeze-at names epoch {late[0]}", f"There are {epochs}", "--epochs")
        replay = self._replay() if config.replay else None
        self.tuning = choose(
            self.model,
            kind,
            count,
            lr_mult=config.lr_mult,
            unfreeze_at=config.unfrozen_at,
            old_head=replay.head if replay else 0,
        )
        return Trainer(self.model, train, self.val, config, epochs, tuning=self.tuning, replay=replay)

    def _replay(self) -> Replay:
        old, share = self.source.old, self.config.replayed[1]
        assert old is not None  # see `open_source`
        assert self.old_head is not None  # see FinetuneConfig
        allowed = np.flatnonzero(~_among(old.train, [old.test, self.dataset.test]))
        labels = old.train.labels[allowed]
        count = round(share * len(labels))
        if not count:
            raise UsageError(f"--replay {self.config.replay}", f"That is none of {len(labels):,} images")
        chosen = allowed[draw_part(labels, count, self.config.seed)]
        return Replay(self._on_device(Split(old.train.images[chosen], old.train.labels[chosen])), self.old_head)

    @property
    def hashes(self) -> dict[str, str]:
        """Those of the new data, the source and the old data."""
        old = {f"old-{role}": md5 for role, md5 in self.source.old.hashes.items()} if self.source.old else {}
        return self.dataset.hashes | {"source": self.source.md5} | old

    def check_hashes(self, folder: RunFolder, data: Mapping[str, Any]) -> None:
        if data["hashes"].get("source") != self.source.md5:
            raise CheckpointError(
                f"{folder.path} began from other weights than those of {self.config.source}",
                "The file that it began from had another hash",
                "--from with the run's own source",
            )
        super().check_hashes(folder, data)

    def announce(self, folder: RunFolder) -> None:
        super().announce(folder)
        self.screen.say(f"from {self.source.words}; {self.config.method}: {self.tuning.trained:,} parameters learn")
        if self.source.notice:
            self.screen.warn(self.source.notice)
        if self.source.old:
            self.screen.say(f"left out {self.left_out:,} training images that are in the source's test set")
        if self.embedding_seconds:
            self.screen.say(f"the frozen body's features were computed once, in {self.embedding_seconds:.1f} s")

    def conclude(self) -> tuple[float, float | None]:
        """Takes the best weights and returns the accuracy at the new task and at the old one, without writing."""
        merge(self.model)
        self.model.load_state_dict(merged(self.trainer.best_weights))
        new = score(self.model, self.info, self.dataset.test, self.dataset.name, self.device)
        old = self._old_score(self.model, self.old_head)
        return new["accuracy"], old["accuracy"] if old else None

    def _old_score(self, model: Classifier, head: int | None) -> dict[str, Any] | None:
        """Returns the scores of a head of `model` on the source's test images; None where either is not there."""
        old, info = self.source.old, self.source.info
        if old is None or head is None:
            return None
        return score(model, info, in_classes(old, info.classes), old.name, self.device, head=head)

    def _compare(self, folder: RunFolder, info: CheckpointInfo, scores: dict[str, Any]) -> dict[str, Any]:
        """Returns accuracies before and after, and writes them and, of LoRA, the adapter down."""
        torch.manual_seed(self.config.seed)
        untouched = self.source.make()[0].to(self.device)
        old_before = self._old_score(untouched, 0)
        torch.manual_seed(self.config.seed)
        begun = self._begin_with()[0].to(self.device)
        new_before = score(begun, info, self.dataset.test, self.dataset.name, self.device)
        old_after = self._old_score(self.model, self.old_head)
        comparison = {
            "source": self.source.words,
            "method": self.config.method,
            "new": {"before": _brief(new_before), "after": _brief(scores)},
            "old": old_before and {"before": _brief(old_before), "after": old_after and _brief(old_after)},
            "left_out": self.left_out,
            "trained_parameters": self.tuning.trained,
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "seconds": round(self.trainer.seconds + self.embedding_seconds, 3),
        }
        write_json(folder / run_folder.FINETUNE, comparison, folder.write)
        if self.config.how[0] == "lora":
            save_checkpoint(folder / run_folder.ADAPTER, self._learnt, info, self.source.md5, folder.write)
        return comparison

    def finish(self, folder: RunFolder) -> Outcome:
        """Does what `Run.finish` does, having taken down what learnt before it becomes part of the weights."""
        self._learnt = adapter(self.trainer.best_weights, self.model, self.tuning)
        return super().finish(folder)

    def _facts(self, outcome: Outcome) -> dict[str, object]:
        return super()._facts(outcome) | dict(comparison_rows(outcome.comparison))


def _brief(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: scores[name] for name in ("accuracy", "n", "interval")}


def comparison_rows(comparison: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns what `FinetuneRun` says of before and after as titles and texts."""
    rows = [("fine-tuned from", f"{comparison['source']}, {comparison['method']}")]
    for task in ("new", "old"):
        if comparison[task]:
            before, after = (comparison[task][when] for when in ("before", "after"))
            then = page.accuracy_line(after) if after else "no head for it is left"
            rows.append((f"{task} accuracy", f"{page.percent(before['accuracy'])} before, {then} after"))
    if not comparison["old"]:
        rows.append(("old accuracy", "not known: there is no old task, or its data are not known (--old-data)"))
    share = f"{comparison['trained_parameters']:,} of {comparison['parameters']:,} parameters"
    return [*rows, ("learnt", f"{share} in {comparison['seconds']:.1f} s")]


def adapt(model: Classifier, info: CheckpointInfo, classes: tuple[str, ...], *, keep: bool) -> CheckpointInfo:
    """Makes `model` answer `classes`: with the head that it has, or a new one where they are others than its own.

    Args:
        model: changed in place.
        info: its header.
        classes: those wanted.
        keep: whether its own head, and older ones, stay beside the new one.

    Returns:
        The header that it has then.
    """
    old = info.old_heads
    if classes != info.classes:
        model.add_head(len(classes))
        old = (OldHead(info.classes, info.temperature), *old)
    if not keep:
        model.drop_old_heads()
        old = ()
    return replace(info, arguments=model.arguments, classes=classes, temperature=1.0, metrics={}, old_heads=old)


def _among(split: Split, others: list[Split]) -> np.ndarray:
    """Returns which images of `split`, bool (N,), are also in one of `others`, pixel by pixel."""
    known = {key for other in others for key in content_keys(other)}
    return np.array([key in known for key in content_keys(split)], bool)


@dataclass(frozen=True)
class Draws:
    """What several fine-tunings came to, which differ in their seeds.

    Attributes:
        folder: where draws.json is.
        new: the test accuracy of each.
        old: each one's accuracy at the source's task; empty where it is not known.
        test: which images were scored, in words.
        seconds: time spent training, of all.
    """

    folder: Path
    new: list[float]
    old: list[float]
    test: str
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Returns mean and 95 % interval of both, as plain data."""
        found: dict[str, Any] = {"repeats": len(self.new), "test": self.test, "seconds": round(self.seconds, 3)}
        for task, values in (("new", self.new), ("old", self.old)):
            if len(values) >= metrics.LEAST_VALUES:
                mean, interval = metrics.mean_interval(values)
                found[task] = {"mean": mean, "interval": list(interval)}
            elif values:
                found[task] = {"mean": sum(values) / len(values), "interval": None}
        return found


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
    device = choose_device(config.device)
    if options.tensorboard:
        check_installed()
    if config.deterministic:
        use_deterministic()
    if options.resume is None:
        run_folder.check_free(options.out, overwrite=options.overwrite)
    dataset = load(config.data, offline=options.offline, resize=config.resize, gray=config.gray, classes=config.classes)
    if dataset.notice:
        screen.say(dataset.notice)
    config, source = open_source(config, dataset, offline=options.offline)
    make = partial(FinetuneRun, dataset=dataset, device=device, screen=screen, source=source)
    return carry_out(make(config), options, command) if config.repeats == 1 else _repeat(make, config, options, command)


def _repeat(
    make: Callable[[FinetuneConfig], FinetuneRun], config: FinetuneConfig, options: RunOptions, command: str
) -> Draws:
    """Fine-tunes `config.repeats` times with rising seeds; what is done is on disk after each."""
    if options.resume is not None or options.tensorboard:
        raise UsageError("--repeats writes accuracies alone", "--resume and --tensorboard are for one run")
    run = make(config)
    done: list[tuple[float, float | None]] = []
    seconds = 0.0
    with RunFolder.create(options.out, run.info.model, config.seed, overwrite=options.overwrite) as folder:
        run.announce(folder)
        folder.write(folder / run_folder.CONFIG, run.config.to_yaml())
        test = f"the {len(run.dataset.test.labels):,} test images of {run.dataset.name} ({run.dataset.source})"
        for draw in range(config.repeats):
            run = make(replace(config, seed=config.seed + draw)) if draw else run
            for _ in run.trainer.run():
                pass
            done.append(run.conclude())
            seconds += run.trainer.seconds + run.embedding_seconds
            run.screen.say(f"draw {draw + 1}/{config.repeats}: test accuracy {page.percent(done[-1][0])}")
            old = [accuracy for _, accuracy in done if accuracy is not None]
            draws = Draws(folder.path, [accuracy for accuracy, _ in done], old, test, seconds)
            accuracies = {"command": command, "new": draws.new, "old": draws.old}
            write_json(folder / run_folder.DRAWS, draws.summary() | {"accuracies": accuracies}, folder.write)
    return draws


def merge_adapter(source: str, adapter_path: str, out: str, *, overwrite: bool) -> Path:
    """Writes the plain checkpoint that `source` and an adapter learnt from it come to.

    Args:
        source: the run or the checkpoint that the adapter was learnt from.
        adapter_path: the adapter.
        out: the file to write.
        overwrite: replace it where it is there.

    Returns:
        The file.

    Raises:
        CheckpointError: one of the files is missing or damaged, or they do not belong together.
        UsageError: `out` is there and `overwrite` is not set.
        StorageError: it cannot be written.
    """
    path, file = find_checkpoint(source), find_checkpoint(adapter_path)
    if Path(out).exists() and not overwrite:
        raise UsageError(f"{out} would be replaced", fix="--overwrite or another --out")
    header, learnt = read_tensors(file)
    if ADAPTER_OF not in header:
        raise CheckpointError(f"{file} is no adapter", fix="--merge takes the adapter.safetensors of a lora run")
    if header[ADAPTER_OF] != md5_of(path):
        raise CheckpointError(f"{file} was learnt from another checkpoint than {path}", fix="--from with that one")
    info = CheckpointInfo.from_header(header, file)
    model, of_source = load_checkpoint(path)
    adapt(model, of_source, info.classes, keep=bool(info.old_heads))
    try:
        state = with_adapter(model.state_dict(), learnt)
    except (KeyError, RuntimeError) as error:  # a name or a shape that the model does not have
        raise CheckpointError(f"{file} does not fit {path}: {error}", fix="learn it again") from error
    save_checkpoint(Path(out), state, info)
    load_checkpoint(out)
    return Path(out)
