"""The files of published sets: where they are looked for, in which order, and what is verified of a download."""

import gzip
import hashlib
import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from mnistfast.data import published
from mnistfast.data.idx import content_md5, header
from mnistfast.data.sources import load
from mnistfast.errors import DataError, StorageError

pytestmark = pytest.mark.usefixtures("no_network")

IMAGES = np.zeros((30, 4, 5), np.uint8)


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
    monkeypatch.setattr("mnistfast.data.obtain.fetch", lambda *args: pytest.fail("asked the network"))
    assert load("mnist").notice == ""


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


@pytest.fixture
def served(monkeypatch):
    """Answers fetches from a dict of contents by file name."""
    contents = {}

    def fetch(names, folder, mirrors, verify, max_bytes=None):
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            if name not in contents:
                raise StorageError(f"could not download {name}", f"{mirrors[0]}: HTTP 404")
            try:
                verify(name, contents[name], mirrors[0] + name)
            except DataError as error:
                raise StorageError(f"could not download {name}", error.what) from error
            (folder / name).write_bytes(contents[name])

    monkeypatch.setattr("mnistfast.data.obtain.fetch", fetch)
    return contents


def packed(array):
    return gzip.compress(header(array) + array.tobytes())


def publish(monkeypatch, name, **changed):
    monkeypatch.setitem(published.SETS, name, replace(published.SETS[name], **changed))


def test_installed_by_the_distribution(tmp_path, write_set, arrays, monkeypatch):
    md5 = {role: content_md5(array) for role, array in arrays.items()}
    publish(monkeypatch, "fashion-mnist", md5=md5, folders=(str(write_set(tmp_path / "usr")),))
    data = load("fashion-mnist", offline=True)
    assert (data.name, data.notice, data.source) == ("fashion-mnist", "", str(tmp_path / "usr"))
    assert data.classes[9] == "Ankle boot"


def test_environment_is_searched_by_name_alone(tmp_path, write_set, monkeypatch):
    """The files of Fashion-MNIST are called as MNIST's: those of MNIST must not be taken for them."""
    publish(monkeypatch, "fashion-mnist", folders=())
    monkeypatch.setenv("MNISTFAST_DATA", str(write_set(tmp_path / "all")))
    with pytest.raises(StorageError, match="--offline forbids a download"):
        load("fashion-mnist", offline=True)
    write_set(tmp_path / "all" / "fashion-mnist")
    found = load("fashion-mnist", offline=True)
    assert found.source == str(tmp_path / "all" / "fashion-mnist")
    assert found.notice.startswith("Valid IDX but not the official fashion-mnist: ")
    monkeypatch.setenv("MNISTFAST_DATA", str(tmp_path / "all" / "fashion-mnist"))
    assert load("fashion-mnist", offline=True).source == found.source


def test_kmnist_is_verified_as_it_is_served(tmp_path, arrays, served, monkeypatch):
    files = {role: packed(array) for role, array in arrays.items()}
    served.update({f"{published.ROLES[role]}.gz": content for role, content in files.items()})
    with pytest.raises(StorageError, match="not the official train-images-idx3-ubyte"):
        load("kmnist")
    publish(
        monkeypatch, "kmnist", served_md5={role: hashlib.md5(content).hexdigest() for role, content in files.items()}
    )
    data = load("kmnist")
    assert (data.name, data.classes[1], data.source) == ("kmnist", "き", str(tmp_path / "cache" / "kmnist"))


def emnist_zip(arrays, split):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for role, array in arrays.items():
            name = published.SETS[f"emnist-{split}"].files[role]
            archive.writestr(f"gzip/{name}.gz", packed(array))
    return content.getvalue()


