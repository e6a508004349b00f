"""Opening files that a user names: refused in one line, and never more of them in memory than `idx.MAX_BYTES`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from mnistfast.data.idx import MAX_BYTES
from mnistfast.errors import DataError, StorageError

Arrays = tuple[np.ndarray, np.ndarray]
"""What every reader brings: images uint8 (N, C, H, W) and labels int64 (N,)."""


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for reading.

    Raises:
        DataError: it is not there, or a folder.
        StorageError: the operating system refuses to open it.
    """
    try:
        stream = path.open("rb")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"{path}: no such file", fix="check the path given with --data") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read", error.strerror or str(error), "check its permissions") from error
    with stream:
        yield stream


def whole(path: Path, stream: IO[bytes]) -> bytes:
    """Returns the content of `path`, opened as `stream`; raises `DataError` where it is longer than allowed."""
    refuse_long(path, stream)
    return stream.read()


def refuse_long(path: Path, stream: IO[bytes]) -> None:
    """Raises `DataError` where `path`, opened as `stream`, is longer than allowed."""
    size = os.fstat(stream.fileno()).st_size
    if size > MAX_BYTES:
        raise DataError(f"{path}: has {size:,} bytes, {MAX_BYTES:,} are allowed")


def reason(error: Exception) -> str:
    """Returns the first line of what a decoder said, or what it raised where it said nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
