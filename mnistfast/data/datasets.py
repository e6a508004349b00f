"""What a data set is, and what is verified of it.

Whatever source its arrays come from, they pass `check_split` and `assemble`, so a new one only has to bring its arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mnistfast.data import published
from mnistfast.data.idx import content_md5
from mnistfast.data.images import fit_images
from mnistfast.errors import DataError, UsageError, nearest


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,), indices into the classes of the data set.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set whose two splits fit each other: same image size, every label a class, no split empty.

    Attributes:
        name: a published one, "sample", or the name of the folder or file.
        classes: the name of each label.
        train: what may be learnt from; validation is held out of it (`sampling.holdout`).
        test: for evaluation alone.
        source: the folder or file it was read from.
        notice: one line that the user should read, "" when there is nothing to say.
        hashes: MD5 of the uncompressed IDX files that hold it, or would, by their roles ("train-images", ...).
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    source: str
    notice: str
    hashes: dict[str, str]


def from_splits(source: Path, classes: tuple[str, ...], train: Split, test: Split, notice: str = "") -> Dataset:
    """Makes a data set, called as `source` without its suffix, of what any reader brought.

    Args:
        source: the file or folder it was read from.
        classes: the name of each label.
        train: to learn from.
        test: for evaluation.
        notice: what the user should know of how it was read.

    Raises:
        DataError: images and labels, or the two splits, contradict each other.
    """
    for part, split in (("train", train), ("test", test)):
        check_split(split, classes, f"{source} ({part})", f"{source} ({part})")
    name = source.resolve().name.removesuffix(source.suffix)
    dataset = assemble(name, classes, train, test, source=str(source))
    return replace(dataset, notice=f"{notice} {dataset.notice}".strip())


def check_split(
    split: Split, classes: tuple[str, ...], images_from: str, labels_from: str, first_label: int = 0
) -> None:
    """Raises `DataError` where images and labels contradict each other; on the host, which can tell the index.

    Args:
        split: what was read.
        classes: the name of each label.
        images_from: what messages call the place the images were read from.
        labels_from: the same of the labels.
        first_label: what the file calls label 0.
    """
    if len(split.images) != len(split.labels):
        what = f"{len(split.images):,} images in {images_from} but {len(split.labels):,} labels in {labels_from}"
        raise DataError(what, fix="use the two files of one set")
    if split.images.size == 0:
        raise DataError(f"{images_from}: no images (shape {split.images.shape})", "The set is empty")
    wrong = np.flatnonzero((split.labels < 0) | (split.labels >= len(classes)))
    if len(wrong):
        what = f"{labels_from}: label {split.labels[wrong[0]] + first_label} at index {wrong[0]}"
        last = len(classes) - 1 + first_label
        raise DataError(what, f"The set has {len(classes)} classes ({first_label}-{last})", "correct the labels")


def assemble(
    name: str,
    classes: tuple[str, ...],
    train: Split,
    test: Split,
    *,
    source: str,
    hashes: dict[str, str] | None = None,
) -> Dataset:
    """Makes one data set of two checked splits; MNIST under another name or in another format is called MNIST.

    The arguments are the attributes of `Dataset`; without `hashes` they are computed. Images that lie in another order
    in memory are copied here, after all that a file can be refused for.

    Raises:
        DataError: the images of the two splits differ in size.
    """
    sizes = [" x ".join(map(str, split.images.shape[1:])) for split in (train, test)]
    if sizes[0] != sizes[1]:
        raise DataError(f"{source}: training images are {sizes[0]}, test images {sizes[1]}", fix="use files of one set")
    train, test = (Split(np.ascontiguousarray(split.images), split.labels) for split in (train, test))
    absent = [classes[k] for k in np.flatnonzero(np.bincount(train.labels, minlength=len(classes)) == 0)]
    notice = f"The training set has no image of class {', '.join(absent)}." if absent else ""
    return _recognised(Dataset(name, classes, train, test, source, notice, hashes or _hashes(train, test)))


def _recognised(dataset: Dataset) -> Dataset:
    """Returns the data set under its published name and with its classes' names where its content is that."""
    for name, known in published.SETS.items():
        if known.md5 and known.md5 == dataset.hashes:
            return replace(dataset, name=name, classes=known.classes)
    return dataset


def only(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """Returns `dataset` with the images of the classes `names` alone, in its own order of classes.

    Raises:
        DataError: a split has no image of them.
        UsageError: there is no such class.
    """
    for name in names:
        if name not in dataset.classes:
            known = nearest(name, dataset.classes)
            raise UsageError(f"{dataset.name} has no class {name!r}{known}", f"It has {', '.join(dataset.classes)}")
    kept = tuple(name for name in dataset.classes if name in names)
    numbers = np.full(len(dataset.classes), -1)
    numbers[[dataset.classes.index(name) for name in kept]] = np.arange(len(kept))
    splits = []
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        labels = numbers[split.labels]
        splits.append(Split(split.images[labels >= 0], labels[labels >= 0]))
        if not len(splits[-1].labels):
            raise DataError(f"{dataset.source} ({part}): no image of the classes {', '.join(kept)}")
    train, test = splits
    notice = f"{dataset.notice} Only the classes {', '.join(kept)}: {len(train.labels):,} training images.".strip()
    return replace(dataset, classes=kept, notice=notice, hashes=_hashes(train, test), train=train, test=test)


def fitted(dataset: Dataset, *, resize: int | None, gray: bool) -> Dataset:
    """Returns `dataset` with its images made grey and `resize` pixels wide and high, each where asked for."""
    train, test = (
        Split(fit_images(split.images, resize=resize, gray=gray), split.labels)
        for split in (dataset.train, dataset.test)
    )
    if train.images is dataset.train.images:
        return dataset
    return replace(dataset, train=train, test=test, hashes=_hashes(train, test))


def _hashes(train: Split, test: Split) -> dict[str, str]:
    """Returns the MD5 of the IDX files that would hold the splits, so that it does not depend on the format."""
    found: dict[str, str] = {}
    for part, split in (("train", train), ("test", test)):
        images = split.images[:, 0] if split.images.shape[1] == 1 else split.images
        labels = split.labels.astype(np.uint8 if split.labels.max(initial=0) < 256 else ">i2").view(np.uint8)
        found |= {f"{part}-images": content_md5(images), f"{part}-labels": content_md5(labels)}
    return found
