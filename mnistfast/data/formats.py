"""Readers of what users have besides IDX and images: .npz, CSV, CIFAR-10's binary archive.

Each returns checked arrays or raises `DataError` with one line. Nothing is unpickled, and no header makes a reader
allocate more than `idx.MAX_BYTES`.
"""

from __future__ import annotations

import io
import math
import os
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from mnistfast.data.idx import MAX_BYTES
from mnistfast.data.reading import Arrays, opened, reason, refuse_long, whole
from mnistfast.errors import DataError

CLASSES_MAX = 1000
"""Labels of npz and CSV files go from 0 to below this: more is a column mistaken for the labels."""

_NPZ_KEYS = (("x_train", "y_train"), ("x_test", "y_test"))
_CIFAR_RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes
CIFAR_FILES = ("data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin")
CIFAR_TEST = "test_batch.bin"

# What zipfile, tarfile, gzip and numpy's header parser raise on damaged input.
_DECODER_ERRORS: tuple[type[Exception], ...] = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError),
    *(ValueError, KeyError, OverflowError, TypeError, SyntaxError, IndexError),
)


# .npz


def read_npz(path: Path) -> tuple[Arrays, Arrays]:
    """Reads train and test from an .npz file with the keys of Keras: x_train, y_train, x_test, y_test.

    Images are whole numbers from 0 to 255, (N, H, W) or (N, H, W, C); labels whole numbers, (N,) or (N, 1).

    Raises:
        DataError: no such file, keys are missing, or the content is damaged, pickled or of another shape.
    """
    with opened(path) as stream:
        members = _npz_members(path, stream)
    train, test = ((_npz_images(path, x, members[x]), _npz_labels(path, y, members[y])) for x, y in _NPZ_KEYS)
    return train, test


def _npz_members(path: Path, stream: IO[bytes]) -> dict[str, np.ndarray]:
    wanted = [key for pair in _NPZ_KEYS for key in pair]
    try:
        with zipfile.ZipFile(stream) as archive:
            present = [name.removesuffix(".npy") for name in archive.namelist()]
            missing = [key for key in wanted if key not in present]
            if missing:
                what = f"{path}: lacks {', '.join(missing)}; it has {', '.join(present[:8]) or 'nothing'}"
                raise DataError(what, fix=f"save it as numpy.savez(file, {', '.join(f'{key}=...' for key in wanted)})")
            return {key: _npy(path, key, archive) for key in wanted}
    except _DECODER_ERRORS as error:
        raise DataError(f"{path}: not a whole .npz file", reason(error), "save it again") from error


