"""Data sets by name or folder: where they are found, how they are fetched and what is verified of them.

`load` is the one door. A name is a function in `_NAMED`; what any source brings passes `_check_split` and `_assemble`,
so a new name or file format only has to bring its arrays.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from mnistfast.data import fetch, formats, published
from mnistfast.data.idx import Kind, content_md5, read_idx, read_idx_stream
from mnistfast.data.images import class_folders, fit_images, read_class_folders
from mnistfast.data.published import IdxSet
from mnistfast.data.reading import Arrays
from mnistfast.data.sampling import holdout
from mnistfast.errors import DataError, StorageError, UsageError, nearest

SAMPLE = Path(__file__).parent / "sample"
"""The folder of the shipped sample; its LICENSE.md says where the images come from."""

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
        name: one of `NAMES`, or the name of the folder or file.
        classes: the name of each label.
        train: what may be learnt from; validation is held out of it (`holdout`).
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
        spec: a name of `NAMES`; a folder with IDX files, an .npz file, CSV files, CIFAR-10's binary batches or a folder
            for each class; one of these files; or None: MNIST where it can be had, else the shipped sample, with a
            notice. A name goes before a folder of that name; write "./mnist" for the folder.
        offline: never open a connection.
        resize: make every image this many pixels wide and high.
        gray: make colour images grey.
        classes: keep the images of these classes only, named with commas between; their labels count from 0.

    Raises:
        DataError: files are missing, damaged or contradict each other; a damaged file is never passed over in silence.
        StorageError: a set was asked for by name and no mirror delivers it, or a file cannot be read or written.
        UsageError: `spec` is neither a name nor an existing path, or has none of a class of `classes`.
    """
    dataset = _load(spec, offline, partial(read_class_folders, resize=resize, gray=gray))
    dataset = _fitted(dataset, resize, gray)
    return dataset if classes is None else only(dataset, [name.strip() for name in classes.split(",")])


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
    hashes = _hashes("train", train) | _hashes("test", test)
    return replace(dataset, classes=kept, notice=notice, hashes=hashes, train=train, test=test)


def _load(spec: str | None, offline: bool, read_folders: Callable[..., Arrays]) -> Dataset:
    if spec is None:
        return _mnist_or_sample(offline)
    if spec in _NAMED:
        return _NAMED[spec](offline)
    path = Path(os.path.expanduser(spec))
    # os.path answers False where Path's own methods raise: no permission, a name too long, an unknown ~user.
    if os.path.isdir(path):
        return _from_folder(path, read_folders)
    if os.path.isfile(path):
        return _from_file(path)
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
    dataset = _read_idx_set(_complete(SAMPLE, published.ROLES), "sample", published.SETS["mnist"])
    train, test = len(dataset.train.labels), len(dataset.test.labels)
    notice = (
        f"Using the shipped sample of MNIST: {train:,} images to train on; the {test:,} to test on are held-out "
        "images of MNIST's TRAINING set, not the official test set."
    )
    return replace(dataset, notice=notice)


def _published(name: str, offline: bool) -> Dataset:
    """Loads the set of that name; other content under its file names is used, but not in silence."""
    found = published.SETS[name]
    files = _at_hand(name, found) or _download(name, found, offline)
    dataset = _read_idx_set(files, name, found)
    hashes = dataset.hashes
    others = [f"{files[role]} (md5 {hashes[role]})" for role, md5 in found.md5.items() if hashes[role] != md5]
    if not others:
        return dataset
    notice = f"Valid IDX but not the official {_title(name)}: {', '.join(others)}. {dataset.notice}"
    return replace(dataset, notice=notice.strip())


def _cifar10(offline: bool) -> Dataset:
    archive, md5 = published.CIFAR10_ARCHIVE
    cache = cache_folder("cifar10")
    folders = [*_environment_folders("cifar10", unique=True), cache]
    candidates = [folder / name for folder in folders for name in ("cifar-10-batches-bin", archive, ".")]
    for path in candidates:
        if path.is_file() or (path / formats.CIFAR_TEST).is_file():
            return _read_cifar(path)
    if offline:
        raise _forbidden("cifar10", cache, f"put {archive} there")
    fetch.fetch(
        [archive], cache, published.CIFAR10_MIRRORS, partial(_verify_whole, md5), max_bytes=published.CIFAR10_BYTES
    )
    return _read_cifar(cache / archive)


