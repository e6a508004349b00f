"""Readers of what users have besides IDX and images: .npz, CSV, CIFAR-10's binary archive.

Each returns checked arrays or raises `DataError` with one line. Nothing is unpickled, and nothing that a file says
makes a reader take more memory than `reading` allows.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np

from mnistfast.data.archives import decoding, member, tar_members, unpacked, unzipped
from mnistfast.data.reading import (
    MAX_BYTES,
    MAX_IMAGES,
    Arrays,
    Cautious,
    length,
    opened,
    present,
    reason,
    refuse_large,
    short,
    whole,
)
from mnistfast.errors import DataError

CLASSES_MAX = 1000
"""Labels of npz and CSV files go from 0 to below this: more is a column mistaken for the labels."""

MAX_CSV_BYTES = 480 << 20
"""The longest CSV file, 6 times Kaggle's of MNIST: a refusal for its last line comes after about 8 s."""

MAX_LINE = 1 << 20
"""The longest line of one, in characters: images of 400 x 400 pixels, and whatever MNIST's columns may be called."""

_NPZ_KEYS = (("x_train", "y_train"), ("x_test", "y_test"))
_CIFAR_RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes
_CIFAR_BATCH = 20_000 * _CIFAR_RECORD  # the longest batch; CIFAR-10's have 10,000 images
CIFAR_FILES = ("data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin")
CIFAR_TEST = "test_batch.bin"


# .npz


