"""The figures of each epoch as TensorBoard's scalars."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnistfast.errors import DeviceError

FOLDER = "tensorboard"


def check_installed() -> None:
    """Raises DeviceError where TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise DeviceError("TensorBoard is not installed", str(error), "pip install 'mnistfast[tensorboard]'") from error


class ScalarWriter:
    """Writes records of metrics.jsonl as scalars to the folder `tensorboard` of a run."""

    def __init__(self, run: Path, step: int) -> None:
        """Opens the folder; figures after `step`, of a run that is continued from there, are dropped."""
        from torch.utils.tensorboard import SummaryWriter

        if not step:  # a new run in the place of an old one
            for old in (run / FOLDER).glob("events.out.tfevents.*"):
                old.unlink()
        self._writer = SummaryWriter(str(run / FOLDER), purge_step=step + 1)

    def add(self, record: Mapping[str, Any]) -> None:
        """Writes the figures of one epoch."""
        for name, value in record.items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()