def _npy(path: Path, key: str, archive: zipfile.ZipFile) -> np.ndarray:
    """Reads one array, never more bytes than its header says; the archive compares the checksum at the end."""
    with archive.open(f"{key}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(stream)
        if dtype.hasobject:
            raise DataError(f"{path}: {key} holds pickled objects: refused", "Loading them can run any code")
        size = math.prod(shape) * dtype.itemsize
        if size > MAX_BYTES or min(shape, default=0) < 0:
            raise DataError(f"{path}: {key} is {shape} of {dtype}: {size:,} bytes, {MAX_BYTES:,} are allowed")
        content = stream.read(size)
        if len(content) < size or stream.read(1):
            raise DataError(f"{path}: {key} is not as long as its header says ({size:,} bytes)", fix="save it again")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _npz_images(path: Path, key: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        raise DataError(f"{path}: {key} has shape {array.shape}", "Images are (N, H, W) or (N, H, W, 1 or 3)")
    return np.ascontiguousarray(_bytes(f"{path}: {key}", array).transpose(0, 3, 1, 2))


def _npz_labels(path: Path, key: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        why = "Labels are whole numbers, (N,) or (N, 1)"
        raise DataError(f"{path}: {key} has shape {array.shape} of {array.dtype}", why)
    return class_labels(f"{path}: {key}", array)


def _bytes(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "iu":
        raise DataError(f"{name} is {array.dtype}", "Pixels are whole numbers from 0 to 255", "save it as uint8")
    if array.dtype != np.uint8 and array.size and not 0 <= array.min() <= array.max() <= 255:
        raise DataError(f"{name} has values from {array.min()} to {array.max()}", "Pixels are from 0 to 255")
    return array.astype(np.uint8, copy=False)


def class_labels(name: str, labels: np.ndarray) -> np.ndarray:
    """Returns whole numbers as int64 labels; refuses those that can name no class, with the index of the first one."""
    wrong = np.flatnonzero((labels < 0) | (labels >= CLASSES_MAX))
    if len(wrong):
        what = f"{name}: label {labels[wrong[0]]} at index {wrong[0]}"
        raise DataError(what, f"Labels are from 0 to {CLASSES_MAX - 1}", "is it the label's column?")
    return labels.astype(np.int64)


# CSV


def read_csv(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads a CSV file in Kaggle's form: a line an image, its label, then its pixels row by row; a header or none.

    Returns:
        Images uint8 (N, 1, H, H) and labels int64 (N,), None where the header has no `label` first (Kaggle's test.csv).

    Raises:
        DataError: no such file, or lines that differ, or numbers that are no pixels or labels.
    """
    with opened(path) as stream:
        refuse_long(path, stream)
        first = stream.readline(1 << 16).decode("utf-8", "replace").strip().lstrip("\ufeff").replace('"', "")
        stream.seek(0)
        header = bool(first) and not first[0].isdigit()
        labelled = not header or first.split(",")[0].strip().lower() == "label"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an empty file: said below
                text = io.TextIOWrapper(stream, "utf-8-sig")
                table = np.loadtxt(text, np.int16, None, ",", skiprows=int(header), ndmin=2, quotechar='"')
        except (ValueError, OverflowError) as error:  # a text, a number beyond int16, a line of another length
            raise DataError(f"{path}: {reason(error)}", "Lines are a label and pixels, with commas between") from error
    side = math.isqrt(max(table.shape[1] - labelled, 0))
    if not len(table) or not side or side * side + labelled != table.shape[1]:
        what = f"{path}: {len(table):,} lines of {table.shape[1]} numbers"
        raise DataError(what, "A line is a label and the pixels of a square image, 785 numbers for 28x28")
    images = _bytes(f"{path}: a pixel", table[:, int(labelled) :]).reshape(-1, 1, side, side)
    return np.ascontiguousarray(images), class_labels(str(path), table[:, 0]) if labelled else None


# CIFAR-10


def read_cifar(path: Path) -> tuple[Arrays, Arrays]:
    """Reads CIFAR-10's binary version from its .tar.gz or from the folder that was unpacked of it.

    Raises:
        DataError: batches are missing, damaged or of another length.
    """
    names = [*CIFAR_FILES, CIFAR_TEST]
    batches: dict[str, bytes] = {}
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                with opened(path / name) as stream:
                    batches[name] = whole(path / name, stream)
    else:
        batches = _tar_members(path, names)
    missing = [name for name in names if name not in batches]
    if missing:
        raise DataError(f"no CIFAR-10 in {path}: missing: {', '.join(missing)}", fix="fetch the binary version again")
    train = [_cifar_batch(path, name, batches[name]) for name in CIFAR_FILES]
    images, labels = (np.concatenate(part) for part in zip(*train, strict=True))
    return (images, labels), _cifar_batch(path, CIFAR_TEST, batches[CIFAR_TEST])


def _tar_members(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with opened(path) as stream, tarfile.open(fileobj=stream, mode="r:gz") as archive:
            for member in archive:
                if member.size > MAX_BYTES // 4:  # also of those that are skipped: skipping unpacks them
                    raise DataError(f"{path}: {member.name} has {member.size:,} bytes, more than a CIFAR-10 batch")
                name = os.path.basename(member.name)
                if name in names and (packed := archive.extractfile(member)):
                    found[name] = packed.read()
    except _DECODER_ERRORS as error:
        raise DataError(f"{path}: not a whole .tar.gz", reason(error), "delete it and fetch it again") from error
    return found


def _cifar_batch(path: Path, name: str, content: bytes) -> Arrays:
    if not content or len(content) % _CIFAR_RECORD:
        what = f"{path}: {name} has {len(content):,} bytes, no multiple of {_CIFAR_RECORD:,}"
        raise DataError(what, "An image is a label and 3 x 32 x 32 bytes", "fetch it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)