_NAMED: dict[str, Callable[[bool], Dataset]] = {
    **{name: partial(_published, name) for name in published.SETS},
    "cifar10": _cifar10,
    "sample": _sample,
}

NAMES = tuple(_NAMED)
"""What `--data` takes besides paths."""


# Paths


def _from_folder(folder: Path, read_folders: Callable[..., Arrays]) -> Dataset:
    """Loads what lies in `folder`, whatever of the formats it is."""
    if _find(folder, published.ROLES):
        return _read_idx_set(_complete(folder, published.ROLES), folder.resolve().name, published.SETS["mnist"])
    for batches in (folder, folder / "cifar-10-batches-bin"):
        if os.path.isfile(batches / formats.CIFAR_TEST):
            return _read_cifar(batches)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".npz", ".csv"))
    archives = [path for path in files if path.suffix.lower() == ".npz"]
    if len(archives) == 1:
        return _from_npz(archives[0])
    if tables := [path for path in files if path.suffix.lower() == ".csv"]:
        return _from_csv(folder, tables)
    parts = {part: folder / part for part in ("train", "test") if os.path.isdir(folder / part)}
    if len(parts) == 2 and class_folders(parts["train"]):
        return _from_class_folders(folder, parts["train"], parts["test"], read_folders)
    if class_folders(folder):
        return _from_class_folders(folder, folder, None, read_folders)
    _complete(folder, published.ROLES)
    raise AssertionError("_complete found four files where _find found none")


def _from_file(path: Path) -> Dataset:
    """Loads a data set that is one file."""
    if path.suffix.lower() == ".npz":
        return _from_npz(path)
    if path.suffix.lower() == ".csv":
        return _from_csv(path, [path])
    if path.name.endswith(".tar.gz"):
        return _read_cifar(path)
    why = (
        f"--data takes a name ({', '.join(_NAMED)}), an .npz or .csv file, or a folder, such as one with {_LOOKED_FOR}"
    )
    raise DataError(f"{path} is a file", why, f"--data {path.parent}")


def _from_npz(path: Path) -> Dataset:
    train, test = (Split(*arrays) for arrays in formats.read_npz(path))
    return _checked(path, _numbered(train, test), train, test)


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
            return _checked(source, _numbered(train, test), train, test)
    reason = f"{test_file.name} has no labels" if test_file else "There is one file"
    train, test = _cut(Split(images, labels))
    return _checked(source, _numbered(train, test), train, test, _cut_notice(reason, test))


def _from_class_folders(
    source: Path, train_folder: Path, test_folder: Path | None, read: Callable[..., Arrays]
) -> Dataset:
    classes = tuple(path.name for path in class_folders(train_folder))
    train = Split(*read(train_folder, classes))
    if test_folder is None:
        train, test = _cut(train)
        return _checked(source, classes, train, test, _cut_notice("There are no folders train and test", test))
    if not class_folders(test_folder):
        raise DataError(f"{test_folder}: no folder of a class with images in it")
    return _checked(source, classes, train, Split(*read(test_folder, classes)))


def _read_cifar(path: Path) -> Dataset:
    train, test = (Split(*arrays) for arrays in formats.read_cifar(path))
    dataset = _checked(path, published.CIFAR10_CLASSES, train, test)
    return replace(dataset, name="cifar10")


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


def _checked(source: Path, classes: tuple[str, ...], train: Split, test: Split, notice: str = "") -> Dataset:
    """Makes a data set of arrays that any reader brought; MNIST in another format is still called MNIST."""
    hashes: dict[str, str] = {}
    for part, split in (("train", train), ("test", test)):
        _check_split(split, classes, f"{source} ({part})", f"{source} ({part})")
        hashes |= _hashes(part, split)
    dataset = _assemble(
        source.resolve().name.removesuffix(source.suffix), classes, train, test, source=str(source), hashes=hashes
    )
    dataset = replace(dataset, notice=f"{notice} {dataset.notice}".strip())
    return _recognised(dataset)


