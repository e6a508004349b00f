"""What a fine-tuning begins with: a trained model or a backbone, and what it learnt from where that is known."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from convpool import choices
from mnistfast.data.datasets import Dataset, only
from mnistfast.data.sources import anywhere, load
from mnistfast.errors import DataError, StorageError
from mnistfast.models.zoo import Classifier, build
from mnistfast.options.finetuning import BACKBONES, FinetuneConfig
from mnistfast.results.evaluation import in_classes, score
from mnistfast.runs.checkpoint import CheckpointInfo, OldHead, find_checkpoint, load_checkpoint
from mnistfast.runs.run_folder import data_of_run
from mnistfast.tasks.pretrained import RANDOM, find_weights, load_weights


@dataclass(frozen=True)
class Source:
    """What is fine-tuned.

    Attributes:
        make: returns the model, fresh, on the CPU, and its header, which has no classes for a backbone.
        info: that header.
        words: where it comes from.
        md5: of the file with its weights, "" where there is none.
        old: the data that it was trained on, in its own classes; None where they are not known.
        notice: what the user should know, "" when there is nothing to say.
    """

    make: Callable[[], tuple[Classifier, CheckpointInfo]]
    info: CheckpointInfo
    words: str
    md5: str
    old: Dataset | None
    notice: str

    def old_scores(self, model: Classifier, head: int | None, device: torch.device) -> dict[str, Any] | None:
        """Returns the scores of a head of `model` on the source's test images; None where either is not there."""
        if self.old is None or head is None:
            return None
        test = in_classes(self.old, self.info.classes)
        return score(model, self.info, test, self.old.name, device, head=head)


@dataclass(frozen=True)
class Start:
    """A source made ready for a task.

    Attributes:
        source: what it was.
        classes: those of the task.
        fresh: whether its network begins anew, with random weights.
        keep: whether its own head, and older ones, stay beside a new one.
    """

    source: Source
    classes: tuple[str, ...]
    fresh: bool
    keep: bool

    @property
    def old_head(self) -> int | None:
        """Which head answers the source's task, None when there is none any more."""
        if self.classes == self.source.info.classes:
            return 0
        return 1 if self.keep and not self.fresh and self.source.info.classes else None

    def make(self) -> tuple[Classifier, CheckpointInfo]:
        """Returns the model before it learns anything, made anew; only its new weights hang on torch's generator."""
        model, info = self.source.make()
        if self.fresh:
            anew = {name: value for name, value in info.arguments.items() if name != "old_classes"}
            model, info = build(info.model, **anew), replace(info, old_heads=())
        return model, adapt(model, info, self.classes, keep=self.old_head is not None)


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


@choices.use(None)  # as what is prepared from it
def open_source(config: FinetuneConfig, dataset: Dataset, *, offline: bool) -> tuple[FinetuneConfig, Source]:
    """Finds what is to be fine-tuned, and the data that it was trained on.

    Returns:
        `config` with what was found in the place of what was asked for, and the source.

    Raises:
        CheckpointError, DataError, DeviceError, StorageError, UsageError: what is named is missing, damaged or unfit.
    """
    if config.source in BACKBONES:
        return _backbone(config, dataset, offline=offline)
    path = find_checkpoint(config.source).resolve()
    info = load_checkpoint(path)[1]
    old, notice = _old_data(config, path, info, offline=offline)
    config = replace(config, source=str(path), old_data=config.old_data and anywhere(config.old_data))
    words = f"{path} ({info.model}, classes {', '.join(info.classes)})"
    return config, Source(partial(load_checkpoint, path), info, words, md5_of(path), old, notice)


def _backbone(config: FinetuneConfig, dataset: Dataset, *, offline: bool) -> tuple[FinetuneConfig, Source]:
    name, size = config.source, dataset.train.images.shape[1:]
    weights, words = find_weights(name, config.weights, offline=offline)
    hidden = [config.hidden] if config.hidden else []
    plain = (0.0,) * size[0], (1.0,) * size[0]  # it normalises as its weights want it

    def make() -> tuple[Classifier, CheckpointInfo]:
        model = build(name, classes=1, size=size, side=config.side, hidden=hidden)
        if weights != RANDOM:
            load_weights(model, Path(weights))
        return model, CheckpointInfo(name, model.arguments, (), *plain, model.input_size)

    info = make()[1]  # which refuses unfit weights
    md5 = "" if weights == RANDOM else md5_of(Path(weights))
    return replace(config, weights=weights), Source(make, info, words, md5, None, "")


def _old_data(config: FinetuneConfig, path: Path, info: CheckpointInfo, *, offline: bool) -> tuple[Dataset | None, str]:
    """Returns the data that the checkpoint at `path` was trained on, and a notice where they cannot be had."""
    of_run = data_of_run(path.parent)
    named = config.old_data or config.replayed[0]
    spec = named or of_run.get("data")
    unknown = "no test images of its can be left out, and what it forgets is not measured; --old-data names them"
    if spec is None:
        return None, f"what {path} was trained on is not known: {unknown}"
    try:
        old = load(spec, offline=offline, resize=of_run.get("resize"), gray=of_run.get("gray", False))
    except (DataError, StorageError) as error:
        if named:
            raise
        return None, f"what {path} was trained on cannot be read ({error.what}): {unknown}"
    if set(info.classes) < set(old.classes):
        old = only(old, info.classes)
    if not set(old.classes) <= set(info.classes):
        what = f"{old.name} has the classes {', '.join(old.classes)}"
        raise DataError(what, f"{path} answers {', '.join(info.classes)}", "--old-data with what it was trained on")
    return old, ""


def md5_of(path: Path) -> str:
    """Returns the MD5 of the file at `path`, in hexadecimal: by it an adapter knows what it was learnt from."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
