"""How good a fine-tuned model was at both tasks before it learnt, and is afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mnistfast.data.datasets import Dataset
from mnistfast.files.atomic import write_json
from mnistfast.models.adapters import FineTuning, adapter, merge, merged
from mnistfast.options.finetuning import FinetuneConfig
from mnistfast.results.evaluation import score
from mnistfast.runs.checkpoint import ADAPTER, CheckpointInfo, save_checkpoint
from mnistfast.runs.recorder import Recorder
from mnistfast.runs.run_folder import FINETUNE
from mnistfast.tasks.source import Start
from mnistfast.training.trainer import Trainer


@dataclass(frozen=True)
class Comparison:
    """What a fine-tuning is compared by.

    Attributes:
        start: makes the model anew as it was.
        dataset: the new task.
        config: how it was learnt.
        trainer: that learns it.
        tuning: what of the model learns.
        learning: the names of those parameters, while the model has them.
        left_out: how many training images that are in the source's test set too, and so are not learnt from.
        embedding_seconds: what computing a frozen body's features took.
    """

    start: Start
    dataset: Dataset
    config: FinetuneConfig
    trainer: Trainer
    tuning: FineTuning
    learning: list[str]
    left_out: int
    embedding_seconds: float

    @property
    def seconds(self) -> float:
        """Time spent training, the features of a frozen body included."""
        return self.trainer.seconds + self.embedding_seconds

    def accuracies(self, info: CheckpointInfo) -> tuple[float, float | None]:
        """Takes the best weights and returns the accuracy at the new task and at the old one, without writing."""
        trainer = self.trainer
        merge(trainer.model)
        trainer.model.load_state_dict(merged(trainer.best_weights))
        new = score(trainer.model, info, self.dataset.test, self.dataset.name, trainer.device)
        old = self.start.source.old_scores(trainer.model, self.start.old_head, trainer.device)
        return new["accuracy"], old["accuracy"] if old else None

    def write(self, recorder: Recorder, info: CheckpointInfo, scores: Mapping[str, Any]) -> dict[str, Any]:
        """Writes down accuracies before and after, and of a method that has one the adapter; returns the former.

        Args:
            recorder: of the run.
            info: the header of the finished model, which the trainer has.
            scores: its scores at the new task.

        Raises:
            StorageError: no space, or the folder is not ours any more.
        """
        folder, trainer, source = recorder.folder, self.trainer, self.start.source
        torch.manual_seed(self.config.seed)
        untouched = source.make()[0].to(trainer.device)
        old_before = source.old_scores(untouched, 0, trainer.device)
        torch.manual_seed(self.config.seed)
        begun = self.start.make()[0].to(trainer.device)
        new_before = score(begun, info, self.dataset.test, self.dataset.name, trainer.device)
        old_after = source.old_scores(trainer.model, self.start.old_head, trainer.device)
        comparison = {
            "source": source.words,
            "method": self.config.method,
            "new": {"before": _brief(new_before), "after": _brief(scores)},
            "old": old_before and {"before": _brief(old_before), "after": old_after and _brief(old_after)},
            "left_out": self.left_out,
            "trained_parameters": self.tuning.trained,
            "parameters": sum(weight.numel() for weight in trainer.model.parameters()),
            "seconds": round(self.seconds, 3),
        }
        write_json(folder / FINETUNE, comparison, folder.write)
        if self.config.how[0].adapter:
            learnt = adapter(trainer.best_weights, self.learning)
            save_checkpoint(folder / ADAPTER, learnt, info, source.md5, folder.write)
        return comparison


def _brief(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {name: scores[name] for name in ("accuracy", "n", "interval")}