def _hashes(part: str, split: Split) -> dict[str, str]:
    """Returns the MD5 of the IDX files that would hold `split`, so that it does not depend on the format."""
    images = split.images[:, 0] if split.images.shape[1] == 1 else split.images
    labels = split.labels.astype(np.uint8 if split.labels.max(initial=0) < 256 else ">i2").view(np.uint8)
    return {f"{part}-images": content_md5(images), f"{part}-labels": content_md5(labels)}


def _recognised(dataset: Dataset) -> Dataset:
    """Returns the data set under its published name and with its classes' names where its content is that."""
    for name, known in published.SETS.items():
        if known.md5 and known.md5 == dataset.hashes:
            return replace(dataset, name=name, classes=known.classes)
    return dataset


def _fitted(dataset: Dataset, resize: int | None, gray: bool) -> Dataset:
    train, test = (
        Split(fit_images(split.images, resize=resize, gray=gray), split.labels)
        for split in (dataset.train, dataset.test)
    )
    if train.images is dataset.train.images:
        return dataset
    hashes = _hashes("train", train) | _hashes("test", test)
    return replace(dataset, train=train, test=test, hashes=hashes)


# Files of published sets


_LOOKED_FOR = ", ".join(f"{name}[.gz]" for name in published.ROLES.values())


def _place_them(found: IdxSet) -> str:
    names = ", ".join(f"{name}[.gz]" for name in found.files.values())
    return f"put {names} in a folder and give it with --data FOLDER or in MNISTFAST_DATA"


def _environment_folders(name: str, *, unique: bool) -> list[Path]:
    """Returns where `$MNISTFAST_DATA` may hold the set `name`.

    The folder itself is one of them for MNIST and where the set's file names are its own (`unique`): the files of
    Fashion-MNIST and KMNIST are called as MNIST's.
    """
    value = os.environ.get("MNISTFAST_DATA")
    if not value:
        return []
    root = Path(os.path.expanduser(value))
    if not os.path.isdir(root):
        raise DataError(f"MNISTFAST_DATA is {value}", "There is no such folder", "correct it or unset it")
    own = unique or name in ("mnist", root.name)
    return [*([root] if own else []), root / name]


def _at_hand(name: str, found: IdxSet) -> dict[str, Path] | None:
    """Returns the set's four files by role from where they may lie on this machine, None where they do not."""
    unique = found.files is not published.ROLES
    for folder in _environment_folders(name, unique=unique):
        if _find(folder, found.files):
            return _complete(folder, found.files)
    for folder in (cache_folder(name), *map(Path, found.folders)):
        files = _find(folder, found.files)
        if len(files) == len(found.files):
            return files
    if found.archive:
        for folder in [*_environment_folders(name, unique=True), cache_folder("emnist")]:
            if os.path.isfile(folder / found.archive[0]):
                return _unpacked(folder / found.archive[0], name, found)
    return None


