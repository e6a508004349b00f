"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mnistfast.errors import StorageError
from mnistfast.files.folder import Folder

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
TEMPORARY = ".mnistfast-", ".tmp"  # how the name of a file that is being written begins and ends
ELSEWHERE = "another --out folder"
Content = bytes | bytearray | memoryview | str
Write = Callable[[Path, Content], None]


def write_atomic(path: Path, content: Content, folder: Folder | None = None, *, fix: str = ELSEWHERE) -> None:
    """Writes `content` to `path`: after a crash at any moment the old file or the new one is there, never a part.

    Two processes may write the same file at once: one of the two is there then. A process killed in the middle leaves
    a temporary file; a run deletes those in its folder when it starts.

    Args:
        path: the file.
        content: a text is written as UTF-8.
        folder: the folder of `path` where it is held open already.
        fix: what helps where it cannot be written.

    Raises:
        StorageError: no space, or a folder that cannot be written to; the old file is kept.
    """
    # A file's name may hold bytes that are no text: they are written as escapes.
    content = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    try:
        with contextlib.nullcontext(folder) if folder else Folder(path.parent) as place:
            _replace(place, path.name, content)
    except OSError as error:
        kept = "The previous one is kept" if os.path.exists(path) else "Nothing was there before"
        raise StorageError(f"cannot write {path}: {_reason(error, path.parent, len(content))}", kept, fix) from error


def _replace(folder: Folder, name: str, content: bytes | bytearray | memoryview) -> None:
    temporary = os.urandom(4).hex().join(TEMPORARY)
    try:
        folder.put(temporary, content, os.O_CREAT | os.O_EXCL)
        folder.rename(temporary, name)
    except BaseException:  # a second Ctrl-C too
        with contextlib.suppress(OSError):
            folder.remove(temporary)
        raise


def is_temporary(name: str) -> bool:
    """Whether `write_atomic` gives such a name to a file that is being written."""
    return name.startswith(TEMPORARY[0]) and name.endswith(TEMPORARY[1])


def write_json(path: Path, value: Any, write: Write = write_atomic) -> None:
    """Writes `value` to `path` as JSON, atomically, by `write`. Raises StorageError."""
    write(path, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Makes a StorageError of an OSError: `path` could not be written to."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {_reason(error, path.parent)}", fix=ELSEWHERE) from error


def make_folder(path: Path, *, fix: str = ELSEWHERE) -> Path:
    """Makes the folder `path` where it is not there yet, and returns it. Raises StorageError with that `fix`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {path}", (error.strerror or str(error)).lower(), fix) from error
    return path


def _reason(error: OSError, folder: Path, size: int = 0) -> str:
    if error.errno in NO_SPACE:
        free = shutil.disk_usage(folder).free
        return f"no space left (needs {size / 1e6:.1f} MB, {free / 1e6:.1f} MB free on {folder})"
    return (error.strerror or str(error)).lower()
