"""CIFAR-10's binary version: what is read of it, and what is refused in one line."""

import io
import tarfile

import numpy as np
import pytest

from mnistfast.data import cifar
from mnistfast.data.sources import load

RNG = np.random.default_rng(0)


def batches_of(count=2):
    return {
        name: RNG.integers(0, 256, (count, 3073), np.uint8).clip(max=[9] + [255] * 3072).astype(np.uint8)
        for name in (*cifar.TRAIN_FILES, cifar.TEST_FILE)
    }


def save_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("place", ["tar", "folder", "parent"])
def test_cifar(tmp_path, place):
    batches = batches_of()
    members = {name: batch.tobytes() for name, batch in batches.items()}
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name, content in members.items():
        (folder / name).write_bytes(content)
    tar = save_tar(tmp_path / "cifar-10-binary.tar.gz", members)
    data = load(str({"tar": tar, "folder": folder, "parent": tmp_path}[place]))
    assert (data.name, data.classes[3]) == ("cifar10", "cat")
    assert data.train.images.shape == (10, 3, 32, 32)
    record = batches["data_batch_3.bin"][1]
    assert data.train.labels[5] == record[0]
    assert data.train.images[5, 1, 4, 7] == record[1 + 1024 + 4 * 32 + 7]
    np.testing.assert_array_equal(data.test.labels, batches["test_batch.bin"][:, 0])


def test_cifar_refused(tmp_path, refused):
    members = {name: batch.tobytes() for name, batch in batches_of().items()}
    path = tmp_path / "a.tar.gz"
    save_tar(path, members | {"data_batch_2.bin": b"12"})
    refused(path, "data_batch_2.bin has 2 bytes, no multiple of 3,073")
    save_tar(path, {name: content for name, content in members.items() if "5" not in name})
    refused(path, "missing: data_batch_5.bin")
    save_tar(path, members | {"test_batch.bin": b"\x0b" + bytes(3072)})
    refused(path, "label 11 at index 0. The set has 10 classes (0-9)")
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:2000]):
        path.write_bytes(content)
        refused(path, "a.tar.gz: not a whole .tar.gz")
