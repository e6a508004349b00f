"""What lies packed in .zip and .tar.gz files, never more of it in memory than the caller asks for."""

from __future__ import annotations

import gzip
import os
import tarfile
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mnistfast.data.reading import MAX_AT_ONCE, MAX_BYTES, Cautious, fill, opened
from mnistfast.errors import DataError

_BLOCK = 512  # tar pads headers and members to whole blocks
_MAX_MEMBERS = 1000  # of a .tar.gz; CIFAR-10's has 9


@contextmanager
def unzipped(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a .zip file.

    Raises:
        DataError: no such file.
        StorageError: the operating system refuses to open it.
        ValueError: its list of members is too long; a damaged file raises what zipfile does.
    """
    with opened(path) as stream, zipfile.ZipFile(Cautious(stream)) as archive:
        yield archive


def member(archive: zipfile.ZipFile, name: str) -> Cautious:
    """Opens a member of a .zip file.

    Raises:
        ValueError: it is packed by a method that zipfile unpacks all at once, however much that is, or damaged.
    """
    method = archive.getinfo(name).compress_type
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is packed by method {method}, neither stored nor deflated")
    return Cautious(archive.open(name))


def unpacked(stream: Any, size: int) -> np.ndarray:
    """Returns the next `size` bytes of a binary stream, which must be all that it has, as uint8 (size,).

    Raises:
        ValueError: it has fewer or more; a damaged stream raises what its decoder does.
    """
    found = np.empty(size, np.uint8)
    got = sum(fill(stream, found.data))
    if got < size:
        raise ValueError(f"{got:,} bytes where a header says {size:,}")
    if stream.read(1):  # at the true end the decoder compares its checksum
        raise ValueError(f"more than the {size:,} bytes that a header says")
    return found


def tar_members(path: Path, names: Collection[str], limit: int) -> dict[str, bytes]:
    """Returns the files in a .tar.gz that have one of `names`, by name, in whatever folder.

    The headers are read one by one, for tarfile takes the lists that may extend them into memory, however long.

    Raises:
        DataError: no such file, a damaged one, a named file of more than `limit` bytes, or too much in all.
        StorageError: the operating system refuses to open it.
    """
    found: dict[str, bytes] = {}
    place = 0
    with opened(path) as stream, gzip.GzipFile(fileobj=stream) as archive:
        for _ in range(_MAX_MEMBERS):
            if (block := archive.read(_BLOCK)) == bytes(_BLOCK):
                archive.read(MAX_AT_ONCE)  # to the end, where gzip compares the checksum
                return found
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            name = os.path.basename(entry.name)
            named = name in names and entry.isreg()
            if entry.size < 0 or (named and entry.size > limit):
                raise DataError(f"{path}: {name} has {entry.size:,} bytes, {limit:,} are allowed")
            place += _BLOCK + -(-entry.size // _BLOCK) * _BLOCK
            if place > MAX_BYTES:
                raise DataError(f"{path}: has more than the {MAX_BYTES:,} bytes allowed")
            if named:
                found[name] = archive.read(entry.size)
            archive.seek(place)
    raise DataError(f"{path}: has more than the {_MAX_MEMBERS:,} members allowed")
