"""A checkpoint that reads pictures."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from mnistfast.data.datasets import Split
from mnistfast.data.loader import DeviceData
from mnistfast.data.photo import View, prepare
from mnistfast.data.picture import MAX_BYTES
from mnistfast.devices import choose_device
from mnistfast.errors import DataError
from mnistfast.files.regular import open_regular
from mnistfast.runs.checkpoint import find_checkpoint, load_checkpoint, newest_checkpoint
from mnistfast.training.inference import predict

STDIN = "-"
BATCH = 256  # pictures read before the model is asked: their views take 200 KB


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model says of one picture.

    Attributes:
        file: the picture's path, or "-".
        top: the likeliest classes, the best first, with their calibrated probabilities.
        rejected: the best one is less probable than was asked for.
        view: what the model saw.
    """

    file: str
    top: list[tuple[str, float]]
    rejected: bool
    view: View

    @property
    def label(self) -> str | None:
        """The best class, None where it was rejected."""
        return None if self.rejected else self.top[0][0]

    def to_dict(self) -> dict[str, Any]:
        """Returns the answer as plain values, the view's pixels left out."""
        return {
            "file": self.file,
            "label": self.label,
            "probability": self.top[0][1],
            "top": [{"label": label, "probability": probability} for label, probability in self.top],
            "rejected": self.rejected,
            "inverted": self.view.inverted,
            "ink": self.view.ink,
            "untouched": self.view.untouched,
            "warnings": list(self.view.warnings),
        }


class Predictor:
    """A checkpoint that answers pictures.

    Attributes:
        path: the checkpoint.
        info: its header.
    """

    def __init__(self, checkpoint: str | os.PathLike[str] | None = None, device: str = "auto", head: int = 0) -> None:
        """Loads `checkpoint`, a file or a run's folder; None is the newest run under `runs`.

        `head` is that of `load_checkpoint`.

        Raises:
            CheckpointError: missing, damaged or foreign checkpoint.
            MnistfastError: device errors.
        """
        self._device = choose_device(device)
        self.path = newest_checkpoint() if checkpoint is None else find_checkpoint(checkpoint)
        self._model, self.info = load_checkpoint(self.path, self._device, head)

    def view(self, content: bytes) -> View:
        """Returns what the model sees of the image file `content`. Raises DataError."""
        return prepare(content, self.info.input_size)

    def probabilities(self, views: Sequence[View]) -> list[list[float]]:
        """Returns the calibrated probability of each class for each view (at least one)."""
        split = Split(np.stack([view.pixels for view in views]), np.zeros(len(views), np.int64))
        logits, _ = predict(self._model, DeviceData(split, self._device, self.info.mean, self.info.std))
        return (logits.double() / self.info.temperature).softmax(1).tolist()

    def answer(
        self, files: Iterable[str], failures: dict[str, DataError], *, top_k: int = 3, reject_below: float = 0.0
    ) -> Iterator[Answer]:
        """Yields an answer for each picture of `files` in their order.

        Args:
            files: paths, "-" is standard input. Read as answers are taken, some at a time.
            failures: receives why a picture could not be read, by its path.
            top_k: how many classes an answer names at most.
            reject_below: answers less probable than this are marked as rejected.
        """
        files = iter(files)
        while some := list(islice(files, BATCH)):
            views = {}
            for file in some:
                try:
                    views[file] = self.view(_read(file))
                except DataError as error:
                    failures[file] = error
            rows = self.probabilities([*views.values()]) if views else []
            for (file, view), row in zip(views.items(), rows, strict=True):
                ranked = sorted(zip(self.info.classes, row, strict=True), key=lambda pair: -pair[1])
                yield Answer(file, ranked[:top_k], ranked[0][1] < reject_below, view)


def _read(file: str) -> bytes:
    if file == STDIN:
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    try:
        with open_regular(file) as opened:
            return opened.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DataError((getattr(error, "strerror", None) or str(error)).lower()) from error
