"""What looking through a set finds, and what of it makes `train --data-check` exit with 3."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mnistfast import train
from mnistfast.data.check import look_through
from mnistfast.data.datasets import Split
from mnistfast.data.sources import load


@pytest.fixture(scope="module")
def sample():
    return load("sample")


def changed(dataset, part, images=None, labels=None):
    split = getattr(dataset, part)
    split = Split(split.images if images is None else images, split.labels if labels is None else labels)
    return replace(dataset, **{part: split})


def test_sample_is_fit(sample):
    findings = look_through(sample)
    assert findings.wrong == []
    assert findings.counts == {"train": 4000, "test": 1000}
    assert findings.classes["3"] == {"train": 400, "test": 100}
    assert findings.duplicates == {"within train": 0, "within test": 0, "of test in train": 0}
    assert findings.polarity == {"train": "light on dark", "test": "light on dark"}
    assert findings.notes == [sample.notice]
    assert f"md5         {sample.hashes['train-images']}  train-images" in findings.lines()
    assert "class       3      400 train      100 test" in findings.lines()


@pytest.mark.parametrize(("copied", "wrong"), [(5, False), (6, True)])
def test_test_images_among_the_training_images(sample, copied, wrong):
    images = sample.test.images.copy()
    images[:copied] = sample.train.images[100 : 100 + copied]
    labels = sample.test.labels.copy()
    labels[:copied] = sample.train.labels[100 : 100 + copied]
    findings = look_through(changed(sample, "test", images, labels))
    assert findings.duplicates["of test in train"] == copied
    assert (f"{copied} of 1,000 test images are training images too" in findings.wrong) is wrong


def test_duplicates_and_contradictions(sample):
    images, labels = sample.train.images.copy(), sample.train.labels.copy()
    images[1], images[2] = images[0], images[0]
    labels[:3] = 4, 4, 7
    findings = look_through(changed(sample, "train", images, labels))
    assert findings.duplicates["within train"] == 2
    assert "1 images occur with different labels" in findings.notes


def test_missing_class(sample):
    labels = sample.test.labels.copy()
    labels[np.isin(labels, (3, 5))] = 0
    assert look_through(changed(sample, "test", labels=labels)).wrong == ["test has no image of class 3, 5"]


def test_imbalance_is_noted(sample):
    eights = np.flatnonzero(sample.train.labels == 8)
    kept = np.setdiff1d(np.arange(4000), eights[100:])
    part = changed(sample, "train", sample.train.images[kept], sample.train.labels[kept])
    assert any("4.0 times the training images of the smallest" in note for note in look_through(part).notes)


def test_polarity(sample):
    dark = changed(sample, "test", 255 - sample.test.images)
    assert look_through(dark).wrong == ["training images are light on dark, test images dark on light"]
    both = changed(dark, "train", 255 - sample.train.images)
    findings = look_through(both)
    assert findings.wrong == []
    assert "MNIST and models of it are light on dark" in findings.notes[-1]


def test_a_named_set_of_other_content(sample):
    findings = look_through(replace(sample, name="mnist"))
    assert findings.wrong[0].startswith("not the official mnist: train-images, train-labels, test-images")


def test_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--data", "sample", "--data-check"]) == 0
    assert capsys.readouterr().out.startswith("data        sample (")
    monkeypatch.setattr("mnistfast.data.check.LEAK", -1)
    assert train.main(["--data", "sample", "--data-check", "--json"]) == 3
    streams = capsys.readouterr()
    assert json.loads(streams.out)["wrong"] == ["0 of 1,000 test images are training images too"]
    assert json.loads(streams.err)["code"] == 3
    assert list(tmp_path.iterdir()) == []  # nothing is trained or written
