"""Data sets that lie where a path says: a file of one of the formats, or a folder, recognised by what is in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from mnistfast.data import formats, idx_set, published
from mnistfast.data.datasets import Dataset, Split, from_splits
from mnistfast.data.images import class_folders, read_class_folders
from mnistfast.data.reading import Arrays, present
from mnistfast.data.sampling import holdout
from mnistfast.errors import DataError

TEST_SHARE = 5
"""One image in so many is held out as the test set of a source that has none, stratified, with seed 0."""


def from_folder(folder: Path, *, resize: int | None, gray: bool) -> Dataset:
    """Loads what lies in `folder`, whatever of the formats it is.

    Args:
        folder: an existing folder.
        resize: make images of class folders, which may differ in size, this many pixels wide and high.
        gray: make them grey.

    Raises:
        DataError: nothing that is known lies there, or what does is damaged.
        StorageError: the operating system refuses to read it.
    """
    if idx_set.find(folder, published.ROLES):
        complete = idx_set.complete(folder, published.ROLES)
        return idx_set.read(complete, folder.resolve().name, published.SETS["mnist"])
    for batches in (folder, folder / "cifar-10-batches-bin"):
        if present(batches / formats.CIFAR_TEST):
            return from_cifar(batches)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".npz", ".csv") and present(path))
    archives = [path for path in files if path.suffix.lower() == ".npz"]
    if len(archives) == 1:
        return _from_npz(archives[0])
    if tables := [path for path in files if path.suffix.lower() == ".csv"]:
        return _from_csv(folder, tables)
    read = partial(read_class_folders, resize=resize, gray=gray)
    parts = {part: folder / part for part in ("train", "test") if os.path.isdir(folder / part)}
    if len(parts) == 2 and class_folders(parts["train"]):
        return _from_class_folders(folder, parts["train"], parts["test"], read)
    if class_folders(folder):
        return _from_class_folders(folder, folder, None, read)
    raise idx_set.incomplete(folder, published.ROLES, {})


def from_file(path: Path) -> Dataset | None:
    """Loads a data set that is one file; returns None where its name is that of no format.

    Raises:
        DataError: the file is damaged.
        StorageError: the operating system refuses to read it.
    """
    if path.suffix.lower() == ".npz":
        return _from_npz(path)
    if path.suffix.lower() == ".csv":
        return _from_csv(path, [path])
    if path.name.endswith(".tar.gz"):
        return from_cifar(path)
    return None


def from_cifar(path: Path) -> Dataset:
    """Loads CIFAR-10's archive, or the folder that was unpacked of it.

    Raises:
        DataError: batches are missing or damaged.
    """
    train, test = (Split(*arrays) for arrays in formats.read_cifar(path))
    dataset = from_splits(path, published.CIFAR10_CLASSES, train, test)
    return replace(dataset, name="cifar10")


def _from_npz(path: Path) -> Dataset:
    train, test = (Split(*arrays) for arrays in formats.read_npz(path))
    return from_splits(path, _numbered(train, test), train, test)


def _from_csv(source: Path, tables: Sequence[Path]) -> Dataset:
    """Loads CSV files: a train and a test file by their names, or one whose test images are held out of it."""
    train_file, test_file = (
        next((path for path in tables if part in path.stem.lower()), None) for part in ("train", "test")
    )
    train_file = train_file or tables[0]
    images, labels = formats.read_csv(train_file)
    if labels is None:
        raise DataError(f"{train_file}: its header has no label", "The first column of training images is their label")
    if test_file and test_file != train_file:
        test_images, test_labels = formats.read_csv(test_file)
        if test_labels is not None:
            train, test = Split(images, labels), Split(test_images, test_labels)
            return from_splits(source, _numbered(train, test), train, test)
    reason = f"{test_file.name} has no labels" if test_file else "There is one file"
    train, test = _cut(Split(images, labels))
    return from_splits(source, _numbered(train, test), train, test, _cut_notice(reason, test))


def _from_class_folders(
    source: Path, train_folder: Path, test_folder: Path | None, read: Callable[..., Arrays]
) -> Dataset:
    classes = tuple(path.name for path in class_folders(train_folder))
    train = Split(*read(train_folder, classes))
    if test_folder is None:
        train, test = _cut(train)
        return from_splits(source, classes, train, test, _cut_notice("There are no folders train and test", test))
    if not class_folders(test_folder):
        raise DataError(f"{test_folder}: no folder of a class with images in it")
    return from_splits(source, classes, train, Split(*read(test_folder, classes, train.images.nbytes)))


def _cut(split: Split) -> tuple[Split, Split]:
    """Holds a test set out of `split`: see `TEST_SHARE`."""
    if len(split.labels) < TEST_SHARE * len(np.unique(split.labels)):
        what = f"{len(split.labels):,} images are too few to hold a test set out of them"
        raise DataError(what, f"{TEST_SHARE} of each class are needed", "folders train and test, or two files")
    kept, held = holdout(split.labels, len(split.labels) // TEST_SHARE, seed=0)
    return Split(split.images[kept], split.labels[kept]), Split(split.images[held], split.labels[held])


def _cut_notice(reason: str, test: Split) -> str:
    drawn = f"{len(test.labels):,}, the same share of each class, drawn with seed 0"
    return f"{reason}: one image in {TEST_SHARE} ({drawn}) is held out as the test set."


def _numbered(train: Split, test: Split) -> tuple[str, ...]:
    """Returns names for classes that are only numbers."""
    return tuple(str(k) for k in range(1 + max(int(split.labels.max(initial=1)) for split in (train, test))))
