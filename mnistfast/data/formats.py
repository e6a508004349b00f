"""The formats of data sets that the end of a file's name tells: `FORMATS` is all that has to know a new one.

A reader returns checked arrays or raises `DataError` with one line. Nothing that a file says makes it take more memory
than `reading` allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mnistfast.data.cifar import load_cifar
from mnistfast.data.csv_files import load_csv
from mnistfast.data.datasets import Dataset
from mnistfast.data.npz import load_npz


@dataclass(frozen=True)
class Format:
    """How files of one format become a data set.

    Attributes:
        load: makes it of files in the order of their names; the first argument is what the user named: the file, or
            their folder. Raises DataError, StorageError.
        most_in_folder: a folder that holds so many of these files, or fewer, is taken for such a data set.
    """

    load: Callable[[Path, Sequence[Path]], Dataset]
    most_in_folder: float = 1


# By the end of the names in lower case. A folder with several is taken for the first.
FORMATS: dict[str, Format] = {
    ".npz": Format(load_npz),
    ".csv": Format(load_csv, most_in_folder=math.inf),  # train and test
    ".tar.gz": Format(load_cifar, most_in_folder=0),  # an archive of images may lie beside anything
}


def suffix(path: Path) -> str | None:
    """Returns that of `FORMATS` by which the file is read, None where there is none."""
    return next((end for end in FORMATS if path.name.lower().endswith(end) and path.name.lower() != end), None)
