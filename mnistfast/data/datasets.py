"""Data sets by name or folder: where they are found, how they are fetched and what is verified of them.

`load` is the one door. A name is a function in `_NAMED`; what any source brings passes `_check_split` and `_assemble`,
so a new name or file format only has to bring its arrays.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mnistfast.data import fetch
from mnistfast.data.idx import Kind, content_md5, read_idx, read_idx_stream
from mnistfast.errors import DataError, StorageError, UsageError, nearest

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
"""Where MNIST is fetched, in this order. Its first home, yann.lecun.com, refuses downloads and is not asked."""

SAMPLE = Path(__file__).parent / "sample"
"""The folder of the shipped sample; its LICENSE.md says where the images come from."""

DIGITS = tuple("0123456789")


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
        name: "mnist", "sample" or the name of the folder.
        classes: the name of each label.
        train: what may be learnt from; validation is held out of it (`holdout`).
        test: for evaluation alone.
        source: the folder it was read from.
        notice: one line that the user should read, "" when there is nothing to say.
        hashes: MD5 of each decompressed file, by its role ("train-images", ...).
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    source: str
    notice: str
    hashes: dict[str, str]


class _File(NamedTuple):
    """One of the four files of an MNIST-like set."""

    name: str
    kind: Kind
    md5: str  # of MNIST's own, decompressed: mirrors compress differently, the content is one


_FILES = {
    "train-images": _File("train-images-idx3-ubyte", "images", "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels": _File("train-labels-idx1-ubyte", "labels", "a25bea736e30d166cdddb491f175f624"),
    "test-images": _File("t10k-images-idx3-ubyte", "images", "2646ac647ad5339dbf082846283269ea"),
    "test-labels": _File("t10k-labels-idx1-ubyte", "labels", "27ae3e4e09519cfbb04c329615203637"),
}
_OFFICIAL = {role: file.md5 for role, file in _FILES.items()}
_LOOKED_FOR = ", ".join(f"{file.name}[.gz]" for file in _FILES.values())
_PLACE_THEM = f"put {_LOOKED_FOR} in a folder and give it with --data FOLDER or in MNISTFAST_DATA"


def load(spec: str | None, *, offline: bool = False) -> Dataset:
    """Loads a data set.

    MNIST is looked for in the folder named by `$MNISTFAST_DATA` (or in `mnist/` in it), then in the cache folder
    (`$MNISTFAST_CACHE`, or the platform's, as ~/.cache/mnistfast), and is downloaded to that when neither has it.

    Args:
        spec: "mnist", "sample", a folder with the four IDX files (raw or .gz), or None: MNIST where it can be had, else
            the shipped sample, with a notice. A name goes before a folder of that name; write "./mnist" for the folder.
        offline: never open a connection.

    Raises:
        DataError: files are missing, damaged or contradict each other; a damaged file is never passed over in silence.
        StorageError: MNIST was asked for by name and no mirror delivers it, or a file cannot be read or written.
        UsageError: `spec` is neither a name nor an existing path.
    """
    if spec is None:
        return _mnist_or_sample(offline)
    if spec in _NAMED:
        return _NAMED[spec](offline)
    path = Path(os.path.expanduser(spec))
    # os.path answers False where Path's own methods raise: no permission, a name too long, an unknown ~user.
    if os.path.isdir(path):
        return _from_folder(path)
    if os.path.isfile(path):
        why = f"--data takes a name ({', '.join(_NAMED)}) or a folder with {_LOOKED_FOR}"
        raise DataError(f"{spec} is a file", why, f"--data {path.parent}")
    if path.name != spec:
        raise DataError(f"no folder {spec}", fix="check the path given with --data")
    hint = nearest(spec, _NAMED)
    raise UsageError(f"unknown data set '{spec}'{hint}", f"Names: {', '.join(_NAMED)}; no folder has this name either")


def holdout(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a stratified validation split: each class gives its share of `count`, rounded so that the sum is exact.

    Args:
        labels: int64 (N,).
        count: samples to hold out; 0 for none.
        seed: at least 0; the same labels, count and seed give the same split.

    Returns:
        Indices that train and indices held out, int64, each sorted; together they are 0..N-1, none twice. Every class
        keeps at least one sample to train on.

    Raises:
        UsageError: `count` is negative or leaves a class without training samples.
    """
    total = len(labels)
    classes, sizes = np.unique(labels, return_counts=True)
    most = total - len(classes)
    if not 0 <= count <= most:
        what = f"cannot hold out {count:,} of {total:,} training images for validation"
        raise UsageError(what, "Each class needs one to train on", f"a count from 0 to {max(most, 0):,}")
    # Largest remainder, in integers (all times `total`): round down, then add where the shortfall is greatest.
    shares = sizes * count // total
    for _ in range(count - shares.sum()):
        shortfall = np.where(shares < sizes - 1, sizes * count - shares * total, np.iinfo(np.int64).min)
        shares[np.argmax(shortfall)] += 1
    generator = np.random.default_rng(seed)
    held_out = np.zeros(total, bool)
    for label, share in zip(classes, shares, strict=True):
        held_out[generator.permutation(np.flatnonzero(labels == label))[:share]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def channel_stats(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and (population) standard deviation of pixel / 255 for each channel of uint8 (N, C, H, W).

    From a histogram of each channel in whole numbers, so the result is exact to the last rounding.

    Raises:
        DataError: a channel has one value everywhere (or no pixels): nothing to learn, and a deviation of 0.
    """
    means, stds = [], []
    for channel in range(images.shape[1]):
        histogram = np.zeros(256, np.int64)
        # In blocks: bincount widens its input to 8 bytes a pixel, 376 MB for all of MNIST, 26 for 4,096 images.
        for first in range(0, len(images), 4096):
            histogram += np.bincount(images[first : first + 4096, channel].reshape(-1), minlength=256)
        if np.count_nonzero(histogram) < 2:
            raise DataError(f"channel {channel} of the training images has the same value in every pixel")
        n, total, squares = (sum(int(c) * v**power for v, c in enumerate(histogram)) for power in (0, 1, 2))
        means.append(total / (255 * n))
        stds.append(math.sqrt(n * squares - total * total) / (255 * n))
    return tuple(means), tuple(stds)


def _mnist_or_sample(offline: bool) -> Dataset:
    """Loads MNIST, or the sample with a notice where MNIST is not at hand and cannot be downloaded."""
    files = _files_at_hand()
    if files is None:
        try:
            files = _download(offline)
        except StorageError as error:
            sample = _sample(offline)
            real = "For the whole set give a folder with MNIST's four IDX files by --data or MNISTFAST_DATA."
            return replace(sample, notice=f"{sample.notice} Reason: {error.what} ({error.why}). {real}")
    return _read_mnist(files)


def _mnist(offline: bool) -> Dataset:
    return _read_mnist(_files_at_hand() or _download(offline))


def _sample(offline: bool) -> Dataset:
    dataset = _read(_complete(SAMPLE), "sample", DIGITS)
    train, test = len(dataset.train.labels), len(dataset.test.labels)
    notice = (
        f"Using the shipped sample of MNIST: {train:,} images to train on; the {test:,} to test on are held-out "
        "images of MNIST's TRAINING set, not the official test set."
    )
    return replace(dataset, notice=notice)


def _from_folder(folder: Path) -> Dataset:
    dataset = _read(_complete(folder), folder.resolve().name, DIGITS)
    return replace(dataset, name="mnist") if dataset.hashes == _OFFICIAL else dataset


_NAMED: dict[str, Callable[[bool], Dataset]] = {"mnist": _mnist, "sample": _sample}


def _files_at_hand() -> dict[str, Path] | None:
    """Returns MNIST's four files by role from `$MNISTFAST_DATA` or the cache folder, None where neither has them."""
    if value := os.environ.get("MNISTFAST_DATA"):
        root = Path(os.path.expanduser(value))
        if not os.path.isdir(root):
            raise DataError(f"MNISTFAST_DATA is {value}", "There is no such folder", "correct it or unset it")
        for folder in (root, root / "mnist"):
            if _find(folder):
                return _complete(folder)
    cached = _find(_cache_folder())
    return cached if len(cached) == len(_FILES) else None


def _find(folder: Path) -> dict[str, Path]:
    """Returns those of the four files that `folder` has, by role; raw goes before .gz, which takes longer to read."""
    found = {}
    for role, file in _FILES.items():
        stems = (file.name, file.name.replace("-idx", ".idx"))  # some archives of MNIST have the dot
        candidates = (folder / f"{stem}{suffix}" for stem in stems for suffix in ("", ".gz"))
        if path := next((path for path in candidates if os.path.isfile(path)), None):
            found[role] = path
    return found


def _complete(folder: Path) -> dict[str, Path]:
    """Returns the four files of `folder` by role, or raises `DataError` that names the missing ones."""
    found = _find(folder)
    missing = [file.name for role, file in _FILES.items() if role not in found]
    if missing:
        what = f"no IDX data set in {folder}: looked for {_LOOKED_FOR}; missing: {', '.join(missing)}"
        raise DataError(what, fix="add the missing files or give another folder with --data")
    return found


def _cache_folder() -> Path:
    """Returns the folder that holds, or will hold, the downloaded MNIST."""
    root = os.environ.get("MNISTFAST_CACHE")
    if not root:
        import pooch  # 0.2 s that only a search of the platform's cache should pay

        root = pooch.os_cache("mnistfast")
    return Path(os.path.expanduser(root)) / "mnist"


def _download(offline: bool) -> dict[str, Path]:
    """Fetches into the cache folder what is missing there and returns its four files by role."""
    folder = _cache_folder()
    found = _find(folder)
    wanted = {f"{file.name}.gz": file for role, file in _FILES.items() if role not in found}
    if offline:
        what = f"no MNIST in MNISTFAST_DATA ({os.environ.get('MNISTFAST_DATA') or 'not set'}) nor in {folder}"
        raise StorageError(what, "--offline forbids a download", _PLACE_THEM)

    def verify(name: str, content: bytes, url: str) -> None:
        file = wanted[name]
        md5 = content_md5(read_idx_stream(io.BytesIO(content), url, expect=file.kind))
        if md5 != file.md5:
            raise DataError(f"{url}: not the official MNIST (md5 {md5}, expected {file.md5})")

    try:
        fetch.fetch(list(wanted), folder, MIRRORS, verify)
    except StorageError as error:
        raise StorageError(error.what, error.why, error.fix or _PLACE_THEM) from error
    return _complete(folder)


def _read_mnist(files: Mapping[str, Path]) -> Dataset:
    """Reads what goes by the name of MNIST; other content under its file names is used, but not in silence."""
    dataset = _read(files, "mnist", DIGITS)
    others = [f"{files[role]} (md5 {md5})" for role, md5 in dataset.hashes.items() if md5 != _OFFICIAL[role]]
    if not others:
        return dataset
    notice = f"Valid IDX but not the official MNIST: {', '.join(others)}. {dataset.notice}"
    return replace(dataset, notice=notice.strip())


def _read(files: Mapping[str, Path], name: str, classes: tuple[str, ...]) -> Dataset:
    """Reads four IDX files, given by role."""
    arrays = {role: read_idx(path, expect=_FILES[role].kind) for role, path in files.items()}
    hashes = {role: content_md5(array) for role, array in arrays.items()}
    splits = []
    for part in ("train", "test"):
        images, labels = f"{part}-images", f"{part}-labels"
        split = Split(arrays[images][:, np.newaxis], arrays[labels].astype(np.int64))
        _check_split(split, classes, str(files[images]), str(files[labels]))
        splits.append(split)
    return _assemble(name, classes, *splits, source=str(files["train-images"].parent), hashes=hashes)


def _check_split(split: Split, classes: tuple[str, ...], images_from: str, labels_from: str) -> None:
    """Raises `DataError` where images and labels contradict each other; on the host, which can tell the index."""
    if len(split.images) != len(split.labels):
        what = f"{len(split.images):,} images in {images_from} but {len(split.labels):,} labels in {labels_from}"
        raise DataError(what, fix="use the two files of one set")
    if split.images.size == 0:
        raise DataError(f"{images_from}: no images (shape {split.images.shape})", "The set is empty")
    wrong = np.flatnonzero((split.labels < 0) | (split.labels >= len(classes)))
    if len(wrong):
        what = f"{labels_from}: label {split.labels[wrong[0]]} at index {wrong[0]}"
        raise DataError(what, f"The set has {len(classes)} classes (0-{len(classes) - 1})", "correct the labels")


def _assemble(
    name: str, classes: tuple[str, ...], train: Split, test: Split, *, source: str, hashes: dict[str, str]
) -> Dataset:
    """Makes one data set of two checked splits that must fit each other."""
    sizes = [" x ".join(map(str, split.images.shape[1:])) for split in (train, test)]
    if sizes[0] != sizes[1]:
        raise DataError(f"{source}: training images are {sizes[0]}, test images {sizes[1]}", fix="use files of one set")
    absent = [classes[k] for k in np.flatnonzero(np.bincount(train.labels, minlength=len(classes)) == 0)]
    notice = f"The training set has no image of class {', '.join(absent)}." if absent else ""
    return Dataset(name, classes, train, test, source, notice, hashes)
