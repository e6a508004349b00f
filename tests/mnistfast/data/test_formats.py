"""The table of formats: one that is registered is read wherever a data set may be named."""

import json

import numpy as np
import pytest

from mnistfast import train
from mnistfast.data.datasets import Split, from_splits
from mnistfast.data.formats import FORMATS, Format, suffix
from mnistfast.data.sources import load

LABELS = np.arange(60) % 10


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A file of a format that only this test knows: the pixels of 60 images of 4 x 4, and nothing else."""

    def load_toy(source, files):
        pixels = np.frombuffer(files[0].read_bytes(), np.uint8)
        return from_splits(source, Split(pixels.reshape(60, 1, 4, 4), LABELS))

    monkeypatch.setitem(FORMATS, ".toy", Format(load_toy))
    path = tmp_path / "set" / "mine.toy"
    path.parent.mkdir()
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 960, np.uint8).tobytes())
    return path


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_new_format_is_a_reader_and_a_line(toy, place):
    data = load(str(toy if place == "file" else toy.parent))
    assert data.name == {"file": "mine", "folder": "set"}[place]
    assert (len(data.train.labels), len(data.test.labels)) == (48, 12)
    assert data.train.images.tobytes()[:16] == toy.read_bytes()[:16]
    assert "There is one file: one image in 5" in data.notice


def test_the_command_line_takes_it(toy, capsys):
    assert train.main(["--data", str(toy), "--data-check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"train": 48, "test": 12}


def test_what_is_said_of_other_files_names_it(toy, refused):
    (toy.parent / "notes.txt").write_text("")
    refused(toy.parent / "notes.txt", "a file (.npz, .csv, .tar.gz, .toy), or a folder")
    toy.unlink()
    refused(toy.parent, "one .npz, some .csv, one .toy, cifar-10-batches-bin")


@pytest.mark.parametrize(
    ("name", "end"),
    [("a.npz", ".npz"), ("A.NPZ", ".npz"), ("b.tar.gz", ".tar.gz"), ("c.csv.gz", None), (".csv", None), ("npz", None)],
)
def test_the_end_of_the_name_decides(tmp_path, name, end):
    assert suffix(tmp_path / name) == end


def test_a_folder_with_several_archives_is_none_of_them(tmp_path, refused):
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, x_train=[])
    refused(tmp_path, "no data set in")
