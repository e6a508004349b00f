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
from mnistfast.data.sampling import holdout
from mnistfast.errors import DataError, UsageError, nearest

TEST_SHARE = 5
"""One image in so many is held out as the test set of a source that has none, stratified, with seed 0."""


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


def from_splits(
    source: Path,
    train: Split,
    test: Split | None = None,
    *,
    classes: tuple[str, ...] | None = None,
    why_none: str = "There is one file",
) -> Dataset:
    """Makes a data set, called as `source` without its suffix, of what any reader brought.

    Args:
        source: the file or folder it was read from.
        train: to learn from.
        test: for evaluation; None holds a part of `train` out: see `TEST_SHARE`.
        classes: the name of each label; None where labels are only numbers.
        why_none: why there is no `test`.

    Raises:
        DataError: images and labels, or the two splits, contradict each other, or too few to hold a test set out.
    """
    notice = ""
    if test is None:
        train, test = _cut(train)
        drawn = f"{len(test.labels):,}, the same share of each class, drawn with seed 0"
        notice = f"{why_none}: one image in {TEST_SHARE} ({drawn}) is held out as the test set."
    classes = classes or _numbered(train, test)
    for part, split in (("train", train), ("test", test)):
        check_split(split, classes, f"{source} ({part})", f"{source} ({part})")
    name = source.resolve().name.removesuffix(source.suffix)
    dataset = assemble(name, classes, train, test, source=str(source))
    return replace(dataset, notice=f"{notice} {dataset.notice}".strip())


def _cut(split: Split) -> tuple[Split, Split]:
    """Holds a test set out of `split`."""
    if len(split.labels) < TEST_SHARE * len(np.unique(split.labels)):
        what = f"{len(split.labels):,} images are too few to hold a test set out of them"
        raise DataError(what, f"{TEST_SHARE} of each class are needed", "folders train and test, or two files")
    kept, held = holdout(split.labels, len(split.labels) // TEST_SHARE, seed=0)
    return Split(split.images[kept], split.labels[kept]), Split(split.images[held], split.labels[held])


def _numbered(train: Split, test: Split) -> tuple[str, ...]:
    """Returns names for classes that are only numbers."""
    return tuple(str(k) for k in range(1 + max(int(split.labels.max(initial=1)) for split in (train, test))))


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
