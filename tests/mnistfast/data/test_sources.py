"""What a name or a path leads to, and what is said where it leads nowhere."""

import subprocess
import sys

import numpy as np
import pytest

from mnistfast.data.sources import load
from mnistfast.errors import DataError, StorageError, UsageError

pytestmark = pytest.mark.usefixtures("no_network")

IMAGES = np.zeros((30, 4, 5), np.uint8)


def test_folder_under_home(tmp_path, write_set, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_set(tmp_path / "mine")
    assert load("~/mine").name == "mine"


@pytest.mark.parametrize(
    ("spec", "error", "line"),
    [
        (
            "mnits",
            UsageError,
            r"unknown data set 'mnits' \(did you mean 'mnist'\?\)\. Names: mnist, fashion-mnist, kmnist, ",
        ),
        ("cats", UsageError, r"unknown data set 'cats'\. Names: mnist, fashion-mnist, kmnist, "),
        ("./nowhere", DataError, r"no folder or file \./nowhere\. FIX: "),
        ("", DataError, r"no data set in \.: looked for train-images-idx3-ubyte\[\.gz\], "),
        ("~nobody-of-this-name/mnist", DataError, r"no folder or file ~nobody"),
        ("x" * 5000, UsageError, r"unknown data set"),
        ("a\0b", UsageError, r"unknown data set"),
    ],
)
def test_unknown_spec(tmp_path, monkeypatch, spec, error, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=line):
        load(spec)


def test_file_in_place_of_its_folder(tmp_path, write_set):
    path = write_set(tmp_path / "mine") / "train-images-idx3-ubyte.gz"
    with pytest.raises(DataError, match=r"is a file\. --data takes a name") as caught:
        load(str(path))
    assert caught.value.fix == f"--data {tmp_path / 'mine'}"


def test_name_goes_before_a_folder_of_that_name(tmp_path, write_set, monkeypatch):
    write_set(tmp_path / "sample")
    monkeypatch.chdir(tmp_path)
    assert len(load("sample").train.labels) == 4000
    assert len(load("./sample").train.labels) == 30


@pytest.mark.parametrize("spec", ["mnist", None])
def test_damaged_file_in_the_cache_is_reported(tmp_path, write_set, spec):
    path = write_set(tmp_path / "cache" / "mnist") / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"gzip ends early .*FIX: delete it and fetch it again") as caught:
        load(spec)
    assert str(path) in caught.value.what


def test_other_content_by_the_name_of_mnist_is_noticed(tmp_path, write_set, official, monkeypatch):
    folder = write_set(tmp_path / "env", train_images=IMAGES)
    monkeypatch.setenv("MNISTFAST_DATA", str(folder))
    data = load("mnist")
    md5 = data.hashes["train-images"]
    path = folder / "train-images-idx3-ubyte.gz"
    assert data.notice == f"Valid IDX but not the official MNIST: {path} (md5 {md5})."


def test_without_mnist_the_default_is_the_sample_and_says_so():
    data = load(None)
    assert data.name == "sample"
    for part in ("4,000", "1,000", "held-out images of MNIST's TRAINING set", "not the official test set"):
        assert part in data.notice
    assert "Reason: could not download f (a: HTTP 403; b: timed out)." in data.notice
    assert "--data or MNISTFAST_DATA" in data.notice
    assert "\n" not in data.notice


def test_mnist_by_name_never_becomes_the_sample():
    with pytest.raises(StorageError, match=r"could not download f\. a: HTTP 403; b: timed out\. FIX: put train-images"):
        load("mnist")


def test_importing_is_cheap():
    heavy = "{'torch', 'PIL', 'pooch', 'requests', 'platformdirs'} & set(sys.modules)"
    code = f"import sys, mnistfast.errors, mnistfast.data.sources; print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
