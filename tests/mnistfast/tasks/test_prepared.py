"""Which images a task learns from, and what it refuses before anything is written."""

import numpy as np
import pytest

from mnistfast.data.datasets import from_splits
from mnistfast.data.sources import load
from mnistfast.errors import UsageError
from mnistfast.options.learning import TrainConfig
from mnistfast.tasks.prepared import check_augmentation, data_option, hold_out, limited


def test_a_limit_takes_the_same_share_of_each_class(tiny):
    labels = load(str(tiny)).train.labels
    allowed = np.flatnonzero(labels < 5)
    found = limited(labels, allowed, TrainConfig(limit=50))
    assert set(found) < set(allowed)
    assert np.bincount(labels[found]).tolist() == [10] * 5
    for limit in (None, 100, 101):
        assert limited(labels, allowed, TrainConfig(limit=limit)) is allowed


def test_what_is_held_out_is_not_learnt_from(tiny):
    split = load(str(tiny)).train
    usable = np.arange(0, 200, 2)
    config, train, held = hold_out(split, usable, TrainConfig(model="lenet5", val=20))
    parts = [{image.tobytes() for image in part.images} for part in (train, held)]
    assert [len(part) for part in parts] == [80, 20]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {image.tobytes() for image in split.images[usable]}
    assert config.epochs == TrainConfig(model="lenet5").planned_epochs(80)
    assert hold_out(split, usable, TrainConfig(val=0))[2] is None


def test_mirrored_characters_are_refused(tiny):
    digits = load(str(tiny))
    check_augmentation("mild", digits)
    with pytest.raises(UsageError, match=r"--augment objects mirrors images\. The classes of tiny are characters"):
        check_augmentation("objects", digits)
    classes = tuple(f"no. {n}" for n in range(10))
    check_augmentation("objects", from_splits(tiny, digits.train, digits.test, classes=classes))


def test_the_data_are_found_from_any_folder(tiny, monkeypatch):
    digits = load(str(tiny))
    monkeypatch.chdir(tiny.parent)
    assert data_option(TrainConfig(data="tiny"), digits) == str(tiny)
    assert data_option(TrainConfig(), digits) == digits.name