def _find(folder: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """Returns those of the four files that `folder` has, by role; raw goes before .gz, which takes longer to read."""
    found = {}
    for role, name in names.items():
        stems = (name, name.replace("-idx", ".idx"))  # some archives of MNIST have the dot
        candidates = (folder / f"{stem}{suffix}" for stem in stems for suffix in ("", ".gz"))
        if path := next((path for path in candidates if os.path.isfile(path)), None):
            found[role] = path
    return found


def _complete(folder: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """Returns the four files of `folder` by role, or raises `DataError` that names the missing ones."""
    found = _find(folder, names)
    missing = [name for role, name in names.items() if role not in found]
    if missing:
        looked_for = ", ".join(f"{name}[.gz]" for name in names.values())
        if found:
            what = f"no IDX data set in {folder}: looked for {looked_for}; missing: {', '.join(missing)}"
        else:
            others = "an .npz file, .csv files, cifar-10-batches-bin, folders of images by class"
            what = f"no data set in {folder}: looked for {looked_for}; {others}; missing: all of them"
        raise DataError(what, fix="add the missing files or give another folder with --data")
    return found


def cache_folder(name: str) -> Path:
    """Returns the folder that holds, or will hold, the downloaded set."""
    root = os.environ.get("MNISTFAST_CACHE")
    if not root:
        import pooch  # 0.2 s that only a search of the platform's cache should pay

        root = pooch.os_cache("mnistfast")
    return Path(os.path.expanduser(root)) / name


def _download(name: str, found: IdxSet, offline: bool) -> dict[str, Path]:
    """Fetches into the cache folder what is missing there and returns its four files by role."""
    folder = cache_folder(name)
    if offline:
        raise _forbidden(name, folder, _place_them(found))
    try:
        if found.archive:
            archive, md5 = found.archive
            folder, limit = cache_folder("emnist"), published.EMNIST_BYTES
            fetch.fetch([archive], folder, found.mirrors, partial(_verify_whole, md5), max_bytes=limit)
            return _unpacked(folder / archive, name, found)
        present = _find(folder, found.files)
        wanted = {f"{file}.gz": role for role, file in found.files.items() if role not in present}
        fetch.fetch(list(wanted), folder, found.mirrors, partial(_verify_idx, name, found, wanted))
    except StorageError as error:
        raise StorageError(error.what, error.why, error.fix or _place_them(found)) from error
    return _complete(folder, found.files)


def _forbidden(name: str, folder: Path, fix: str) -> StorageError:
    what = f"no {_title(name)} in MNISTFAST_DATA ({os.environ.get('MNISTFAST_DATA') or 'not set'}) nor in {folder}"
    return StorageError(what, "--offline forbids a download", fix)


def _title(name: str) -> str:
    return "MNIST" if name == "mnist" else name


def _verify_idx(name: str, found: IdxSet, roles: Mapping[str, str], file: str, content: bytes, url: str) -> None:
    role = roles[file]
    array = read_idx_stream(io.BytesIO(content), url, expect=_kind(role))
    if role in found.md5:
        md5 = content_md5(array)
        if md5 != found.md5[role]:
            raise DataError(f"{url}: not the official {_title(name)} (md5 {md5}, expected {found.md5[role]})")
    else:
        _verify_whole(found.served_md5[role], file, content, url)


def _verify_whole(expected: str, file: str, content: bytes, url: str) -> None:
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != expected:
        raise DataError(f"{url}: not the official {file} (md5 {md5}, expected {expected})")


def _unpacked(archive: Path, name: str, found: IdxSet) -> dict[str, Path]:
    """Takes the set's four files out of the archive of all of EMNIST, into the cache."""
    folder = cache_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            for file in found.files.values():
                member = next((entry for entry in opened.namelist() if entry.endswith(f"{file}.gz")), None)
                if member is None:
                    raise DataError(f"{archive}: has no {file}.gz", fix="delete it and fetch it again")
                fetch.write_atomically(folder / f"{file}.gz", opened.read(member))
    except zipfile.BadZipFile as error:
        raise DataError(f"{archive}: not a whole .zip file", str(error), "delete it and fetch it again") from error
    return _complete(folder, found.files)


def _kind(role: str) -> Kind:
    return "images" if role.endswith("images") else "labels"


def _read_idx_set(files: Mapping[str, Path], name: str, like: IdxSet) -> Dataset:
    """Reads four IDX files, given by role, that hold their classes and images as the set `like` does."""
    arrays = {role: read_idx(path, expect=_kind(role)) for role, path in files.items()}
    hashes = {role: content_md5(array) for role, array in arrays.items()}
    splits = []
    for part in ("train", "test"):
        images, labels = f"{part}-images", f"{part}-labels"
        pixels = arrays[images].swapaxes(1, 2) if like.transposed else arrays[images]
        upright = np.ascontiguousarray(pixels[:, np.newaxis])
        split = Split(upright, arrays[labels].astype(np.int64) - like.first_label)
        _check_split(split, like.classes, str(files[images]), str(files[labels]), like.first_label)
        splits.append(split)
    source = str(files["train-images"].parent)
    return _recognised(_assemble(name, like.classes, *splits, source=source, hashes=hashes))


def _check_split(
    split: Split, classes: tuple[str, ...], images_from: str, labels_from: str, first_label: int = 0
) -> None:
    """Raises `DataError` where images and labels contradict each other; on the host, which can tell the index."""
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
