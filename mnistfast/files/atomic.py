"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from mnistfast.errors import CheckpointError, StorageError
from mnistfast.files.regular import open_regular

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
SMALL = 1 << 20  # bytes: what a file of settings may have, a thousand times what ours have
HOLDS_FOLDERS = os.name == "posix"  # Windows cannot open folders
TEMPORARY = ".mnistfast-", ".tmp"  # how the name of a file that is being written begins and ends
Content = bytes | bytearray | memoryview | str
Write = Callable[[Path, Content], None]


class Folder:
    """A folder held open: what is done through it is done in it, whatever takes its name meanwhile.

    Where the system cannot hold folders it is no more than its path. Every method may raise OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY) if HOLDS_FOLDERS else None

    def __enter__(self) -> Folder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets the folder go."""
        if self._descriptor is not None:
            os.close(self._descriptor)

    def is_at_its_path(self) -> bool:
        """Whether the path still leads to this folder."""
        if self._descriptor is None:
            return self.path.is_dir()
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except OSError:
            return False

    def open(self, name: str, flags: int) -> int:
        """Returns a descriptor of the file `name`."""
        return os.open(self._at(name), flags | getattr(os, "O_BINARY", 0), 0o666, dir_fd=self._descriptor)

    def put(self, name: str, content: bytes | bytearray | memoryview, flags: int, *, durable: bool = True) -> None:
        """Writes `content` to the file `name`.

        Args:
            name: the file.
            content: all that it then holds, or, with O_APPEND, what is added to it.
            flags: to open it with.
            durable: it is on the disk afterwards, power cut or not.
        """
        descriptor = self.open(name, os.O_WRONLY | flags)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if not flags & os.O_APPEND:
                os.ftruncate(descriptor, len(content))
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: str, target: str) -> None:
        """Gives `source` the name `target`, in the place of what has it, and that survives a power cut."""
        os.replace(self._at(source), self._at(target), src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def remove(self, name: str) -> None:
        """Deletes the file `name` if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._at(name), dir_fd=self._descriptor)

    def stat(self, name: str) -> os.stat_result:
        """Returns what the system knows of the file `name`."""
        return os.stat(self._at(name), dir_fd=self._descriptor)

    def names(self) -> list[str]:
        """Returns the names of what is in it."""
        return os.listdir(self.path if self._descriptor is None else self._descriptor)

    def _at(self, name: str) -> str:
        return name if self._descriptor is not None else str(self.path / name)


def write_atomic(path: Path, content: Content, folder: Folder | None = None) -> None:
    """Writes `content` to `path`: after a crash at any moment the old file or the new one is there, never a part.

    Two processes may write the same file at once: one of the two is there then. A process killed in the middle leaves
    a temporary file; a run deletes those in its folder when it starts.

    Args:
        path: the file.
        content: a text is written as UTF-8.
        folder: the folder of `path` where it is held open already.

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
        raise StorageError(
            f"cannot write {path}: {_reason(error, path.parent, len(content))}", kept, "another --out folder"
        ) from error


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
        raise StorageError(f"cannot write {path}: {_reason(error, path.parent)}", fix="another --out folder") from error


def read_small(path: Path) -> str:
    """Returns the text of the file at `path`.

    Raises:
        OSError: it is missing, no regular file, or cannot be read.
        ValueError: it is no text, or has more than `SMALL` bytes.
    """
    with open_regular(path) as file:
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


def _reason(error: OSError, folder: Path, size: int = 0) -> str:
    if error.errno in NO_SPACE:
        free = shutil.disk_usage(folder).free
        return f"no space left (needs {size / 1e6:.1f} MB, {free / 1e6:.1f} MB free on {folder})"
    return (error.strerror or str(error)).lower()
