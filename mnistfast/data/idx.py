"""A strict reader of IDX, MNIST's file format.

An IDX file is a magic number (two zero bytes, the element type, the number of dimensions), each dimension as a
big-endian uint32, then the elements. Source: the description of the format beside the MNIST database (Y. LeCun,
C. Cortes, C. Burges). Only the two kinds that MNIST uses are read: images (uint8, three dimensions) and labels (uint8,
one).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np

from mnistfast.data.reading import MAX_BYTES, fill, opened, refuse_large
from mnistfast.errors import DataError

Kind = Literal["images", "labels"]

_MAGIC: dict[str, int] = {"images": 0x00000803, "labels": 0x00000801}
_GZIP_START = b"\x1f\x8b"
_FETCH_AGAIN = "delete it and fetch it again"


def read_idx(path: str | os.PathLike[str], *, expect: Kind, limit: int = MAX_BYTES) -> np.ndarray:
    """Reads an IDX file, raw or compressed with gzip; which of the two, its content decides, not its name.

    Args:
        path: the file.
        expect: what the file must hold.
        limit: bytes that its elements may have.

    Returns:
        uint8, (N, H, W) for images, (N,) for labels.

    Raises:
        DataError: the file is missing, not IDX, of the other kind, too large, damaged, or as long as its header does
            not say.
        StorageError: the operating system refuses to read the file.
    """
    with opened(Path(path)) as stream:
        return read_idx_stream(stream, str(path), expect=expect, limit=limit)


def read_idx_stream(stream: IO[bytes], name: str, *, expect: Kind, limit: int = MAX_BYTES) -> np.ndarray:
    """Reads IDX, raw or gzip, from a seekable binary stream; `name` is what messages call it. See `read_idx`."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    start = stream.read(len(_GZIP_START))
    stream.seek(0)
    if start != _GZIP_START:
        return _parse(_Source(stream, name), expect, limit, size=size)
    with gzip.GzipFile(fileobj=stream) as unpacked:
        return _parse(_Source(unpacked, name), expect, limit, size=None)


def header(array: np.ndarray) -> bytes:
    """Returns the IDX header of a uint8 array, so that `header(a) + a.tobytes()` is the file that `read_idx` reads."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 0x08, array.ndim, *array.shape)


def content_md5(array: np.ndarray) -> str:
    """Returns the MD5 (hexadecimal) of the uncompressed IDX file that holds `array` (uint8)."""
    digest = hashlib.md5(header(array), usedforsecurity=False)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@dataclass
class _Source:
    """The uncompressed bytes of one file, with what is known about them for messages."""

    stream: IO[bytes] | gzip.GzipFile
    name: str
    position: int = 0
    promised: int | None = None  # whole length by the header, once that is read

    def fill(self, target: memoryview) -> int:
        """Fills `target` and returns the bytes written, fewer than its length only at the end of the file.

        Raises:
            DataError: the gzip stream breaks off or is damaged.
        """
        start = self.position
        try:
            for length in fill(self.stream, target):
                self.position += length
        except EOFError as error:
            expected = "" if self.promised is None else f" (expected {self.promised:,})"
            what = f"{self.name}: gzip ends early after {self.position:,} bytes{expected}"
            raise DataError(what, fix=_FETCH_AGAIN) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{self.name}: gzip data is damaged", str(error), _FETCH_AGAIN) from error
        return self.position - start


def _parse(source: _Source, expect: Kind, limit: int, *, size: int | None) -> np.ndarray:
    """Reads one IDX file; `size` is its length in bytes, None where only reading to the end can tell."""
    dimensions = _MAGIC[expect] & 0xFF
    start = bytearray(4 + 4 * dimensions)
    got = source.fill(memoryview(start))
    _refuse_foreign(bytes(start[:got]), source.name, expect)
    if got < len(start):
        what = f"{source.name}: has {got} bytes, the header alone of IDX {expect} has {len(start)}"
        raise DataError(what, fix=_FETCH_AGAIN)

    shape = struct.unpack(f">{dimensions}I", start[4:])
    count = math.prod(shape)
    refuse_large(source.name, shape, count, limit)
    says = f"{source.name}: header says {' x '.join(map(str, shape))} = {count:,} bytes"
    if size is not None and size != len(start) + count:
        raise DataError(f"{says}, file has {size - len(start):,}", fix=_FETCH_AGAIN)

    source.promised = len(start) + count
    array = np.empty(count, np.uint8)
    got = source.fill(array.data)
    if got < count:
        raise DataError(f"{says}, file has {got:,}", fix=_FETCH_AGAIN)
    # One byte more: a longer file shows itself, and at the true end gzip compares its checksum.
    if source.fill(memoryview(bytearray(1))):
        raise DataError(f"{says}, file has more", fix=_FETCH_AGAIN)
    return array.reshape(shape)


def _refuse_foreign(start: bytes, name: str, expect: Kind) -> None:
    """Raises `DataError` unless `start`, the first bytes of an uncompressed file, has the magic number of `expect`."""
    if not start:
        raise DataError(f"{name}: the file is empty", fix=_FETCH_AGAIN)
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        shown = start.decode("ascii", "replace").strip()
        why = "A server answered with a web page in place of the file"
        raise DataError(f"{name}: starts with {shown!r}: HTML or XML, not IDX", why, _FETCH_AGAIN)
    if start.startswith(_GZIP_START):
        raise DataError(f"{name}: starts with 1f8b once unpacked: not IDX", "It was compressed twice", "unpack it once")
    magic = int.from_bytes(start[:4], "big")
    if magic == _MAGIC[expect]:
        return
    wanted = f"expected 0x{_MAGIC[expect]:08x} ({expect})"
    for kind, other in _MAGIC.items():
        if magic == other:
            fix = "give the images and the labels the names of each other"
            raise DataError(f"{name}: IDX magic 0x{magic:08x} ({kind}), {wanted}", "Were the files swapped?", fix)
    raise DataError(
        f"{name}: starts with 0x{start[:4].hex()}, {wanted}", "It is not an IDX file of bytes", _FETCH_AGAIN
    )
