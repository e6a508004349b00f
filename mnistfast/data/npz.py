"""Data sets in .npz files, with the keys of Keras. Nothing is unpickled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mnistfast.data.archives import member, unpacked, unzipped
from mnistfast.data.datasets import Dataset, Split, from_splits
from mnistfast.data.reading import MAX_BYTES, Arrays, Cautious, class_labels, refuse_large
from mnistfast.errors import DataError
from mnistfast.files.decoding import decoding_as, short

_KEYS = (("x_train", "y_train"), ("x_test", "y_test"))


def load_npz(_: Path, files: Sequence[Path]) -> Dataset:
    """Loads the one file of `files`, under its name. Raises as `read_npz`."""
    (path,) = files
    return from_splits(path, *(Split(*arrays) for arrays in read_npz(path)))


def read_npz(path: Path) -> tuple[Arrays, Arrays]:
    """Reads train and test from an .npz file with the keys of Keras: x_train, y_train, x_test, y_test.

    Images are whole numbers from 0 to 255, (N, H, W) or (N, H, W, C); labels whole numbers, (N,) or (N, 1).

    Raises:
        DataError: no such file, keys are missing, or the content is damaged, pickled, too large or of another shape.
        StorageError: the operating system refuses to open it.
    """
    wanted = {key: kind for pair in _KEYS for key, kind in zip(pair, (_images, _labels), strict=True)}
    arrays: dict[str, np.ndarray] = {}
    left = MAX_BYTES
    with decoding_as(DataError, f"{path}: not a whole .npz file", "save it again"), unzipped(path) as archive:
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
    train, test = ((arrays[x], arrays[y]) for x, y in _KEYS)
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


def _images(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        raise DataError(f"{name} has shape {short(str(array.shape))}", "Images are (N, H, W) or (N, H, W, 1 or 3)")
    if array.dtype != np.uint8 and array.size and not 0 <= array.min() <= array.max() <= 255:
        raise DataError(f"{name} has values from {array.min()} to {array.max()}", "Pixels are from 0 to 255")
    return array.astype(np.uint8, copy=False).transpose(0, 3, 1, 2)


def _labels(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{name} has shape {short(str(array.shape))}", "Labels are (N,) or (N, 1)")
    return class_labels(name, array)
