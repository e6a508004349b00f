"""The one door to files that a user names: regular files alone, and bounds on what may be read of them.

Whatever is refused is refused in one line and in less than 1 GiB of memory: lengths are looked at before anything of
that length is read, and nothing is copied before all that can be wrong with it was looked for.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from mnistfast.errors import DataError, StorageError
from mnistfast.files.decoding import short
from mnistfast.files.regular import IrregularFileError, open_regular

Arrays = tuple[np.ndarray, np.ndarray]
"""What every reader brings: images uint8 (N, C, H, W), in any order in memory, and labels int64 (N,)."""

MAX_BYTES = 640 << 20
"""What the arrays of a data set may have in a file: EMNIST's largest set has 639 MB, MNIST 55 MB.

A refusal may come when all of them and a copy of half the size were made: 960 MiB."""

MAX_IMAGES = 1 << 22
"""Images that a file may have, 5 times EMNIST's: their labels, 8 bytes each, take no memory that counts."""

CLASSES_MAX = 1000
"""Labels that are only numbers go from 0 to below this: more is a column mistaken for the labels."""

MAX_AT_ONCE = 128 << 10
"""Bytes that a decoder may take at once because the file says so: 10 times what any header or list of names of ours
has, and twice what zipfile wants of a file's end."""


def present(path: Path) -> bool:
    """Returns whether there is anything at `path` but a folder: what is no regular file either, `opened` refuses."""
    return os.path.exists(path) and not os.path.isdir(path)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Opens a regular file for reading.

    Raises:
        DataError: it is not there, or a folder, a device, a pipe.
        StorageError: the operating system refuses to open or to read it.
    """
    try:
        with open_regular(path) as stream:
            yield stream
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", fix="check the path given with --data") from error
    except IrregularFileError as error:
        raise DataError(f"{path}: not a regular file", "A device or a pipe might never end") from error
    except OSError as error:
        if error.errno is None:  # a decoder's word on the content
            raise
        raise StorageError(f"{path}: cannot be read", error.strerror or str(error), "check its permissions") from error


def whole(path: Path, stream: IO[bytes], limit: int) -> bytes:
    """Returns the content of `path`, opened as `stream`; raises `DataError` where it is longer than `limit`."""
    return stream.read(length(path, stream, limit))


def length(path: Path, stream: IO[bytes], limit: int) -> int:
    """Returns the bytes of `path`, opened as `stream`; raises `DataError` where it has more than `limit`."""
    size = os.fstat(stream.fileno()).st_size
    if size > limit:
        raise DataError(f"{path}: has {size:,} bytes, {limit:,} are allowed")
    return size


def refuse_large(name: str, shape: tuple[int, ...], size: int, left: int) -> None:
    """Raises `DataError` where an array of which a header tells is larger than allowed.

    Args:
        name: what messages call the array.
        shape: its shape, images first.
        size: its bytes.
        left: what the set's other arrays left of `MAX_BYTES`.
    """
    says = f"{name}: header says {short(' x '.join(map(str, shape)))} = {size:,} bytes"
    fix = "fetch it again if it is damaged, else keep a part of the images"
    if shape and shape[0] > MAX_IMAGES:
        raise DataError(f"{says}, {MAX_IMAGES:,} images are allowed", fix=fix)
    if max((size, *shape)) > left:  # nothing at all, of 0 x 4e9 x 4e9 elements, no array can be
        raise DataError(f"{says}, {left:,} bytes are allowed", f"A set may have {MAX_BYTES:,} in all", fix)


def fill(stream: Any, target: memoryview) -> Iterator[int]:
    """Fills `target` from a binary stream; yields the length of each piece, which is what has been unpacked by then."""
    got = 0
    # By read1, whose pieces are what could be unpacked so far: all of it is counted before a break.
    while got < len(target) and (piece := stream.read1(min(MAX_AT_ONCE, len(target) - got))):
        target[got : got + len(piece)] = piece
        got += len(piece)
        yield len(piece)


class Cautious(io.BufferedReader):
    """A stream for a decoder that believes the lengths in a file: ValueError where it wants over `MAX_AT_ONCE`."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)  # any binary stream: it asks for no more than RawIOBase has

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads as any stream does, within the bound."""
        if size is None or size < 0:
            size = MAX_AT_ONCE  # zipfile, of a file's end, which is shorter
        if size > MAX_AT_ONCE:
            raise ValueError(f"{size:,} bytes, as it says of one of its parts, are too many")
        return super().read(size)


def class_labels(name: str, labels: np.ndarray) -> np.ndarray:
    """Returns whole numbers as int64 labels; refuses those that can name no class, with the index of the first one."""
    wrong = np.flatnonzero((labels < 0) | (labels >= CLASSES_MAX))
    if len(wrong):
        what = f"{name}: label {labels[wrong[0]]} at index {wrong[0]}"
        raise DataError(what, f"Labels are from 0 to {CLASSES_MAX - 1}", "is it the label's column?")
    return labels.astype(np.int64)
