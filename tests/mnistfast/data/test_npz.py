"""Data sets in .npz files: what is read of them, and what is refused in one line."""

import io
import zipfile

import numpy as np
import pytest

from mnistfast.data.sources import load

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (30, 6, 6), np.uint8)
COLOUR = RNG.integers(0, 256, (30, 6, 6, 3), np.uint8)
LABELS = np.arange(30) % 10


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
