"""Data of other formats than IDX: what is read of it, and what is refused in one line."""

import io
import tarfile
import zipfile

import numpy as np
import pytest

from mnistfast.data import formats
from mnistfast.data.sources import load

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (30, 6, 6), np.uint8)
COLOUR = RNG.integers(0, 256, (30, 6, 6, 3), np.uint8)
LABELS = np.arange(30) % 10


# .npz


def save_npz(path, **changed):
    arrays = {"x_train": GREY, "y_train": LABELS, "x_test": GREY[:10], "y_test": LABELS[:10]} | changed
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize("place", ["file", "folder"])
def test_npz(tmp_path, place):
    path = save_npz(tmp_path / "mine.npz", y_test=LABELS[:10, None])  # Keras' CIFAR-10 has its labels in a column
    data = load(str(path if place == "file" else tmp_path))
    assert (data.name, data.classes) == ("mine", tuple("0123456789"))
    np.testing.assert_array_equal(data.train.images, GREY[:, None], strict=True)
    np.testing.assert_array_equal(data.test.labels, LABELS[:10], strict=True)


def test_npz_in_colour_and_compressed(tmp_path):
    np.savez_compressed(
        tmp_path / "a.npz", x_train=COLOUR, y_train=LABELS, x_test=np.asfortranarray(COLOUR), y_test=LABELS
    )
    data = load(str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(data.train.images, COLOUR.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.test.images, COLOUR.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"x_test": None}, "lacks x_test; it has x_train, y_train, y_test"),
        ({"x_train": GREY / 255}, "x_train is float64. Pixels are whole numbers from 0 to 255, labels whole"),
        ({"x_train": GREY.astype(int) * 2}, "x_train has values from 0 to "),
        ({"x_train": GREY[0]}, "x_train has shape (6, 6). Images are (N, H, W)"),
        ({"x_train": np.array([{}] * 30)}, "x_train holds pickled objects: refused. Loading them can run any code"),
        ({"y_train": LABELS * 1.0}, "y_train is float64. Pixels are whole numbers from 0 to 255, labels whole numbers"),
        ({"y_train": LABELS - 1}, "y_train: label -1 at index 0"),
        ({"y_train": LABELS * 200}, "y_train: label 1000 at index 5"),
        ({"y_train": LABELS[:29]}, "30 images in"),
        ({"x_test": GREY[:10, :5]}, "training images are 1 x 6 x 6, test images 1 x 5 x 6"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_npz_refused(tmp_path, changed, words, refused):
    refused(save_npz(tmp_path / "a.npz", **changed), words)


def test_npz_damaged(tmp_path, refused):
    path = save_npz(tmp_path / "a.npz")
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:500], whole.replace(GREY[3].tobytes(), GREY[4].tobytes())):
        path.write_bytes(content)
        refused(path, "a.npz: not a whole .npz file")


def test_npz_whose_header_promises_more_than_memory(tmp_path, refused):
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        member, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**4, 10**3)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for key in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{key}.npy", member.getvalue())
    refused(tmp_path / "a.npz", "10,000,000,000,000 bytes, 671,088,640 bytes are allowed. A set may")


# CSV


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
    monkeypatch.setattr(formats, "MAX_IMAGES", 30)
    assert len(formats.read_csv(path)[0]) == 30
    monkeypatch.setattr(formats, "MAX_IMAGES", 29)
    refused(path, "a.csv: has more than 29 lines")


# CIFAR-10


def cifar_batches(count=2):
    return {
        name: RNG.integers(0, 256, (count, 3073), np.uint8).clip(max=[9] + [255] * 3072).astype(np.uint8)
        for name in (*formats.CIFAR_FILES, formats.CIFAR_TEST)
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
    batches = cifar_batches()
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
    members = {name: batch.tobytes() for name, batch in cifar_batches().items()}
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
