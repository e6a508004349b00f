"""`python -m mnistfast.evaluate RUN`: score a run or a checkpoint on a test set."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnistfast import cli
from mnistfast.config import EvaluateOptions, Parser, pick
from mnistfast.errors import DataError, ThresholdError
from mnistfast.report.page import accuracy_line, class_lines, percent

SCORES, CONFUSION, ERRORS = "evaluate.json", "confusion.png", "errors.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return cli.run(_evaluate, argv)


def _evaluate(argv: Sequence[str]) -> int:
    description = "Score a run or a checkpoint on a test set."
    parser = Parser("mnistfast evaluate", description, EvaluateOptions)
    parser.add_argument("checkpoint", metavar="RUN|CKPT", help="a run's folder (its best weights) or a checkpoint")
    given = parser.given(argv)
    options = pick(EvaluateOptions, given)
    scores, folder = evaluate(given["checkpoint"], options)
    if options.json:
        print(json.dumps(scores))
    elif not options.quiet:
        print("\n".join(_summary(scores, folder)))
    if options.min_accuracy is not None and scores["accuracy"] < options.min_accuracy:
        raise ThresholdError(
            f"accuracy {percent(scores['accuracy'])} < {percent(options.min_accuracy)}", "--min-accuracy asks for more"
        )
    return 0


def evaluate(checkpoint: str, options: EvaluateOptions) -> tuple[dict[str, Any], Path]:
    """Scores `checkpoint` on the test images of the data and writes figures and pictures.

    Args:
        checkpoint: a run's folder or a checkpoint.
        options: data, device, where to write.

    Returns:
        The scores (`report.metrics.score`, and which checkpoint and images they belong to) and the folder written.

    Raises:
        CheckpointError: missing, damaged or foreign checkpoint.
        DataError: missing or damaged data, or images or labels that the model cannot take.
        MnistfastError: device or storage errors.
    """
    import torch

    from mnistfast.data.datasets import load
    from mnistfast.data.loader import DeviceData
    from mnistfast.engine.checkpoint import find_checkpoint, load_checkpoint
    from mnistfast.engine.devices import choose_device, use_threads
    from mnistfast.engine.files import make_folder, write_atomic, write_json
    from mnistfast.engine.run_folder import data_of_run
    from mnistfast.engine.trainer import predict
    from mnistfast.models.zoo import check_images
    from mnistfast.report import metrics, plots

    use_threads(options.threads)
    device = choose_device(options.device)
    path = find_checkpoint(checkpoint)
    model, info = load_checkpoint(path, device)
    dataset = load(options.data or data_of_run(path.parent), offline=options.offline)
    test = dataset.test
    check_images(model, test.images.shape[1:], dataset.name)
    if test.labels.max() >= len(info.classes):
        index = int((test.labels >= len(info.classes)).argmax())
        raise DataError(
            f"{dataset.name}: label {test.labels[index]} at index {index}; the model has {len(info.classes)} classes"
        )
    logits = predict(model, DeviceData(test, device, info.mean, info.std), options.batch_size)
    scores = metrics.score(logits, torch.from_numpy(test.labels), info.classes, info.temperature)
    scores = {
        "checkpoint": str(path),
        "data": dataset.name,
        "source": dataset.source,
        "notice": dataset.notice,
    } | scores
    folder = make_folder(Path(options.out) if options.out else path.parent / f"evaluate-{dataset.name}")
    write_json(folder / SCORES, scores)
    write_atomic(folder / CONFUSION, plots.confusion(scores["confusion"], info.classes))
    write_atomic(folder / ERRORS, plots.errors(scores["worst_errors"], test.images))
    return scores, folder


def _summary(scores: dict[str, Any], folder: Path) -> list[str]:
    calibrated, raw = (
        f"negative log-likelihood {scores[f'nll{suffix}']:.4f}, calibration error "
        f"{percent(scores[f'calibration_error{suffix}'])}"
        for suffix in ("", "_uncalibrated")
    )
    return [
        *([scores["notice"]] if scores["notice"] else []),
        f"accuracy      {accuracy_line(scores)} on the test images of {scores['data']} ({scores['source']})",
        f"calibrated    {calibrated} (temperature {scores['temperature']:.3f})",
        f"uncalibrated  {raw}",
        *class_lines(scores),
        f"written       {folder}: {SCORES}, {CONFUSION}, {ERRORS}",
    ]


if __name__ == "__main__":
    sys.exit(main())
