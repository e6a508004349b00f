"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

from mnistfast.errors import CheckpointError, StorageError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
SMALL = 1 << 20  # bytes: what a file of settings may have, a thousand times what ours have


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes `content` to `path`: after a crash at any moment the old file or the new one is there, never a part.

    The temporary file has a fixed name in the same folder, so a killed process leaves at most one, and the next write
    replaces it.

    Raises:
        StorageError: no space, or a folder that cannot be written to; the old file is kept.
    """
    # A file's name may hold bytes that are no text: they are written as escapes.
    content = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        kept = "The previous one is kept" if path.exists() else "Nothing was there before"
        raise StorageError(
            f"cannot write {path}: {_reason(error, path.parent, len(content))}", kept, "another --out folder"
        ) from error
    except BaseException:  # a second Ctrl-C
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes `value` to `path` as JSON, atomically. Raises StorageError."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def read_small(path: Path) -> str:
    """Returns the text of the file at `path`.

    Raises:
        OSError: it is missing, no regular file (which might never end), or cannot be read.
        ValueError: it is no text, or has more than `SMALL` bytes.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "It is no regular file", str(path))
    with open(path, "rb") as file:
        content = file.read(SMALL + 1)
    if len(content) > SMALL:
        raise ValueError(f"It has more than {SMALL:,} bytes")
    return content.decode()


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in the file at `path`. Raises CheckpointError: missing, or not what a run writes."""
    try:
        found = json.loads(read_small(path))
        if isinstance(found, dict):
            return found
        why = "It holds no object"
    except (OSError, ValueError, RecursionError) as error:
        why = str(error)
    raise CheckpointError(f"{path} is missing or damaged", why, "train anew with another --out")


def make_folder(path: Path) -> Path:
    """Makes the folder `path` where it is not there yet, and returns it. Raises StorageError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(f"cannot make the folder {path}", reason, "another --out folder") from error
    return path


def _reason(error: OSError, folder: Path, size: int) -> str:
    if error.errno in NO_SPACE:
        free = shutil.disk_usage(folder).free
        return f"no space left (needs {size / 1e6:.1f} MB, {free / 1e6:.1f} MB free on {folder})"
    return (error.strerror or str(error)).lower()


def _sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut, where the system can (Windows cannot open folders)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
