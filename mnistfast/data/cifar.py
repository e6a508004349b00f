"""CIFAR-10's binary version: its archive, or the folder that was unpacked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mnistfast.data.archives import tar_members
from mnistfast.data.datasets import Dataset, Split, from_splits
from mnistfast.data.published import CIFAR10_CLASSES
from mnistfast.data.reading import Arrays, opened, present, whole
from mnistfast.errors import DataError
from mnistfast.files.decoding import decoding_as

TRAIN_FILES = ("data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin")
TEST_FILE = "test_batch.bin"
_RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes
_BATCH = 20_000 * _RECORD  # the longest batch; CIFAR-10's have 10,000 images


def load_cifar(_: Path, files: Sequence[Path]) -> Dataset:
    """Loads the one archive, or unpacked folder, of `files`. Raises as `read_cifar`."""
    (path,) = files
    train, test = (Split(*arrays) for arrays in read_cifar(path))
    return replace(from_splits(path, train, test, classes=CIFAR10_CLASSES), name="cifar10")


def read_cifar(path: Path) -> tuple[Arrays, Arrays]:
    """Reads CIFAR-10's binary version from its .tar.gz or from the folder that was unpacked of it.

    Raises:
        DataError: batches are missing, damaged or of another length.
    """
    names = [*TRAIN_FILES, TEST_FILE]
    if path.is_dir():
        batches = {name: _file(path / name) for name in names if present(path / name)}
    else:
        with decoding_as(DataError, f"{path}: not a whole .tar.gz", "delete it and fetch it again"):
            batches = tar_members(path, names, _BATCH)
    missing = [name for name in names if name not in batches]
    if missing:
        raise DataError(f"no CIFAR-10 in {path}: missing: {', '.join(missing)}", fix="fetch the binary version again")
    train = [_batch(path, name, batches[name]) for name in TRAIN_FILES]
    images, labels = (np.concatenate(part) for part in zip(*train, strict=True))
    return (images, labels), _batch(path, TEST_FILE, batches[TEST_FILE])


def _file(path: Path) -> bytes:
    with opened(path) as stream:
        return whole(path, stream, _BATCH)


def _batch(path: Path, name: str, content: bytes) -> Arrays:
    if not content or len(content) % _RECORD:
        what = f"{path}: {name} has {len(content):,} bytes, no multiple of {_RECORD:,}"
        raise DataError(what, "An image is a label and 3 x 32 x 32 bytes", "fetch it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)