def read_npz(path: Path) -> tuple[Arrays, Arrays]:
    """Reads train and test from an .npz file with the keys of Keras: x_train, y_train, x_test, y_test.

    Images are whole numbers from 0 to 255, (N, H, W) or (N, H, W, C); labels whole numbers, (N,) or (N, 1).

    Raises:
        DataError: no such file, keys are missing, or the content is damaged, pickled, too large or of another shape.
        StorageError: the operating system refuses to open it.
    """
    wanted = {key: kind for pair in _NPZ_KEYS for key, kind in zip(pair, (_npz_images, _npz_labels), strict=True)}
    arrays: dict[str, np.ndarray] = {}
    left = MAX_BYTES
    with decoding(f"{path}: not a whole .npz file", "save it again"), unzipped(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        missing = [key for key in wanted if key not in names]
        if missing:
            what = f"{path}: lacks {', '.join(missing)}; it has {short(', '.join(names)) or 'nothing'}"
            raise DataError(what, fix=f"save it as numpy.savez(file, {', '.join(f'{key}=...' for key in wanted)})")
        for key, kind in wanted.items():
            name = f"{path}: {key}"
            with member(archive, f"{key}.npy") as stream:
                array = _npy(name, stream, left)
            left -= array.nbytes
            arrays[key] = kind(name, array)
    train, test = ((arrays[x], arrays[y]) for x, y in _NPZ_KEYS)
    return train, test


def _npy(name: str, stream: Cautious, left: int) -> np.ndarray:
    """Reads one array of whole numbers, of no more than `left` bytes."""
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    if dtype.hasobject:
        raise DataError(f"{name} holds pickled objects: refused", "Loading them can run any code")
    if dtype.kind not in "iu":
        why = "Pixels are whole numbers from 0 to 255, labels whole numbers"
        raise DataError(f"{name} is {short(str(dtype))}", why, "save pixels as uint8")
    if min(shape, default=0) < 0:
        raise DataError(f"{name} has shape {short(str(shape))}")
    size = math.prod(shape) * dtype.itemsize
    refuse_large(name, shape, size, left)
    return unpacked(stream, size).view(dtype).reshape(shape, order="F" if fortran else "C")


def _npz_images(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        raise DataError(f"{name} has shape {short(str(array.shape))}", "Images are (N, H, W) or (N, H, W, 1 or 3)")
    if array.dtype != np.uint8 and array.size and not 0 <= array.min() <= array.max() <= 255:
        raise DataError(f"{name} has values from {array.min()} to {array.max()}", "Pixels are from 0 to 255")
    return array.astype(np.uint8, copy=False).transpose(0, 3, 1, 2)


def _npz_labels(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{name} has shape {short(str(array.shape))}", "Labels are (N,) or (N, 1)")
    return class_labels(name, array)


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
        DataError: no such file, or lines that differ or are too long or many, or numbers that are no pixels or labels.
        StorageError: the operating system refuses to open it.
    """
    with opened(path) as stream:
        length(path, stream, MAX_CSV_BYTES)
        try:
            return _table(path, _lines(path, stream))
        except (ValueError, OverflowError) as error:  # a text, a number too large, a line of another length
            raise DataError(f"{path}: {reason(error)}", "Lines are a label and pixels, with commas between") from error


def _lines(path: Path, stream: IO[bytes]) -> Iterator[str]:
    """Yields the lines of a text that are not empty. Raises `DataError` where there is too much of one, or of them."""
    text = io.TextIOWrapper(stream, "utf-8-sig")
    for number, line in enumerate(iter(partial(text.readline, MAX_LINE + 1), ""), 1):
        if number > MAX_IMAGES + 1:  # and a header
            raise DataError(f"{path}: has more than {MAX_IMAGES:,} lines", "A line is an image")
        if len(line) > MAX_LINE:
            what = f"{path}: line {number:,} is longer than the {MAX_LINE:,} characters allowed"
            raise DataError(what, "A line is a label and the pixels of one image")
        if line.count('"') % 2:  # numpy would look for its end in all that follows
            raise DataError(f"{path}: line {number:,} has a quote that does not end")
        if not line.isspace():
            yield line


def _table(path: Path, lines: Iterator[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns what `read_csv` does. Raises `ValueError` for what numpy refuses in the lines."""
    first = next(lines, "")
    text = first.replace('"', "").strip()
    header = bool(text) and not text[0].isdigit()
    labelled = not header or text.split(",")[0].strip().lower() == "label"
    if header:
        first = next(lines, "")
    columns = first.count(",") + 1
    side = math.isqrt(max(columns - labelled, 0))
    if not first or not side or side * side + labelled != columns:
        what = f"{path}: its first line has {columns if first else 0:,} numbers"
        raise DataError(what, "A line is a label and the pixels of a square image, 785 numbers for 28x28")
    # A byte a pixel from the start: int16 for all would take twice the memory.
    line = np.dtype([("label", np.int16, (int(labelled),)), ("pixels", np.uint8, (side * side,))])
    table = np.loadtxt(chain([first], lines), line, None, ",", ndmin=1, quotechar='"')
    images = table["pixels"].reshape(-1, 1, side, side)
    return images, class_labels(str(path), table["label"][:, 0]) if labelled else None


# CIFAR-10


def read_cifar(path: Path) -> tuple[Arrays, Arrays]:
    """Reads CIFAR-10's binary version from its .tar.gz or from the folder that was unpacked of it.

    Raises:
        DataError: batches are missing, damaged or of another length.
    """
    names = [*CIFAR_FILES, CIFAR_TEST]
    if path.is_dir():
        batches = {name: _cifar_file(path / name) for name in names if present(path / name)}
    else:
        with decoding(f"{path}: not a whole .tar.gz", "delete it and fetch it again"):
            batches = tar_members(path, names, _CIFAR_BATCH)
    missing = [name for name in names if name not in batches]
    if missing:
        raise DataError(f"no CIFAR-10 in {path}: missing: {', '.join(missing)}", fix="fetch the binary version again")
    train = [_cifar_batch(path, name, batches[name]) for name in CIFAR_FILES]
    images, labels = (np.concatenate(part) for part in zip(*train, strict=True))
    return (images, labels), _cifar_batch(path, CIFAR_TEST, batches[CIFAR_TEST])


def _cifar_file(path: Path) -> bytes:
    with opened(path) as stream:
        return whole(path, stream, _CIFAR_BATCH)


def _cifar_batch(path: Path, name: str, content: bytes) -> Arrays:
    if not content or len(content) % _CIFAR_RECORD:
        what = f"{path}: {name} has {len(content):,} bytes, no multiple of {_CIFAR_RECORD:,}"
        raise DataError(what, "An image is a label and 3 x 32 x 32 bytes", "fetch it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)
