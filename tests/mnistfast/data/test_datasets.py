"""What is refused of splits that contradict each other, and what a data set made of them says of itself."""

import numpy as np
import pytest
from PIL import Image

from mnistfast.data.sources import load
from mnistfast.errors import DataError, UsageError

COLOUR = np.random.default_rng(0).integers(0, 256, (30, 6, 6, 3), np.uint8)
LABELS = np.arange(30) % 10


def test_folder_that_holds_mnist_is_called_so(tmp_path, write_set, official):
    assert load(str(write_set(tmp_path / "mine"))).name == "mnist"


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


def test_mnist_in_another_format_is_called_mnist(tmp_path, arrays, official):
    names = {role: f"{'x' if 'images' in role else 'y'}_{role.split('-')[0]}" for role in arrays}
    np.savez(tmp_path / "mine.npz", **{names[role]: array for role, array in arrays.items()})
    assert load(str(tmp_path / "mine.npz")).name == "mnist"


@pytest.mark.parametrize("resize", [None, 6, 9])
@pytest.mark.parametrize("gray", [False, True])
def test_arrays_are_fitted_too(tmp_path, resize, gray):
    path = tmp_path / "a.npz"
    np.savez(path, x_train=COLOUR, y_train=LABELS, x_test=COLOUR[:10], y_test=LABELS[:10])
    data = load(str(path), resize=resize, gray=gray)
    side = resize or 6
    assert data.train.images.shape == (30, 1 if gray else 3, side, side)
    image = Image.fromarray(COLOUR[4]).convert("L") if gray else Image.fromarray(COLOUR[4])
    expected = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(data.train.images[4], expected[None] if gray else expected.transpose(2, 0, 1))
    assert (data.hashes == load(str(path)).hashes) is (resize != 9 and not gray)
