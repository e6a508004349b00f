"""Scoring a checkpoint on a test set, and writing down what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnistfast.config import EvaluateOptions
from mnistfast.data.datasets import Dataset, Split, load
from mnistfast.data.loader import DeviceData
from mnistfast.engine.checkpoint import CheckpointInfo, find_checkpoint, load_checkpoint
from mnistfast.engine.devices import choose_device, use_threads
from mnistfast.engine.files import make_folder, write_atomic, write_json
from mnistfast.engine.run_folder import data_of_run
from mnistfast.engine.trainer import predict
from mnistfast.errors import DataError, UsageError
from mnistfast.models.zoo import Classifier, check_images
from mnistfast.report import metrics, plots


def evaluate(checkpoint: str, options: EvaluateOptions) -> tuple[dict[str, Any], list[Path]]:
    """Scores `checkpoint` on the test images of the data and writes figures and pictures.

    Args:
        checkpoint: a run's folder or a checkpoint.
        options: data, device, where to write.

    Returns:
        The scores (`report.metrics.score`, and which checkpoint and images they belong to) and the files written.

    Raises:
        CheckpointError: missing, damaged or foreign checkpoint.
        DataError: missing or damaged data, or images or labels that the model cannot take.
        MnistfastError: device or storage errors.
    """
    use_threads(options.threads)
    device = choose_device(options.device)
    path = find_checkpoint(checkpoint)
    model, info = load_checkpoint(path, device, options.head)
    of_run = data_of_run(path.parent)
    if options.head and options.data is None:
        raise UsageError(f"--head {options.head} answers an earlier task", "Its data are not known", "--data NAME|PATH")
    dataset = load(
        options.data or of_run.get("data"),
        offline=options.offline,
        classes=options.classes or (of_run.get("classes") if options.data is None else None),
        resize=options.resize or of_run.get("resize"),
        gray=options.gray or of_run.get("gray", False),
    )
    test = in_classes(dataset, info.classes)
    scores = score(model, info, test, dataset.name, device, options.batch_size)
    origin = {"checkpoint": str(path), "data": dataset.name, "source": dataset.source, "notice": dataset.notice}
    scores = origin | scores
    folder = make_folder(Path(options.out) if options.out else path.parent / f"evaluate-{dataset.name}")
    files = {name: folder / name for name in ("evaluate.json", "confusion.png", "errors.png")}
    write_json(files["evaluate.json"], scores)
    write_atomic(files["confusion.png"], plots.confusion(scores["confusion"], info.classes))
    write_atomic(files["errors.png"], plots.errors(scores["worst_errors"], test.images))
    return scores, list(files.values())


def score(
    model: Classifier,
    info: CheckpointInfo,
    test: Split,
    source: str,
    device: torch.device,
    batch_size: int | None = None,
    head: int = 0,
) -> dict[str, Any]:
    """Returns `report.metrics.score` of a model on `test`.

    Args:
        model: what answers.
        info: normalisation, and the classes and the temperature of the head that answers.
        test: images and labels.
        source: the name of their data set, for messages.
        device: where the model is.
        batch_size, head: of `predict`.

    Raises:
        DataError: images or labels that the model cannot take.
    """
    check_images(model, test.images.shape[1:], source)
    unknown = test.labels >= len(info.classes)
    if unknown.any():
        index = int(unknown.argmax())
        what = f"{source}: label {test.labels[index]} at index {index}"
        raise DataError(what, f"The model has {len(info.classes)} classes", "--data with the classes of the model")
    data = DeviceData(test, device, info.mean, info.std)
    return metrics.score(*predict(model, data, batch_size, head), info.classes, info.temperature)


def in_classes(dataset: Dataset, classes: tuple[str, ...]) -> Split:
    """Returns the test images with the labels that a model of `classes` gives; a set may lack some of its classes."""
    if dataset.classes == classes or not set(dataset.classes) <= set(classes):
        return dataset.test  # with other names, the labels have to fit by number
    numbers = np.array([classes.index(name) for name in dataset.classes])
    return Split(dataset.test.images, numbers[dataset.test.labels])
