"""Scoring a checkpoint on a test set, and writing down what came out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnistfast.data.datasets import Dataset, Split
from mnistfast.data.loader import DeviceData
from mnistfast.data.sources import load
from mnistfast.devices import choose_device, use_threads
from mnistfast.errors import CheckpointError, DataError, UsageError
from mnistfast.files.atomic import make_folder, write_atomic, write_json
from mnistfast.models.zoo import Classifier, check_images
from mnistfast.options.commands import EvaluateOptions
from mnistfast.report import metrics, plots
from mnistfast.results.evaluation_folder import evaluation_folder
from mnistfast.runs.checkpoint import CheckpointInfo, find_checkpoint, load_checkpoint
from mnistfast.runs.run_folder import data_of_run
from mnistfast.training.inference import predict


def evaluate(checkpoints: Sequence[str], options: EvaluateOptions) -> tuple[dict[str, Any], list[Path]]:
    """Scores checkpoints on the test images of the data and writes figures and pictures.

    Several answer as an ensemble: the mean of their calibrated probabilities.

    Args:
        checkpoints: runs' folders or checkpoints, at least one; the first one's run says what the data are.
        options: data, device, where to write.

    Returns:
        The scores (`report.metrics.score`; which checkpoints and images they belong to; `alone`, the accuracy of each
        checkpoint) and the files written.

    Raises:
        CheckpointError: missing, damaged or foreign checkpoint, or checkpoints of different classes.
        DataError: missing or damaged data, or images or labels that a model cannot take.
        MnistfastError: device or storage errors.
    """
    use_threads(options.threads)
    device = choose_device(options.device)
    paths = [find_checkpoint(checkpoint) for checkpoint in checkpoints]
    loaded = [load_checkpoint(path, device, options.head) for path in paths]
    classes = loaded[0][1].classes
    for path, (_, info) in zip(paths, loaded, strict=True):
        if info.classes != classes:
            why = f"It answers {', '.join(info.classes)}; {paths[0]} answers {', '.join(classes)}"
            raise CheckpointError(f"{path} cannot be averaged with {paths[0]}", why)
    of_run = data_of_run(paths[0].parent)
    if options.head and options.data is None:
        raise UsageError(f"--head {options.head} answers an earlier task", "Its data are not known", "--data NAME|PATH")
    dataset = load(
        options.data or of_run.get("data"),
        offline=options.offline,
        classes=options.classes or (of_run.get("classes") if options.data is None else None),
        resize=options.resize or of_run.get("resize"),
        gray=options.gray or of_run.get("gray", False),
    )
    test = in_classes(dataset, classes)
    notice = dataset.notice
    if not set(dataset.classes) <= set(classes):
        names = [", ".join(one[:5]) + ", ..." * (len(one) > 5) for one in (dataset.classes, classes)]
        notice += f" The classes of {dataset.name} ({names[0]}) stand for the model's ({names[1]}) by number."
    answers = [
        answer(model, info, test, dataset.name, device, options.batch_size, tta=options.tta) for model, info in loaded
    ]
    labels = answers[0][1]
    if len(answers) == 1:
        logits, temperature = answers[0][0], loaded[0][1].temperature
    else:
        calibrated = [
            logits.double() / info.temperature for (logits, _), (_, info) in zip(answers, loaded, strict=True)
        ]
        logits, temperature = mean_of(calibrated), 1.0
    scores: dict[str, Any] = {
        "checkpoints": [str(path) for path in paths],
        "data": dataset.name,
        "source": dataset.source,
        "notice": notice.strip(),
        "tta": options.tta,
        "alone": [(logits.argmax(1) == labels).double().mean().item() for logits, _ in answers],
    } | metrics.score(logits, labels, classes, temperature)
    folder = make_folder(Path(options.out) if options.out else evaluation_folder(paths, dataset.name, options, of_run))
    files = {name: folder / name for name in ("evaluate.json", "confusion.png", "errors.png")}
    write_json(files["evaluate.json"], scores)
    write_atomic(files["confusion.png"], plots.confusion(scores["confusion"], classes))
    write_atomic(files["errors.png"], plots.errors(scores["worst_errors"], test.images))
    return scores, list(files.values())


def mean_of(logits: Sequence[Tensor]) -> Tensor:
    """Returns logits (N, classes) of the mean of the probabilities that the `logits` of several models stand for."""
    return torch.stack([each.log_softmax(1) for each in logits]).logsumexp(0) - math.log(len(logits))


def answer(
    model: Classifier,
    info: CheckpointInfo,
    test: Split,
    source: str,
    device: torch.device,
    batch_size: int | None = None,
    head: int = 0,
    tta: int = 0,
) -> tuple[Tensor, Tensor]:
    """Returns `predict` of a model on `test`, or the mean of its calibrated probabilities over several looks.

    Args:
        model: what answers.
        info: normalisation, and the classes of the head that answers.
        test: images and labels.
        source: the name of their data set, for messages.
        device: where the model is.
        batch_size, head: of `predict`.
        tta: the model looks at each image in its place and moved by up to this many pixels down and across.

    Raises:
        DataError: images or labels that the model cannot take.
    """
    check_images(model, test.images.shape[1:], source)
    unknown = test.labels >= len(info.classes)
    if unknown.any():
        index = int(unknown.argmax())
        what = f"{source}: label {test.labels[index]} at index {index}"
        raise DataError(what, f"The model has {len(info.classes)} classes", "--data with the classes of the model")
    looks = []
    for images in _moved(test.images, tta):
        data = DeviceData(Split(images, test.labels), device, info.mean, info.std)
        logits, labels = predict(model, data, batch_size, head)
        looks.append(logits)
    if len(looks) > 1:  # so that the mean is of calibrated probabilities, and the temperature still fits
        logits = mean_of([look.double() / info.temperature for look in looks]) * info.temperature
    return logits, labels


def _moved(images: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Yields `images` (N, C, H, W) moved by each of -most..most pixels both ways; what comes in repeats the border."""
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (most, most), (most, most)), mode="edge")
    for y in range(2 * most + 1):
        for x in range(2 * most + 1):
            yield np.ascontiguousarray(padded[:, :, y : y + height, x : x + width])


def score(
    model: Classifier, info: CheckpointInfo, test: Split, source: str, device: torch.device, head: int = 0
) -> dict[str, Any]:
    """Returns `report.metrics.score` of a model on `test`, with the temperature of `info`. See `answer`."""
    return metrics.score(*answer(model, info, test, source, device, head=head), info.classes, info.temperature)


def in_classes(dataset: Dataset, classes: tuple[str, ...]) -> Split:
    """Returns the test images with the labels that a model of `classes` gives; a set may lack some of its classes."""
    if dataset.classes == classes or not set(dataset.classes) <= set(classes):
        return dataset.test  # with other names, the labels have to fit by number
    numbers = np.array([classes.index(name) for name in dataset.classes])
    return Split(dataset.test.images, numbers[dataset.test.labels])
