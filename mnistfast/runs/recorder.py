"""Writing a training down in its run's folder so that it can go on from there, and taking it up again.

The order is the protocol: a crash at any moment leaves a folder that is no run yet, or one that can be resumed.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from mnistfast.errors import CheckpointError
from mnistfast.files.atomic import write_json
from mnistfast.models.adapters import merged
from mnistfast.runs.checkpoint import BEST, ENV, LAST, CheckpointInfo, save_checkpoint
from mnistfast.runs.integrity import read_json
from mnistfast.runs.run_folder import CONFIG, METRICS, RunFolder
from mnistfast.runs.state import STATE, load_state, save_state


class Recorder:
    """Saves a training to a folder, again and again.

    Attributes:
        folder: the run's.
        info: the header of its checkpoints, which names the run.
        last_good: where the last saved state is, in words.
    """

    last_good = "none yet"

    def __init__(self, folder: RunFolder, info: CheckpointInfo, options: Mapping[str, Any]) -> None:
        """Takes the `options` that the state must never be continued without."""
        self.folder, self.info, self._options = folder, info, options
        # The best epoch that best.safetensors holds. None also after a resume: a crash may have left that file older or
        # newer than the state, and the next save makes it fit.
        self._exported: Mapping[str, Any] | None = None

    def save(
        self, state: Mapping[str, Any], weights: Mapping[str, Tensor], record: dict[str, Any] | None = None
    ) -> None:
        """Saves the state, which alone counts for resuming, then the two files that are for use.

        An epoch's `record` goes first: what a crash leaves of it beyond the state, resuming cuts off.

        Args:
            state: of the trainer.
            weights: those that are judged, as they are now.
            record: of the epoch that ended with it, None within an epoch.

        Raises:
            StorageError: no space, or the folder is not ours any more.
        """
        folder = self.folder
        if record:
            folder.add_metrics(record)
        save_state(folder / STATE, {**state, "run": self.info.run, "options": self._options}, folder.write)
        self.last_good = f"{folder / LAST} (step {state['step']})"
        self.export(LAST, weights, known_of(state))
        best = state["best"]
        if best and best is not self._exported:
            self.export(BEST, state["best_weights"], best)
            self._exported = best

    def export(
        self, name: str, weights: Mapping[str, Tensor], metrics: Mapping[str, Any], temperature: float = 1.0
    ) -> CheckpointInfo:
        """Writes the checkpoint `name` of the plain model that `weights` come to; returns its header.

        Raises:
            StorageError: no space, or the folder is not ours any more.
        """
        info = replace(self.info, metrics=dict(metrics), temperature=temperature)
        save_checkpoint(self.folder / name, merged(weights), info, write=self.folder.write)
        return info


def known_of(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what is known of the weights of `state`: their epoch's record, or the step alone within an epoch."""
    record: Mapping[str, Any] | None = state["last_record"]
    return record if record and record["step"] == state["step"] else {"step": state["step"]}


def begin_recording(
    folder: RunFolder,
    info: CheckpointInfo,
    environment: Mapping[str, Any],
    options: Mapping[str, Any],
    config: str,
    state: Mapping[str, Any],
    weights: Mapping[str, Tensor],
) -> Recorder:
    """Writes down what is about to happen; from here on the run can be resumed.

    Args:
        folder: the run's, begun.
        info: the header of its checkpoints.
        environment: of `environment_of`, but for the run's name, which is drawn here.
        options: of `Recorder`.
        config: the text of config.yaml. It is written last, for it is what makes a folder a run.
        state, weights: of `Recorder.save`, before the first step.

    Raises:
        StorageError: no space, or the folder is not ours any more.
    """
    run = secrets.token_hex(8)
    write_json(folder / ENV, {**environment, "run": run}, folder.write)
    recorder = Recorder(folder, replace(info, run=run), options)
    recorder.save(state, weights)
    folder.write(folder / CONFIG, config)
    return recorder


def environment_of(folder: RunFolder) -> dict[str, Any]:
    """Returns what `begin_recording` noted: machine and versions, `run`, `data`, of which the hashes, and `command`.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = folder / ENV
    found = {"run": "", **read_json(path)}  # runs from before checkpoints named theirs have none
    for name, kind in (("run", str), ("data", dict), ("command", str)):
        if not isinstance(found.get(name), kind) or (kind is dict and not isinstance(found[name].get("hashes"), dict)):
            raise CheckpointError(f"{path} is damaged", f"Its {name} is missing", "train anew with another --out")
    return found


def take_up(
    folder: RunFolder, info: CheckpointInfo, run: str, options: Mapping[str, Any]
) -> tuple[Recorder, dict[str, Any]]:
    """Returns what goes on recording the run called `run`, and the state that it goes on from; writes nothing.

    Raises:
        CheckpointError: the state is missing or damaged, or another run's, or of other `options`.
    """
    state = load_state(folder / STATE)
    if state.get("run", "") != run:
        raise CheckpointError(f"{folder / STATE} is another run's", f"{folder / ENV} is of run {run or 'unknown'}")
    saved = state.get("options", {})
    other = [name for name in options if name in saved and saved[name] != options[name]]
    if other:
        why = f"Its {other[0]} is {options[other[0]]}, the run was trained with {saved[other[0]]}"
        raise CheckpointError(f"{folder / CONFIG} does not fit {STATE}", why, "correct it")
    return Recorder(folder, replace(info, run=run), options), state


def check_metrics(folder: RunFolder, step: int, epochs: int) -> None:
    """Raises CheckpointError unless metrics.jsonl has the records of the `epochs` that ended up to `step`."""
    if sum(record["step"] <= step for record in folder.metrics()) < epochs:
        raise CheckpointError(f"{folder / METRICS} is missing or damaged", fix="train anew with another --out")
