"""Data sets in CSV files, in Kaggle's form."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np

from mnistfast.data.datasets import Dataset, Split, from_splits
from mnistfast.data.reading import MAX_IMAGES, class_labels, length, opened
from mnistfast.errors import DataError
from mnistfast.files.decoding import reason

MAX_CSV_BYTES = 480 << 20
"""The longest CSV file, 6 times Kaggle's of MNIST: a refusal for its last line comes after about 8 s."""

MAX_LINE = 1 << 20
"""The longest line of one, in characters: images of 400 x 400 pixels, and whatever MNIST's columns may be called."""


def load_csv(source: Path, files: Sequence[Path]) -> Dataset:
    """Loads a train and a test file by their names, or one whose test images are held out of it. Raises as `read_csv`.

    Args:
        source: what they are called together: one of them, or their folder.
        files: the files.
    """
    train_file, test_file = (
        next((path for path in files if part in path.stem.lower()), None) for part in ("train", "test")
    )
    train_file = train_file or files[0]
    images, labels = read_csv(train_file)
    if labels is None:
        raise DataError(f"{train_file}: its header has no label", "The first column of training images is their label")
    train = Split(images, labels)
    if test_file and test_file != train_file:
        test_images, test_labels = read_csv(test_file)
        if test_labels is not None:
            return from_splits(source, train, Split(test_images, test_labels))
    return from_splits(source, train, why_none=f"{test_file.name} has no labels" if test_file else "There is one file")


def read_csv(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads a CSV file in Kaggle's form: a line an image, its label, then its pixels row by row; a header or none.

    Returns:
        Images uint8 (N, 1, H, H) and labels int64 (N,), None where the header has no `label` first (Kaggle's test.csv).

    Raises:
        DataError: no such file, or lines that differ or are too long or many, or numbers that are no pixels or labels.
        StorageError: the operating system refuses to open it.
    """
    with opened(path) as stream:
        length(path, stream, MAX_CSV_BYTES)
        try:
            return _table(path, _lines(path, stream))
        except (ValueError, OverflowError) as error:  # a text, a number too large, a line of another length
            raise DataError(f"{path}: {reason(error)}", "Lines are a label and pixels, with commas between") from error


def _lines(path: Path, stream: IO[bytes]) -> Iterator[str]:
    """Yields the lines of a text that are not empty. Raises `DataError` where there is too much of one, or of them."""
    text = io.TextIOWrapper(stream, "utf-8-sig")
    for number, line in enumerate(iter(partial(text.readline, MAX_LINE + 1), ""), 1):
        if number > MAX_IMAGES + 1:  # and a header
            raise DataError(f"{path}: has more than {MAX_IMAGES:,} lines", "A line is an image")
        if len(line) > MAX_LINE:
            what = f"{path}: line {number:,} is longer than the {MAX_LINE:,} characters allowed"
            raise DataError(what, "A line is a label and the pixels of one image")
        if line.count('"') % 2:  # numpy would look for its end in all that follows
            raise DataError(f"{path}: line {number:,} has a quote that does not end")
        if not line.isspace():
            yield line


def _table(path: Path, lines: Iterator[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns what `read_csv` does. Raises `ValueError` for what numpy refuses in the lines."""
    first = next(lines, "")
    text = first.replace('"', "").strip()
    header = bool(text) and not text[0].isdigit()
    labelled = not header or text.split(",")[0].strip().lower() == "label"
    if header:
        first = next(lines, "")
    columns = first.count(",") + 1
    side = math.isqrt(max(columns - labelled, 0))
    if not first or not side or side * side + labelled != columns:
        what = f"{path}: its first line has {columns if first else 0:,} numbers"
        raise DataError(what, "A line is a label and the pixels of a square image, 785 numbers for 28x28")
    # A byte a pixel from the start: int16 for all would take twice the memory.
    line = np.dtype([("label", np.int16, (int(labelled),)), ("pixels", np.uint8, (side * side,))])
    table = np.loadtxt(chain([first], lines), line, None, ",", ndmin=1, quotechar='"')
    images = table["pixels"].reshape(-1, 1, side, side)
    return images, class_labels(str(path), table["label"][:, 0]) if labelled else None
