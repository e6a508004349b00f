"""The end of a run: its two checkpoints are calibrated, the best one is scored, and what came out is written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mnistfast.data.datasets import Dataset
from mnistfast.files.atomic import write_json
from mnistfast.models.adapters import merge, merged
from mnistfast.options.learning import LearnConfig
from mnistfast.report import metrics, page, plots
from mnistfast.report.comparison import comparison_rows
from mnistfast.results.evaluation import score
from mnistfast.runs import run_folder
from mnistfast.runs.checkpoint import BEST, LAST, CheckpointInfo
from mnistfast.runs.recorder import Recorder, environment_of
from mnistfast.training.inference import predict
from mnistfast.training.trainer import Record, Trainer

# Writes down what else there is to say of a finished model, given its header and its scores, and returns it.
Compare = Callable[[Recorder, CheckpointInfo, Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        folder: the run's folder.
        scores: of `report.metrics.score` on the test images, with the best epoch's weights.
        best: the record of the best epoch.
        test: which images were scored, in words.
        seconds: time spent training.
        comparison: of a fine-tuned model, how good it was before and is after; else empty.
    """

    folder: Path
    scores: dict[str, Any]
    best: Record
    test: str
    seconds: float
    comparison: dict[str, Any]


def finish(
    recorder: Recorder, trainer: Trainer, dataset: Dataset, config: LearnConfig, compare: Compare | None
) -> Outcome:
    """Calibrates the two checkpoints, scores the best one on the test images and writes the report.

    Args:
        recorder: of the run.
        trainer: finished. Its model becomes the plain one with the best epoch's weights.
        dataset: whose test images are scored.
        config: what was learnt, for the report.
        compare: says what else there is to say.

    Raises:
        DataError: images or labels that the model cannot take.
        StorageError: no space, or the folder is not ours any more.
    """
    folder, test = recorder.folder, dataset.test
    assert trainer.best is not None  # an epoch has ended
    assert trainer.last_record is not None
    merge(trainer.model)
    _calibrate(recorder, LAST, trainer, trainer.judged.state_dict(), trainer.last_record)
    info = _calibrate(recorder, BEST, trainer, trainer.best_weights, trainer.best)
    scores = score(trainer.model, info, test, dataset.name, trainer.device)
    write_json(folder / run_folder.TEST, scores, folder.write)
    words = tested(dataset)
    folder.log(f"test accuracy {page.accuracy_line(scores)} on {words}")
    comparison = compare(recorder, info, scores) if compare else {}
    outcome = Outcome(folder.path, scores, trainer.best, words, trainer.seconds, comparison)
    folder.write(folder / run_folder.CURVES, plots.curves(folder.metrics()))
    folder.write(folder / run_folder.CONFUSION, plots.confusion(scores["confusion"], info.classes))
    folder.write(folder / run_folder.ERRORS, plots.errors(scores["worst_errors"], test.images))
    told = f"{words}. {dataset.notice}".removesuffix(". ")
    facts = _facts(outcome, info.model, trainer, dataset.name, config)
    command = environment_of(folder)["command"]
    text = page.report(folder.path.name, scores, told, facts, asdict(config), command)
    folder.write(folder / run_folder.REPORT, text)
    return outcome


def tested(dataset: Dataset) -> str:
    """Returns in words which images are scored."""
    return f"the {len(dataset.test.labels):,} test images of {dataset.name} ({dataset.source})"


def _calibrate(
    recorder: Recorder, name: str, trainer: Trainer, weights: Mapping[str, Tensor], record: Record
) -> CheckpointInfo:
    """Writes the checkpoint `name` anew, with the temperature that fits the validation images; returns its header."""
    weights = merged(weights)
    trainer.model.load_state_dict(weights)
    temperature = 1.0 if trainer.val is None else metrics.fit_temperature(*predict(trainer.model, trainer.val))
    return recorder.export(name, weights, record, temperature)


def _facts(outcome: Outcome, model: str, trainer: Trainer, data: str, config: LearnConfig) -> dict[str, object]:
    """Returns the rows of the report's first table."""
    parameters = sum(weight.numel() for weight in trainer.model.parameters())
    return {
        "model": f"{model}, {parameters:,} parameters",
        "training images": f"{len(trainer.train):,} of {data}",
        "validation images": f"{len(trainer.val) if trainer.val else 0:,}",
        "best epoch": f"{outcome.best['epoch']} of {trainer.plan.epochs}",
        "steps": trainer.launcher.words,
        "plans of fused layers": trainer.chosen.words or "by the rule",
        "training time": f"{outcome.seconds:.1f} s on {trainer.device}, {config.threads} CPU threads",
        **dict(comparison_rows(outcome.comparison) if outcome.comparison else []),
    }
