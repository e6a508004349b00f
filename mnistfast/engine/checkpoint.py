"""Checkpoints: weights with all that using them needs (safetensors), and the state that resuming needs (state.pt)."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mnistfast.engine.files import Write, write_atomic
from mnistfast.errors import CheckpointError, UsageError
from mnistfast.models.zoo import Classifier, build

FORMAT_VERSION = 1
BEST, LAST, STATE = "best.safetensors", "last.safetensors", "state.pt"
ADAPTER_OF = "adapter_of"  # in the header of an adapter
ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # how torch.save's files and bare pickles begin


@dataclass(frozen=True)
class OldHead:
    """What an earlier task's last layer answers.

    Attributes:
        classes: a name for each logit.
        temperature: as `CheckpointInfo` has it.
    """

    classes: tuple[str, ...]
    temperature: float


@dataclass(frozen=True)
class CheckpointInfo:
    """What the header of a checkpoint says.

    Attributes:
        model: name in the zoo.
        arguments: the arguments of `zoo.build` besides the name.
        classes: a name for each logit.
        mean, std: a value a channel, of pixel / 255, to normalise with.
        input_size: (C, H, W).
        temperature: what to divide the logits by for calibrated probabilities; 1 before it was fitted.
        metrics: epoch, step and validation figures of these weights.
        old_heads: those that the model keeps of earlier tasks, the latest one first.
    """

    model: str
    arguments: dict[str, Any]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, int, int]
    temperature: float = 1.0
    metrics: dict[str, Any] = field(default_factory=dict)
    old_heads: tuple[OldHead, ...] = ()

    def to_header(self) -> dict[str, str]:
        """Returns the header: text to text, each value as JSON."""
        return {"format_version": str(FORMAT_VERSION)} | {key: json.dumps(value) for key, value in asdict(self).items()}

    @classmethod
    def from_header(cls, header: Mapping[str, str], path: Path) -> CheckpointInfo:
        """Reads the header of `path`. Raises CheckpointError when it is not ours or of a newer format."""
        try:
            version = int(header["format_version"])
            if version > FORMAT_VERSION:
                raise CheckpointError(
                    f"{path} has format {version}, this version reads up to {FORMAT_VERSION}", fix="update mnistfast"
                )
            header = {"old_heads": "[]", **header}  # which older files do not have
            values = {option.name: json.loads(header[option.name]) for option in fields(cls)}
            for name in ("classes", "mean", "std", "input_size"):
                values[name] = tuple(values[name])
            values["old_heads"] = tuple(
                OldHead(tuple(head["classes"]), head["temperature"]) for head in values["old_heads"]
            )
            info = cls(**values)
            info._check()
        except (KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is no checkpoint of mnistfast", f"Its header lacks or garbles {error}"
            ) from error
        return info

    def _check(self) -> None:
        """Raises ValueError or TypeError, naming the entry, where a value is not what the class says it is."""
        sizes = [isinstance(side, int) and 1 <= side <= 1 << 16 for side in self.input_size]
        numbers = [*self.mean, *self.std, self.temperature, *(head.temperature for head in self.old_heads)]
        names = [self.classes, *(head.classes for head in self.old_heads)]
        for name, right in (
            ("model", isinstance(self.model, str)),
            ("arguments", isinstance(self.arguments, dict) and isinstance(self.arguments.get("old_classes", []), list)),
            ("classes", all(some and all(isinstance(name, str) for name in some) for some in names)),
            ("input_size", sizes == [True] * 3),
            ("mean, std or temperature", all(math.isfinite(number) for number in numbers)),
            ("mean or std", [len(self.mean), len(self.std)] == [*self.input_size[:1]] * 2),
            ("std or temperature", all(number > 0 for number in numbers[len(self.mean) :])),
            ("metrics", isinstance(self.metrics, dict)),
        ):
            if not right:
                raise ValueError(name)


def save_checkpoint(
    path: Path,
    weights: Mapping[str, Tensor],
    info: CheckpointInfo,
    adapter_of: str | None = None,
    write: Write = write_atomic,
) -> None:
    """Writes weights and header to `path`, atomically.

    Args:
        path: the file.
        weights: all of the model's; of an adapter what was learnt.
        info: the header.
        adapter_of: of an adapter, the MD5 of the checkpoint that it belongs to.
        write: what writes a file, atomically.

    Raises:
        StorageError: no space, or a folder that cannot be written to.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    header = info.to_header() | ({ADAPTER_OF: adapter_of} if adapter_of else {})
    write(path, save(tensors, metadata=header))


