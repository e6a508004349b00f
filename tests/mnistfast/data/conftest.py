"""Small data sets on disk, and a machine on which nothing of the user's is found."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mnistfast.data import published
from mnistfast.data.idx import content_md5, header
from mnistfast.data.sources import load
from mnistfast.errors import DataError, StorageError

NAMES = published.ROLES


def encode(array):
    """Returns the IDX file of a uint8 array."""
    return header(array) + array.tobytes()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No test finds the data or the cache of the machine that it runs on, or goes through its proxy."""
    monkeypatch.delenv("MNISTFAST_DATA", raising=False)
    monkeypatch.setenv("MNISTFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def arrays():
    """The four arrays of a small set: 30 training and 20 test images of 4 x 5 pixels, all ten classes in each."""
    rng = np.random.default_rng(0)
    made = {}
    for part, count in (("train", 30), ("test", 20)):
        made[f"{part}-images"] = rng.integers(0, 256, (count, 4, 5), np.uint8)
        made[f"{part}-labels"] = (np.arange(count) % 10).astype(np.uint8)
    return made


@pytest.fixture
def write_set(arrays):
    """Writes the small set, or `changed` arrays of it by role, to a folder."""

    def write(folder, *, suffix=".gz", **changed):
        folder.mkdir(parents=True, exist_ok=True)
        for role, array in arrays.items():
            content = encode(changed.get(role.replace("-", "_"), array))
            content = gzip.compress(content) if suffix == ".gz" else content
            (folder / f"{NAMES[role]}{suffix}").write_bytes(content)
        return folder

    return write


@pytest.fixture
def official(arrays, monkeypatch):
    """Makes the small set the official MNIST."""
    md5 = {role: content_md5(array) for role, array in arrays.items()}
    monkeypatch.setitem(published.SETS, "mnist", replace(published.SETS["mnist"], md5=md5))


@pytest.fixture
def use_mirrors(monkeypatch):
    """Makes these the addresses to fetch MNIST from."""

    def use(*mirrors):
        monkeypatch.setitem(published.SETS, "mnist", replace(published.SETS["mnist"], mirrors=mirrors))

    return use


@pytest.fixture
def refused():
    """Loads data that must be refused in one line with `words` in it."""

    def check(path, words):
        with pytest.raises(DataError) as caught:
            load(str(path))
        assert words in str(caught.value), str(caught.value)
        assert "\n" not in str(caught.value)

    return check


@pytest.fixture
def save_csv():
    """Writes images, with their labels where there are some, as Kaggle does."""

    def save(path, images, labels, header=True, quote=""):
        rows = [list(image.flatten()) for image in images]
        if header:
            rows.insert(0, [f"pixel{k}" for k in range(images[0].size)])
        if labels is not None:
            first = (["label"] if header else []) + list(labels)
            rows = [[one, *row] for one, row in zip(first, rows, strict=True)]
        path.write_text("".join(",".join(f"{quote}{value}{quote}" for value in row) + "\n" for row in rows))
        return path

    return save


@pytest.fixture
def save_folders():
    """Writes images to folders of the classes `names` in turn."""

    def save(root, images, names, parts=("train", "test"), suffix=".png"):
        for part in parts:
            for k, image in enumerate(images):
                folder = root / part / names[k % len(names)]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f"{k:03}{suffix}")
        return root

    return save


@pytest.fixture
def no_network(monkeypatch, use_mirrors):
    """Serves nothing: whoever asks for the network gets no MNIST."""

    def unreachable(*args, **kwargs):
        raise StorageError("could not download f", "a: HTTP 403; b: timed out")

    use_mirrors()
    monkeypatch.setattr("mnistfast.data.obtain.fetch", unreachable)
