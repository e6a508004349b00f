"""Opening regular files alone: a device or a pipe that a user names, or a link to one, might never end."""

from __future__ import annotations

import errno
import os
import stat
from typing import IO


class IrregularFileError(OSError):
    """A folder, a device, a pipe or a socket."""


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Opens a regular file for reading.

    Raises:
        OSError: the operating system refuses, or it is anything else: a device or a pipe might never end.
    """
    return open(path, "rb", opener=_descriptor)


def _descriptor(path: str, flags: int) -> int:
    _refuse_irregular(path, os.stat(path))  # before it is opened, to which a device may react
    # A pipe that took its place since then would wait for a writer, without the flag.
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        _refuse_irregular(path, os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_irregular(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise IrregularFileError(errno.EINVAL, "Not a regular file", path)
