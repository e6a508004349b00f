"""Data sets in CSV files: what is read of them, and what is refused in one line."""

import numpy as np
import pytest

from mnistfast.data import csv_files
from mnistfast.data.sources import load

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (30, 6, 6), np.uint8)
LABELS = np.arange(30) % 10


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("header", [True, False])
def test_csv_of_two_files(tmp_path, header, quote, save_csv):
    save_csv(tmp_path / "mnist_train.csv", GREY, LABELS, header=header, quote=quote)
    save_csv(tmp_path / "mnist_test.csv", GREY[:10], LABELS[:10], header=header, quote=quote)
    data = load(str(tmp_path))
    np.testing.assert_array_equal(data.train.images, GREY[:, None], strict=True)
    np.testing.assert_array_equal(data.train.labels, LABELS, strict=True)
    assert len(data.test.labels) == 10
    assert data.notice == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a.csv: its first line has 0 numbers"),
        ("label,pixel0\n\n", "a.csv: its first line has 0 numbers"),
        ("1,2,3\n", "a.csv: its first line has 3 numbers. A line is a label and the pixels of a square image"),
        ("1,2\n3\n", "requires 2 columns but 1 were found at row 2"),
        ("1,x\n", "could not convert string 'x' to uint8 at row 0, column 2"),
        ("1,2.5\n", "could not convert string '2.5'"),
        ("1,256\n", "could not convert string '256' to uint8 at row 0, column 2"),
        ("1,99999\n", "a.csv: "),
        ("-1,3\n", "a.csv: "),
        ("pixel0\n3\n", "its header has no label"),
        ("1,\xff\n", "a.csv: "),
    ],
)
def test_csv_refused(tmp_path, text, words, refused):
    (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
    refused(tmp_path / "a.csv", words)


def test_csv_of_as_many_lines_as_allowed(tmp_path, refused, save_csv, monkeypatch):
    path = save_csv(tmp_path / "a.csv", GREY, LABELS)
    monkeypatch.setattr(csv_files, "MAX_IMAGES", 30)
    assert len(csv_files.read_csv(path)[0]) == 30
    monkeypatch.setattr(csv_files, "MAX_IMAGES", 29)
    refused(path, "a.csv: has more than 29 lines")
