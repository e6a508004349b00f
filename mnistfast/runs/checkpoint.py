"""Checkpoints: weights with all that using them needs, in safetensors files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from mnistfast.errors import CheckpointError, UsageError
from mnistfast.files.atomic import Write, write_atomic
from mnistfast.models.zoo import Classifier, build
from mnistfast.runs.integrity import BLANK, FORMAT_VERSION, check_digest, check_version, decoding, read_json, seal

BEST, LAST, ADAPTER = "best.safetensors", "last.safetensors", "adapter.safetensors"
ENV = "env.json"  # beside the checkpoints of a run: it names the run
# In the header, besides what CheckpointInfo has. The digest's beginning is as safetensors writes it; in a value of the
# header its quotes would have backslashes.
VERSION, DIGEST, FILE, ADAPTER_OF = "format_version", "digest", "file", "adapter_of"
_DIGEST_BEGINS = f'"{DIGEST}":"'.encode()
# Of pixels / 255, of which the least deviation that images can have is above this; and of any logits worth dividing.
_LEAST_STD, _TEMPERATURES = 1e-8, (1e-3, 1e3)
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
        run: which run wrote it, as its env.json has it; "" where that is not known.
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
    run: str = ""

    def to_header(self) -> dict[str, str]:
        """Returns the header: text to text, each value as JSON."""
        return {VERSION: str(FORMAT_VERSION)} | {key: json.dumps(value) for key, value in asdict(self).items()}

    @classmethod
    def from_header(cls, header: Mapping[str, str], path: Path) -> CheckpointInfo:
        """Reads the header of `path`. Raises CheckpointError when it is not ours."""
        try:
            header = {"old_heads": "[]", "run": '""', **header}  # which older files do not have
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
        temperatures = [self.temperature, *(head.temperature for head in self.old_heads)]
        names = [self.classes, *(head.classes for head in self.old_heads)]
        for name, right in (
            ("model", isinstance(self.model, str)),
            ("arguments", isinstance(self.arguments, dict) and isinstance(self.arguments.get("old_classes", []), list)),
            ("classes", all(some and all(isinstance(name, str) for name in some) for some in names)),
            ("classes, of which two have one name", all(len(set(some)) == len(some) for some in names)),
            ("input_size", sizes == [True] * 3),
            ("mean or std", [len(self.mean), len(self.std)] == [*self.input_size[:1]] * 2),
            ("mean", all(0 <= mean <= 1 for mean in self.mean)),
            ("std", all(_LEAST_STD <= std <= 1 for std in self.std)),
            ("temperature", all(_TEMPERATURES[0] <= value <= _TEMPERATURES[1] for value in temperatures)),
            ("metrics", isinstance(self.metrics, dict)),
            ("run", isinstance(self.run, str)),
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
    header = info.to_header() | {FILE: path.name} | ({ADAPTER_OF: adapter_of} if adapter_of else {})
    write(path, encode(weights, header))


def encode(weights: Mapping[str, Tensor], header: Mapping[str, str]) -> bytearray:
    """Returns the safetensors file of `weights`, with `header` and a digest of it all in its metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    content = bytearray(save(tensors, metadata={**header, DIGEST: BLANK.decode()}))
    seal(memoryview(content), content.index(_DIGEST_BEGINS) + len(_DIGEST_BEGINS))
    return content


def load_checkpoint(
    path: str | os.PathLike[str], device: torch.device | str = "cpu", head: int = 0
) -> tuple[Classifier, CheckpointInfo]:
    """Returns the model of a checkpoint, in eval mode on `device`, and its header.

    Args:
        path: a checkpoint, or a run folder, whose best one is taken.
        device: where the model goes.
        head: 0 is the model as it is; k makes the k-th of its old heads the only one.

    Raises:
        CheckpointError: missing, damaged, a pickle, of a newer format, in the place of another checkpoint of a run, or
            its tensors do not fit its model.
        UsageError: there is no such head.
    """
    path = find_checkpoint(path)
    header, tensors = read_tensors(path)
    if ADAPTER_OF in header:
        merging = f"mnistfast finetune --from CKPT --merge {path} --out FILE makes a checkpoint of both"
        raise CheckpointError(f"{path} is an adapter", "It holds what was learnt beyond another checkpoint", merging)
    info = CheckpointInfo.from_header(header, path)
    model = _build(info, tensors, path)
    expected, found = _forms(model.state_dict()), _forms(tensors)
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
    with decoding(path):
        if max(info.arguments.get("hidden", []), default=0) > longest:  # units of a backbone's head
            raise ValueError("its head is larger than its tensors")
        model = build(info.model, **info.arguments)
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
    """Returns header and tensors of a checkpoint or an adapter.

    Raises:
        CheckpointError: not ours, damaged, a pickle, of a newer format, or in the place of another file of a run.
    """
    with open(path, "rb") as file:
        start = file.read(9)
    # A safetensors file begins with 8 bytes of length, whose first may be 0x80 by chance, and the brace of its header.
    if start[8:] != b"{" and start.startswith((ZIP, PICKLE)):
        raise CheckpointError(
            f"{path} is a pickle file: refused",
            "Loading one can run any code",
            "convert it with safetensors.torch.save_file",
        )
    with decoding(path), safe_open(path, framework="pt") as opened:  # which compares the lengths of all with the file's
        header = opened.metadata() or {}
        _check_written_so(path, header)
        _check_place(path, header)
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        check_values(tensors, path)
    return header, tensors


def check_values(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises CheckpointError where a tensor of `path` has a value that no training leaves."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path} is damaged", f"A value of {name} is not a finite number")
        if name.endswith("running_var") and (tensor < 0).any():
            raise CheckpointError(f"{path} is damaged", f"A variance of {name} is below 0")


def _check_written_so(path: Path, header: Mapping[str, str]) -> None:
    """Raises CheckpointError unless the safetensors file at `path` is ours and as it was written."""
    if VERSION not in header:
        raise CheckpointError(f"{path} is no checkpoint of mnistfast", f"Its header lacks {VERSION}")
    if DIGEST in header:
        with open(path, "rb") as file:
            text = file.read(int.from_bytes(file.read(8), "little"))
        check_digest(path, 8 + text.find(_DIGEST_BEGINS) + len(_DIGEST_BEGINS))
    version = header[VERSION]
    number = int(version) if version.isascii() and version.isdigit() and len(version) < 10 else version
    check_version(number, path, has_digest=DIGEST in header)


def _check_place(path: Path, header: Mapping[str, str]) -> None:
    """Raises CheckpointError where the file at `path` lies in the place of another one of a run."""
    own = (BEST, LAST, ADAPTER)
    written_as = header.get(FILE, path.name)
    if path.name not in own:
        return
    if written_as != path.name and written_as in own:
        raise CheckpointError(f"{path} was written as {written_as}", "It is in the place of another", "rename it")
    try:
        here = read_json(path.with_name(ENV)).get("run", "")
    except CheckpointError:  # a checkpoint on its own, or a run that only its checkpoint is left of
        return
    run = json.loads(header.get("run", '""'))
    if here and here != run:  # an older run's files name none, nor does its env.json
        why = f"{path.with_name(ENV)} is of run {here}, this file of {f'run {run}' if run else 'an older one'}"
        raise CheckpointError(f"{path} is another run's", why, "move it to a folder of its own")


def _forms(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns each tensor's type and shape in words."""
    return {name: f"{str(one.dtype).removeprefix('torch.')} {tuple(one.shape)}" for name, one in tensors.items()}
