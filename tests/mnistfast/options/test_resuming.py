"""A resumed run continues as it began."""

import pytest

from mnistfast.errors import UsageError
from mnistfast.options.learning import TrainConfig
from mnistfast.options.resuming import FREE, resumed, settled

SAVED = {"lr": 0.1, "data": "/a", "device": "cpu"}


def test_what_may_change_changes():
    assert resumed(SAVED, {"data": "/b", "lr": 0.1}, "run") == {"lr": 0.1, "data": "/b", "device": "cpu"}


def test_what_may_not_is_refused():
    with pytest.raises(UsageError, match=r"--batch-size is 3, but run was started with None\. A resumed run continues"):
        resumed(SAVED, {"batch_size": 3}, "run")


def test_the_state_is_bound_to_the_others():
    options = settled(TrainConfig(lr=0.5, device="cuda", threads=3))
    assert not FREE & options.keys()
    assert options["lr"] == 0.5
    assert {"seed", "batch_size", "model"} <= options.keys()
