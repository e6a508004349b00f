"""Four IDX files in a folder: under which names they are found, and what is read of them."""

import re

import numpy as np
import pytest

from mnistfast.data.sources import load
from mnistfast.errors import DataError

IMAGES = np.zeros((30, 4, 5), np.uint8)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_folder(tmp_path, write_set, arrays, suffix):
    data = load(str(write_set(tmp_path / "mine", suffix=suffix)))
    assert (data.name, data.notice, data.classes) == ("mine", "", tuple("0123456789"))
    assert data.source == str(tmp_path / "mine")
    for split, part in ((data.train, "train"), (data.test, "test")):
        np.testing.assert_array_equal(split.images, arrays[f"{part}-images"][:, None], strict=True)
        np.testing.assert_array_equal(split.labels, arrays[f"{part}-labels"].astype(np.int64), strict=True)
    assert set(data.hashes) == set(arrays)
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in data.hashes.values())


def test_folder_with_dots_in_the_names(tmp_path, write_set):
    folder = write_set(tmp_path / "mine", suffix="")
    for path in folder.iterdir():
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert len(load(str(folder)).train.labels) == 30


def test_raw_goes_before_gz(tmp_path, write_set):
    write_set(tmp_path / "mine")
    folder = write_set(tmp_path / "mine", suffix="", train_images=IMAGES)
    assert not load(str(folder)).train.images.any()


def test_missing_files_are_named(tmp_path, write_set):
    folder = write_set(tmp_path / "mine")
    for name in ("train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz"):
        (folder / name).unlink()
    with pytest.raises(DataError) as caught:
        load(str(folder))
    assert str(folder) in caught.value.what
    assert caught.value.what.endswith("missing: train-labels-idx1-ubyte, t10k-images-idx3-ubyte")
    assert "looked for train-images-idx3-ubyte[.gz], " in caught.value.what
