"""Where a data set comes from: a name or a path.

`load` is the one door. A name is a function in `_NAMED`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from mnistfast.data import idx_set, obtain, paths, published
from mnistfast.data.cifar import load_cifar
from mnistfast.data.datasets import Dataset, fitted, only
from mnistfast.data.formats import FORMATS
from mnistfast.data.reading import present
from mnistfast.errors import DataError, StorageError, UsageError, nearest

SAMPLE = Path(__file__).parent / "sample"
"""The folder of the shipped sample; its LICENSE.md says where the images come from."""


def load(
    spec: str | None,
    *,
    offline: bool = False,
    resize: int | None = None,
    gray: bool = False,
    classes: str | None = None,
) -> Dataset:
    """Loads a data set.

    A published set is looked for in `$MNISTFAST_DATA` (in the folder of its name in it; MNIST also in the folder
    itself), in the cache folder (`$MNISTFAST_CACHE`, or the platform's, as ~/.cache/mnistfast), where distributions
    install it, and is downloaded to the cache when none of them has it.

    Args:
        spec: a name of `NAMES`; a file of `formats.FORMATS`; a folder with some of these, with IDX files, CIFAR-10's
            binary batches or with a folder for each class; or None: MNIST where it can be had, else the shipped sample,
            with a notice. A name goes before a folder of that name; write "./mnist" for the folder.
        offline: never open a connection.
        resize: make every image this many pixels wide and high.
        gray: make colour images grey.
        classes: keep the images of these classes only, named with commas between; their labels count from 0.

    Raises:
        DataError: files are missing, damaged or contradict each other; a damaged file is never passed over in silence.
        StorageError: a set was asked for by name and no mirror delivers it, or a file cannot be read or written.
        UsageError: `spec` is neither a name nor an existing path, or has none of a class of `classes`.
    """
    dataset = fitted(_load(spec, offline, resize=resize, gray=gray), resize=resize, gray=gray)
    return dataset if classes is None else only(dataset, [name.strip() for name in classes.split(",")])


def _load(spec: str | None, offline: bool, *, resize: int | None, gray: bool) -> Dataset:
    if spec is None:
        return _mnist_or_sample(offline)
    if spec in _NAMED:
        return _NAMED[spec](offline)
    path = Path(os.path.expanduser(spec))
    # os.path answers False where Path's own methods raise: no permission, a name too long, an unknown ~user.
    if os.path.isdir(path):
        return paths.from_folder(path, resize=resize, gray=gray)
    if present(path):
        dataset = paths.from_file(path)
        if dataset is None:
            known = f"a file ({', '.join(FORMATS)}), or a folder, such as one with {idx_set.listed(published.ROLES)}"
            why = f"--data takes a name ({', '.join(_NAMED)}), {known}"
            raise DataError(f"{path} is a file", why, f"--data {path.parent}")
        return dataset
    if path.name != spec:
        raise DataError(f"no folder or file {spec}", fix="check the path given with --data")
    hint = nearest(spec, _NAMED)
    raise UsageError(f"unknown data set '{spec}'{hint}", f"Names: {', '.join(_NAMED)}; no folder has this name either")


def anywhere(spec: str) -> str:
    """Returns what `load` finds the same data by from any working folder."""
    return spec if spec in NAMES else str(Path(spec).expanduser().resolve())


def _mnist_or_sample(offline: bool) -> Dataset:
    """Loads MNIST, or the sample with a notice where MNIST is not at hand and cannot be downloaded."""
    try:
        return _published("mnist", offline)
    except StorageError as error:
        sample = _sample(offline)
        real = "For the whole set give a folder with MNIST's four IDX files by --data or MNISTFAST_DATA."
        return replace(sample, notice=f"{sample.notice} Reason: {error.what} ({error.why}). {real}")


def _sample(offline: bool) -> Dataset:
    dataset = idx_set.read(idx_set.complete(SAMPLE, published.ROLES), "sample", published.SETS["mnist"])
    train, test = len(dataset.train.labels), len(dataset.test.labels)
    notice = (
        f"Using the shipped sample of MNIST: {train:,} images to train on; the {test:,} to test on are held-out "
        "images of MNIST's TRAINING set, not the official test set."
    )
    return replace(dataset, notice=notice)


def _published(name: str, offline: bool) -> Dataset:
    """Loads the set of that name; other content under its file names is used, but not in silence."""
    found = published.SETS[name]
    files = obtain.idx_files(name, offline=offline)
    dataset = idx_set.read(files, name, found)
    hashes = dataset.hashes
    others = [f"{files[role]} (md5 {hashes[role]})" for role, md5 in found.md5.items() if hashes[role] != md5]
    if not others:
        return dataset
    notice = f"Valid IDX but not the official {obtain.title(name)}: {', '.join(others)}. {dataset.notice}"
    return replace(dataset, notice=notice.strip())


def _cifar10(offline: bool) -> Dataset:
    return load_cifar(path := obtain.cifar10(offline=offline), [path])


_NAMED: dict[str, Callable[[bool], Dataset]] = {
    **{name: partial(_published, name) for name in published.SETS},
    "cifar10": _cifar10,
    "sample": _sample,
}

NAMES = tuple(_NAMED)
"""What `--data` takes besides paths."""
