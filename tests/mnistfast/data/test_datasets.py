"""Where data is looked for, and what is refused of it."""

import re
import subprocess
import sys

import numpy as np
import pytest

from mnistfast.data import datasets
from mnistfast.data.datasets import load
from mnistfast.errors import DataError, StorageError, UsageError

IMAGES = np.zeros((30, 4, 5), np.uint8)


@pytest.fixture(autouse=True)
def no_network(monkeypatch, use_mirrors):
    """Here nothing is served: whoever asks for the network gets no MNIST."""
    use_mirrors()
    monkeypatch.setattr(datasets.fetch, "fetch", unreachable)


def unreachable(*args, **kwargs):
    raise StorageError("could not download f", "a: HTTP 403; b: timed out")


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


def test_folder_under_home(tmp_path, write_set, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_set(tmp_path / "mine")
    assert load("~/mine").name == "mine"


def test_folder_that_holds_mnist_is_called_so(tmp_path, write_set, official):
    assert load(str(write_set(tmp_path / "mine"))).name == "mnist"


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


def test_counts_that_differ(tmp_path, write_set):
    folder = write_set(tmp_path, train_labels=np.zeros(29, np.uint8))
    with pytest.raises(DataError, match=r"30 images in .*train-images\S* but 29 labels in .*train-labels"):
        load(str(folder))


@pytest.mark.parametrize("shape", [(0, 4, 5), (30, 0, 5)])
def test_empty_set(tmp_path, write_set, shape):
    folder = write_set(tmp_path, train_images=np.zeros(shape, np.uint8), train_labels=np.zeros(shape[0], np.uint8))
    with pytest.raises(DataError, match=r"train-images\S*: no images .*The set is empty"):
        load(str(folder))


@pytest.mark.parametrize("part", ["train", "test"])
def test_label_out_of_range_has_its_index(tmp_path, write_set, arrays, part):
    labels = arrays[f"{part}-labels"].copy()
    labels[[13, 17]] = 10, 255
    folder = write_set(tmp_path, **{f"{part}_labels": labels})
    with pytest.raises(DataError, match=r"labels\S*: label 10 at index 13\. The set has 10 classes \(0-9\)"):
        load(str(folder))


def test_image_sizes_that_differ(tmp_path, write_set):
    folder = write_set(tmp_path, test_images=np.zeros((20, 5, 4), np.uint8))
    with pytest.raises(DataError, match="training images are 1 x 4 x 5, test images 1 x 5 x 4"):
        load(str(folder))


def test_class_without_a_training_image_is_noticed(tmp_path, write_set):
    folder = write_set(tmp_path, train_labels=(np.arange(30) % 8).astype(np.uint8))
    assert load(str(folder)).notice == "The training set has no image of class 8, 9."


@pytest.mark.parametrize("sub", ["", "mnist"])
@pytest.mark.parametrize("spec", ["mnist", None])
def test_environment_goes_before_the_cache(tmp_path, write_set, official, arrays, monkeypatch, sub, spec):
    write_set(tmp_path / "cache" / "mnist", train_images=IMAGES)
    write_set(tmp_path / "env" / sub)
    monkeypatch.setenv("MNISTFAST_DATA", str(tmp_path / "env"))
    data = load(spec)
    assert (data.name, data.notice, data.source) == ("mnist", "", str(tmp_path / "env" / sub))
    np.testing.assert_array_equal(data.train.images[:, 0], arrays["train-images"])


def test_environment_without_mnist_leaves_it_to_the_cache(tmp_path, write_set, official, monkeypatch):
    (tmp_path / "env").mkdir()
    monkeypatch.setenv("MNISTFAST_DATA", str(tmp_path / "env"))
    write_set(tmp_path / "cache" / "mnist")
    assert load(None).source == str(tmp_path / "cache" / "mnist")


def test_cache_goes_before_a_download(tmp_path, write_set, official, monkeypatch):
    write_set(tmp_path / "cache" / "mnist")
    monkeypatch.setattr(datasets.fetch, "fetch", lambda *args: pytest.fail("asked the network"))
    assert load("mnist").notice == ""


def test_cache_of_the_platform(tmp_path, write_set, official, monkeypatch):
    monkeypatch.delenv("MNISTFAST_CACHE")
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "platform" / project)
    write_set(tmp_path / "platform" / "mnistfast" / "mnist")
    assert load("mnist").name == "mnist"


@pytest.mark.parametrize("spec", ["mnist", None])
def test_environment_that_names_no_folder(tmp_path, monkeypatch, spec):
    monkeypatch.setenv("MNISTFAST_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"MNISTFAST_DATA is .*gone\. There is no such folder\. FIX: "):
        load(spec)


@pytest.mark.parametrize("spec", ["mnist", None])
def test_environment_with_a_part_of_the_files(tmp_path, write_set, monkeypatch, spec):
    folder = write_set(tmp_path / "env")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setenv("MNISTFAST_DATA", str(folder))
    with pytest.raises(DataError, match=r"missing: t10k-labels-idx1-ubyte\. FIX"):
        load(spec)


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
    heavy = "{'torch', 'pooch', 'requests', 'platformdirs'} & set(sys.modules)"
    code = f"import sys, mnistfast.errors, mnistfast.data.datasets; print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_only_some_classes():
    whole, some = load("sample"), load("sample", classes="7, 2,9")
    assert some.classes == ("2", "7", "9")
    for part in ("train", "test"):
        before, after = getattr(whole, part), getattr(some, part)
        names = np.array(whole.classes)[before.labels]
        kept = np.isin(names, some.classes)
        assert np.array_equal(after.images, before.images[kept])
        assert np.array_equal(np.array(some.classes)[after.labels], names[kept])
    assert "Only the classes 2, 7, 9: " in some.notice
    assert some.hashes != whole.hashes
    with pytest.raises(UsageError, match="sample has no class 'x'"):
        load("sample", classes="1,x")
