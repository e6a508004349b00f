"""What a fine-tuning begins with: a trained model or a backbone, and the data that it learnt from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mnistfast.data.datasets import Dataset, only
from mnistfast.data.sources import anywhere, load
from mnistfast.errors import DataError, StorageError
from mnistfast.models.zoo import Classifier, build
from mnistfast.options.finetuning import BACKBONES, FinetuneConfig
from mnistfast.runs.checkpoint import CheckpointInfo, find_checkpoint, load_checkpoint
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
