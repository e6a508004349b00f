"""Files and folders that a user names: what they are taken for, and the test set cut from one that has none."""

import numpy as np
import pytest

from mnistfast.data.sampling import holdout
from mnistfast.data.sources import load

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (30, 6, 6), np.uint8)
COLOUR = RNG.integers(0, 256, (30, 6, 6, 3), np.uint8)
LABELS = np.arange(30) % 10


@pytest.mark.parametrize("kaggle", [True, False])
def test_csv_without_test_labels_says_how_it_is_cut(tmp_path, kaggle, save_csv):
    images, labels = np.concatenate([GREY, 255 - GREY]), np.concatenate([LABELS] * 2)
    save_csv(tmp_path / "train.csv", images, labels)
    if kaggle:
        save_csv(tmp_path / "test.csv", GREY, labels=None)
    data = load(str(tmp_path if kaggle else tmp_path / "train.csv"))
    kept, held = holdout(labels, 12, seed=0)
    np.testing.assert_array_equal(data.train.images[:, 0], images[kept])
    np.testing.assert_array_equal(data.test.images[:, 0], images[held])
    np.testing.assert_array_equal(data.test.labels, labels[held])
    reason = "test.csv has no labels" if kaggle else "There is one file"
    assert data.notice.startswith(f"{reason}: one image in 5 (12, the same share of each class, drawn with seed 0)")


def test_class_folders_in_colour_with_a_stated_cut(tmp_path, save_folders):
    mixed = [*COLOUR[:19], GREY[0]]
    data = load(str(save_folders(tmp_path, mixed, ["cat", "dog"], parts=(".",))))
    assert (data.classes, data.train.images.shape, data.test.images.shape) == (
        ("cat", "dog"),
        (16, 3, 6, 6),
        (4, 3, 6, 6),
    )
    assert "There are no folders train and test: one image in 5 (4, the same share" in data.notice
    again = load(str(tmp_path))
    np.testing.assert_array_equal(again.test.images, data.test.images)
    grey = load(str(tmp_path), gray=True)
    assert grey.train.images.shape == (16, 1, 6, 6)


def test_too_few_images_to_cut(tmp_path, refused, save_folders):
    save_folders(tmp_path, COLOUR[:9], ["cat", "dog"], parts=(".",))
    refused(tmp_path, "9 images are too few to hold a test set out of them. 5 of each class are needed")


def test_empty_folder_names_what_it_may_hold(tmp_path, refused):
    refused(tmp_path, "one .npz, some .csv, cifar-10-batches-bin, folders of images by class; missing: all of them")
