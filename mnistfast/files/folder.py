"""A folder that stays the one it was, whatever takes its name."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType

HOLDS_FOLDERS = os.name == "posix"  # Windows cannot open folders


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
