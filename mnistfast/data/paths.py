"""Data sets that lie where a path says: a file of one of the formats, or a folder, recognised by what is in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mnistfast.data import cifar, idx_set, published
from mnistfast.data.datasets import Dataset, Split, from_splits
from mnistfast.data.formats import FORMATS, suffix
from mnistfast.data.images import class_folders, read_class_folders
from mnistfast.data.reading import Arrays, present
from mnistfast.errors import DataError


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
        if present(batches / cifar.TEST_FILE):
            return cifar.load_cifar(batches, [batches])
    files = sorted(path for path in folder.iterdir() if suffix(path) and present(path))
    for end, form in FORMATS.items():
        found = [path for path in files if suffix(path) == end]
        if 0 < len(found) <= form.most_in_folder:
            return form.load(folder, found)
    read = partial(read_class_folders, resize=resize, gray=gray)
    parts = {part: folder / part for part in ("train", "test") if os.path.isdir(folder / part)}
    if len(parts) == 2 and class_folders(parts["train"]):
        return _from_class_folders(folder, parts["train"], parts["test"], read)
    if class_folders(folder):
        return _from_class_folders(folder, folder, None, read)
    recognised = [(end, form.most_in_folder) for end, form in FORMATS.items() if form.most_in_folder]
    known = ", ".join(f"{'one' if most == 1 else 'some'} {end}" for end, most in recognised)
    others = f"{known}, cifar-10-batches-bin, folders of images by class"
    what = f"no data set in {folder}: looked for {idx_set.listed(published.ROLES)}; {others}; missing: all of them"
    raise DataError(what, fix=idx_set.COMPLETE_IT)


def from_file(path: Path) -> Dataset | None:
    """Loads a data set that is one file; returns None where its name is that of no format.

    Raises:
        DataError: the file is damaged.
        StorageError: the operating system refuses to read it.
    """
    end = suffix(path)
    return FORMATS[end].load(path, [path]) if end else None


def _from_class_folders(
    source: Path, train_folder: Path, test_folder: Path | None, read: Callable[..., Arrays]
) -> Dataset:
    classes = tuple(path.name for path in class_folders(train_folder))
    train = Split(*read(train_folder, classes))
    if test_folder is None:
        return from_splits(source, train, classes=classes, why_none="There are no folders train and test")
    if not class_folders(test_folder):
        raise DataError(f"{test_folder}: no folder of a class with images in it")
    return from_splits(source, train, Split(*read(test_folder, classes, train.images.nbytes)), classes=classes)
