"""The state that resuming a run needs, state.pt: plain tensors and dicts, for `torch.load` with weights_only."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnistfast.errors import CheckpointError
from mnistfast.files.atomic import Write, write_atomic
from mnistfast.runs.integrity import BLANK, FORMAT_VERSION, PREFIX, check_digest, check_version, decoding, seal

STATE = "state.pt"


def save_state(path: Path, state: Mapping[str, Any], write: Write = write_atomic) -> None:
    """Writes `state` (dicts, lists, numbers, texts, tensors) to `path`, atomically, by `write`. Raises StorageError."""
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **state}, buffer)
    at = buffer.seek(0, io.SEEK_END)
    buffer.seek(at - 2)  # a zip file: it ends with the length of its comment and the comment, here the digest
    buffer.write(struct.pack("<H", len(BLANK)) + BLANK)
    file = buffer.getbuffer()
    seal(file, at)
    write(path, file)


def load_state(path: Path) -> dict[str, Any]:
    """Returns what `save_state` wrote, on the CPU; no pickled object is ever made.

    Raises:
        CheckpointError: missing, damaged or of a newer format.
    """
    fix = "train anew with another --out"
    if not path.is_file():
        raise CheckpointError(f"nothing to resume: {path} is missing", fix=fix)
    with open(path, "rb") as file:
        at = max(0, path.stat().st_size - len(BLANK))
        file.seek(at)
        has_digest = file.read().startswith(PREFIX)
    if has_digest:
        check_digest(path, at)
    with decoding(path, "It is not what a run saves", fix):  # torch's own advice is to let the file run code
        _refuse_packed(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        version = state["format_version"]
    check_version(version, path, has_digest=has_digest)
    check_plain(state, path)
    return state


def check_plain(value: Any, path: Path) -> None:
    """Raises CheckpointError unless `value`, read from `path`, is made of numbers, texts and tensors in memory.

    A tensor in a file can be a view whose elements are all the same one: copies of it would take any amount of memory.
    """
    seen: set[int] = set()
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            usual = type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided
            if not usual or value.is_quantized or value.device.type != "cpu" or _is_expanded(value):
                raise CheckpointError(f"{path} is damaged", "It holds a tensor without values of its own")
        elif isinstance(value, (dict, list, tuple)):
            if id(value) not in seen:  # it may occur in many places, also within itself
                seen.add(id(value))
                left.extend([*value.keys(), *value.values()] if isinstance(value, dict) else value)
        elif not isinstance(value, (str, int, float, type(None))):
            raise CheckpointError(f"{path} is damaged", f"It holds a {type(value).__name__}")


def _is_expanded(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def _refuse_packed(path: Path) -> None:
    """Raises ValueError where the zip file at `path` would come to more bytes than it has: torch.save packs nothing."""
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("it comes to more bytes than it has")
