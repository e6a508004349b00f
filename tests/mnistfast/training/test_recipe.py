"""A training in one call says how its steps were launched."""

import time
from dataclasses import replace

import torch

from mnistfast import devices
from mnistfast.data.sources import load
from mnistfast.options.learning import TrainConfig
from mnistfast.training import launching
from mnistfast.training.recipe import built, learn


class Called:
    """In a recording's place: a replay calls the step."""

    def __init__(self, step):
        time.sleep(0.01)
        self.replay = step


def test_replayed_steps_learn_the_same_and_their_recording_is_known(tiny, monkeypatch):
    monkeypatch.setattr(devices, "can_replay", lambda device: True)
    monkeypatch.setattr(launching.CudaGraphs, "record", lambda _, step: Called(step))
    train, config = load(str(tiny)).train, TrainConfig(model="lenet5", batch_size=20, epochs=1)
    called, replayed = (
        learn(built(config, 10, torch.device("cpu")), train, replace(config, graph=graph)) for graph in ("off", "on")
    )
    assert (called.steps, called.replayed, called.recording) == (10, False, 0)
    assert (replayed.steps, replayed.replayed) == (10, True)
    assert replayed.recording >= 0.01
    for one, other in zip(called.model.parameters(), replayed.model.parameters(), strict=True):
        assert torch.equal(one, other)
