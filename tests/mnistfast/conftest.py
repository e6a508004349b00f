"""A small data set of real digits, runs on it, and times that no clock decides."""

import shutil
import struct

import numpy as np
import pytest
import torch

import convpool
from convpool import cache, choices
from mnistfast import train
from mnistfast.data.sources import load
from tests.mnistfast.training.measuring import Measuring


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_folder(folder, train_images, train_labels, test_images, test_labels):
    """Writes an IDX folder of images (N, H, W) and labels (N,)."""
    folder.mkdir(parents=True)
    for part, images, labels in (("train", train_images, train_labels), ("t10k", test_images, test_labels)):
        write_idx(folder / f"{part}-images-idx3-ubyte", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
    return folder


def some_of_each(split, count):
    """Returns images (N, H, W) and labels of the first `count` images of each class."""
    chosen = np.concatenate([np.flatnonzero(split.labels == label)[:count] for label in range(10)])
    return split.images[chosen, 0], split.labels[chosen]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """An IDX folder: 200 images to train on, 50 to test on, all ten digits in equal parts."""
    sample = load("sample")
    folder = tmp_path_factory.mktemp("data") / "tiny"
    return write_folder(folder, *some_of_each(sample.train, 20), *some_of_each(sample.test, 5))


@pytest.fixture
def write_images():
    """Returns `write_folder`."""
    return write_folder


@pytest.fixture(autouse=True)
def one_thread():
    """Makes the bits of a run the same whatever ran before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def options(tiny):
    """A training of a second: LeNet-5 on the tiny set, 3 epochs of 5 steps, with something random in it (dropout)."""
    return f"--model lenet5 --data {tiny} --epochs 3 --batch-size 40 --dropout 0.3 --val 20 --threads 1".split()


@pytest.fixture(scope="session")
def finished(options, tmp_path_factory):
    """The folder of a finished run that nobody changes."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert train.main([*options, "--out", str(out), "--quiet"]) == 0
    return out


@pytest.fixture
def trained(finished, tmp_path):
    """The folder of a finished run, a copy of one's own."""
    return shutil.copytree(finished, tmp_path / "trained")


@pytest.fixture
def no_pictures(monkeypatch):
    """Spares a run its three pictures, which take longer than its training."""
    for name in ("curves", "confusion", "errors"):
        monkeypatch.setattr(f"mnistfast.report.plots.{name}", lambda *args: b"no picture")


@pytest.fixture(scope="session")
def reader(tmp_path_factory):
    """The folder of a run that reads digits well enough to be asked: 95 % of the sample's or more."""
    out = tmp_path_factory.mktemp("runs") / "reader"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("curves", "confusion", "errors"):
            patch.setattr(f"mnistfast.report.plots.{name}", lambda *args: b"no picture")
        words = f"--model lenet5 --data sample --epochs 4 --out {out} --quiet --threads 1".split()
        assert train.main(words) == 0
    return out


@pytest.fixture
def times(monkeypatch):
    """Stands in for the clock of races: by form, the seconds of its turns, over and over; of others, 1 ms each."""
    seconds = {}

    def turn(race, form):
        mine, samples = seconds.get(form, [1e-3]), race.samples[form]
        samples.append(mine[len(samples) % len(mine)])

    monkeypatch.setattr("convpool.testing.timing.Race.turn", turn)
    return seconds


@pytest.fixture
def measure(monkeypatch):
    """What stands for `convpool.tune`."""
    measuring = Measuring()
    monkeypatch.setattr(convpool, "tune", measuring)
    return measuring


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table of measured choices in a folder of one's own, empty; returns its folder."""
    with monkeypatch.context() as patch:
        patch.setenv("CONVPOOL_CACHE", str(tmp_path / "cache"))
        choices.forget()
        yield tmp_path / "cache"
    choices.forget()


@pytest.fixture
def unreadable_table(table, monkeypatch):
    """A table that nobody may look into."""

    def read(path):
        raise AssertionError(f"{path} is read")

    monkeypatch.setattr(cache, "read", read)
