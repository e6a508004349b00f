"""An adapter made part of the checkpoint that it was learnt from."""

from __future__ import annotations

from pathlib import Path

from mnistfast.errors import CheckpointError, UsageError
from mnistfast.models.adapters import with_adapter
from mnistfast.runs.checkpoint import (
    ADAPTER_OF,
    CheckpointInfo,
    find_checkpoint,
    load_checkpoint,
    read_tensors,
    save_checkpoint,
)
from mnistfast.tasks.source import adapt, md5_of


def merge_adapter(source: str, adapter_path: str, out: str, *, overwrite: bool) -> Path:
    """Writes the plain checkpoint that `source` and an adapter learnt from it come to.

    Args:
        source: the run or the checkpoint that the adapter was learnt from.
        adapter_path: the adapter.
        out: the file to write.
        overwrite: replace it where it is there.

    Returns:
        The file.

    Raises:
        CheckpointError: one of the files is missing or damaged, or they do not belong together.
        UsageError: `out` is there and `overwrite` is not set.
        StorageError: it cannot be written.
    """
    path, file = find_checkpoint(source), find_checkpoint(adapter_path)
    if Path(out).exists() and not overwrite:
        raise UsageError(f"{out} would be replaced", fix="--overwrite or another --out")
    header, learnt = read_tensors(file)
    if ADAPTER_OF not in header:
        raise CheckpointError(f"{file} is no adapter", fix="--merge takes the adapter.safetensors of a lora run")
    if header[ADAPTER_OF] != md5_of(path):
        raise CheckpointError(f"{file} was learnt from another checkpoint than {path}", fix="--from with that one")
    info = CheckpointInfo.from_header(header, file)
    model, of_source = load_checkpoint(path)
    adapt(model, of_source, info.classes, keep=bool(info.old_heads))
    try:
        state = with_adapter(model.state_dict(), learnt)
    except (KeyError, RuntimeError) as error:  # a name or a shape that the model does not have
        raise CheckpointError(f"{file} does not fit {path}: {error}", fix="learn it again") from error
    save_checkpoint(Path(out), state, info)
    load_checkpoint(out)
    return Path(out)
