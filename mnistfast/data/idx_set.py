"""The form of MNIST and its kin: four IDX files in a folder, found by their names and read as one data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mnistfast.data.datasets import Dataset, Split, assemble, check_split
from mnistfast.data.idx import Kind, content_md5, read_idx
from mnistfast.data.published import IdxSet
from mnistfast.data.reading import MAX_BYTES, present
from mnistfast.errors import DataError

COMPLETE_IT = "add the missing files or give another folder with --data"
"""What helps where a folder lacks some or all files of a data set."""


def listed(names: Mapping[str, str]) -> str:
    """Returns the four file names, given by role, as messages show them."""
    return ", ".join(f"{name}[.gz]" for name in names.values())


def find(folder: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """Returns those of the four files that `folder` has, by role; raw goes before .gz, which takes longer to read.

    Args:
        folder: where to look; it need not exist.
        names: the file names by role, without .gz.
    """
    found = {}
    for role, name in names.items():
        stems = (name, name.replace("-idx", ".idx"))  # some archives of MNIST have the dot
        candidates = (folder / f"{stem}{suffix}" for stem in stems for suffix in ("", ".gz"))
        if path := next((path for path in candidates if present(path)), None):
            found[role] = path
    return found


def complete(folder: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """Returns the four files of `folder` by role; `find` says what the arguments are.

    Raises:
        DataError: some are missing; it names them.
    """
    found = find(folder, names)
    if len(found) < len(names):
        missing = ", ".join(name for role, name in names.items() if role not in found)
        raise DataError(f"no IDX data set in {folder}: looked for {listed(names)}; missing: {missing}", fix=COMPLETE_IT)
    return found


def kind(role: str) -> Kind:
    """Returns what the IDX file of that role holds."""
    return "images" if role.endswith("images") else "labels"


def read(files: Mapping[str, Path], name: str, like: IdxSet) -> Dataset:
    """Reads four IDX files as one data set.

    Args:
        files: the files by role, as `complete` returns them.
        name: what to call the set, unless its content is a published one's.
        like: the set that holds its classes and images in the same way.

    Raises:
        DataError: a file is damaged, or they contradict each other.
        StorageError: the operating system refuses to read one.
    """
    arrays: dict[str, np.ndarray] = {}
    left = MAX_BYTES
    for role, path in files.items():
        arrays[role] = read_idx(path, expect=kind(role), limit=left)
        left -= arrays[role].nbytes
    hashes = {role: content_md5(array) for role, array in arrays.items()}
    splits = []
    for part in ("train", "test"):
        images, labels = f"{part}-images", f"{part}-labels"
        pixels = arrays[images].swapaxes(1, 2) if like.transposed else arrays[images]
        split = Split(pixels[:, np.newaxis], arrays[labels].astype(np.int64) - like.first_label)
        check_split(split, like.classes, str(files[images]), str(files[labels]), like.first_label)
        splits.append(split)
    source = str(files["train-images"].parent)
    return assemble(name, like.classes, *splits, source=source, hashes=hashes)