def load_checkpoint(
    path: str | os.PathLike[str], device: torch.device | str = "cpu", head: int = 0
) -> tuple[Classifier, CheckpointInfo]:
    """Returns the model of a checkpoint, in eval mode on `device`, and its header.

    Args:
        path: a checkpoint, or a run folder, whose best one is taken.
        device: where the model goes.
        head: 0 is the model as it is; k makes the k-th of its old heads the only one.

    Raises:
        CheckpointError: missing, damaged, a pickle, of a newer format, or its tensors do not fit its model.
        UsageError: there is no such head.
    """
    path = find_checkpoint(path)
    header, tensors = read_tensors(path)
    if ADAPTER_OF in header:
        merging = f"mnistfast finetune --from CKPT --merge {path} --out FILE makes a checkpoint of both"
        raise CheckpointError(f"{path} is an adapter", "It holds what was learnt beyond another checkpoint", merging)
    info = CheckpointInfo.from_header(header, path)
    model = _build(info, tensors, path)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = [
        f"{name}: {found.get(name, 'missing')} instead of {expected.get(name, 'none')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        raise CheckpointError(f"the tensors of {path} do not fit model {info.model}", "; ".join(wrong[:3]))
    model.load_state_dict(tensors)
    if head:
        info = _with_head(model, info, head, path)
    return model.to(device).eval(), info


def _with_head(model: Classifier, info: CheckpointInfo, head: int, path: Path) -> CheckpointInfo:
    if head > len(info.old_heads):
        raise UsageError(f"--head is {head}", f"{path} has heads 0 to {len(info.old_heads)}")
    old = info.old_heads[head - 1]
    model.use_head(head)
    return replace(
        info, arguments=model.arguments, classes=old.classes, temperature=old.temperature, old_heads=(), metrics={}
    )


def _build(info: CheckpointInfo, tensors: Mapping[str, Tensor], path: Path) -> Classifier:
    """Returns the model that a header describes, having made sure that it is no larger than the file.

    Raises:
        CheckpointError: the header contradicts itself or the tensors.
    """
    longest = max((max(tensor.shape, default=0) for tensor in tensors.values()), default=0)
    counts = [len(info.classes), *(len(head.classes) for head in info.old_heads)]
    claimed = [info.arguments.get("classes"), *info.arguments.get("old_classes", [])]
    if claimed != counts or max(counts) > longest:
        raise CheckpointError(f"{path} is damaged", f"Its header names {counts[0]:,} classes, its tensors have others")
    try:
        if max(info.arguments.get("hidden", []), default=0) > longest:  # units of a backbone's head
            raise ValueError("its head is larger than its tensors")
        model = build(info.model, **info.arguments)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged", f"Its header describes no model: {error}") from error
    if model.input_size != info.input_size:
        raise CheckpointError(f"{path} is damaged", f"Model {info.model} does not take {info.input_size}")
    return model


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Returns the checkpoint at `path`, or the best one of the run folder `path`.

    Raises:
        CheckpointError: there is none; the message names the runs there are.
    """
    path = Path(path)
    candidate = path / BEST if path.is_dir() else path
    if candidate.is_file():
        return candidate
    folder = path if path.is_dir() else path.parent
    runs = _runs_in(folder, Path("runs"))
    names = ", ".join(str(run) for run in runs[-5:])
    known = f"Runs here: {names} (newest last)" if runs else "There are no runs here"
    raise CheckpointError(f"no checkpoint at {candidate}", known, "mnistfast train makes one")


def newest_checkpoint(folder: Path = Path("runs")) -> Path:
    """Returns the best checkpoint of the newest run in `folder`. Raises CheckpointError when there is none."""
    runs = _runs_in(folder)
    if not runs:
        raise CheckpointError(f"no run in {folder}", fix="mnistfast train makes one, --checkpoint names another")
    return runs[-1] / BEST


def _runs_in(*folders: Path) -> list[Path]:
    """Returns the runs that have a checkpoint, the newest last."""
    runs = {file.parent for folder in folders for file in folder.glob(f"*/{BEST}")}
    return sorted(runs, key=lambda run: (run / BEST).stat().st_mtime)


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Returns header and tensors of a safetensors file. Raises CheckpointError: damaged, or a pickle."""
    with open(path, "rb") as file:
        start = file.read(9)
    # A safetensors file begins with 8 bytes of length, whose first may be 0x80 by chance, and the brace of its header.
    if start[8:] != b"{" and start.startswith((ZIP, PICKLE)):
        raise CheckpointError(
            f"{path} is a pickle file: refused",
            "Loading one can run any code",
            "convert it with safetensors.torch.save_file",
        )
    try:
        with safe_open(path, framework="pt") as opened:
            return opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged", str(error), "another checkpoint of the run, or train again"
        ) from error


def save_state(path: Path, state: Mapping[str, Any], write: Write = write_atomic) -> None:
    """Writes `state` (dicts, lists, numbers, texts, tensors) to `path`, atomically, by `write`. Raises StorageError."""
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **state}, buffer)
    write(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Returns what `save_state` wrote, on the CPU; no pickled object is ever made.

    Raises:
        CheckpointError: missing, damaged or of a newer format.
    """
    if not path.is_file():
        raise CheckpointError(f"nothing to resume: {path} is missing", fix="train anew with another --out")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        version = state["format_version"]
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged", reason) from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {version}, this version reads up to {FORMAT_VERSION}", fix="update mnistfast"
        )
    return state