@pytest.mark.parametrize("place", ["served", "environment", "environment, unpacked"])
def test_emnist_letters_are_upright_and_count_from_a(tmp_path, arrays, served, monkeypatch, place):
    arrays = arrays | {role: arrays[role] + 1 for role in ("train-labels", "test-labels")}
    content = emnist_zip(arrays, "letters")
    if place == "served":
        served["gzip.zip"] = content
        archive = ("gzip.zip", hashlib.md5(content).hexdigest())
        publish(monkeypatch, "emnist-letters", archive=archive)
    else:
        folder = tmp_path / "env" / "emnist-letters"
        folder.mkdir(parents=True)
        monkeypatch.setenv("MNISTFAST_DATA", str(tmp_path / "env"))
        (folder / "gzip.zip").write_bytes(content)
        if "unpacked" in place:
            with zipfile.ZipFile(folder / "gzip.zip") as archive:
                for member in archive.namelist():
                    (folder / member.split("/")[1]).write_bytes(archive.read(member))
    data = load("emnist-letters", offline=place != "served")
    assert (data.classes[0], data.classes[25], len(data.classes)) == ("a", "z", 26)
    np.testing.assert_array_equal(data.train.images[:, 0], arrays["train-images"].transpose(0, 2, 1))
    np.testing.assert_array_equal(data.train.labels, arrays["train-labels"].astype(int) - 1)


ENCRYPTED = {b"PK\3\4\x14\0\0": b"PK\3\4\x14\0\1", b"PK\1\2\x14\3\x14\0\0": b"PK\1\2\x14\3\x14\0\1"}


@pytest.mark.parametrize(
    ("changes", "limit", "words"),
    [
        ({b"PK\5\6": b""}, None, "not a whole .zip file"),
        (ENCRYPTED, None, "is encrypted"),
        ({b"letters": b"symbols"}, None, "has no emnist-letters-"),
        ({}, 9, r"has \d+ bytes\. No part of EMNIST's archive is longer than the whole"),
    ],
    ids=["cut", "encrypted", "of another set", "a part too long"],
)
def test_emnist_archive_is_refused_in_one_line(tmp_path, arrays, monkeypatch, changes, limit, words):
    content = emnist_zip(arrays, "letters")
    for old, new in changes.items():
        assert old in content
        content = content.replace(old, new)
    (tmp_path / "emnist-letters").mkdir()
    (tmp_path / "emnist-letters" / "gzip.zip").write_bytes(content)
    monkeypatch.setenv("MNISTFAST_DATA", str(tmp_path))
    monkeypatch.setattr(published, "EMNIST_BYTES", limit or published.EMNIST_BYTES)
    with pytest.raises(DataError, match=words):
        load("emnist-letters", offline=True)


def test_emnist_label_out_of_range_is_the_files_own(tmp_path, arrays, monkeypatch):
    labels = arrays["train-labels"].copy()  # from 0: no letter has that
    (tmp_path / "emnist").mkdir()
    for role, array in (arrays | {"train-labels": labels}).items():
        (tmp_path / "emnist" / f"{published.SETS['emnist-letters'].files[role]}.gz").write_bytes(packed(array))
    monkeypatch.setenv("MNISTFAST_DATA", str(tmp_path / "emnist"))
    with pytest.raises(DataError, match=r"label 0 at index 0\. The set has 26 classes \(1-26\)"):
        load("emnist-letters")


def test_cifar10_by_name(tmp_path, served, monkeypatch):
    with pytest.raises(StorageError, match="no cifar10 in MNISTFAST_DATA"):
        load("cifar10", offline=True)
    with pytest.raises(StorageError, match="could not download cifar-10-binary"):
        load("cifar10")
    for place in (tmp_path / "env" / "cifar10", tmp_path / "env"):
        folder = place / "cifar-10-batches-bin"
        folder.mkdir(parents=True)
        for name in [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]:
            (folder / name).write_bytes(bytes(3073))
        monkeypatch.setenv("MNISTFAST_DATA", str(tmp_path / "env"))
        assert load("cifar10", offline=True).name == "cifar10"
        for file in folder.iterdir():
            file.unlink()
