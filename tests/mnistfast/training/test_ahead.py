"""The draws of many steps at once are those of each step for itself."""

import pytest
import torch

from mnistfast.data.augment import AUGMENTATIONS, augment, warp
from mnistfast.data.datasets import Split
from mnistfast.data.loader import DeviceData
from mnistfast.data.sources import load
from mnistfast.models.zoo import build
from mnistfast.options.learning import TrainConfig
from mnistfast.training import ahead as ahead_module
from mnistfast.training.ahead import Ahead, Replay
from mnistfast.training.plan import Plan

CONFIG = TrainConfig(batch_size=48, first_batch=10, augment="mild", seed=3)
PLAN = Plan(2, 170, CONFIG)


@pytest.fixture
def replay(tiny):
    split = load(str(tiny)).train
    return Replay(DeviceData(Split(split.images, split.labels), torch.device("cpu"), [0.1], [0.3]), 1)


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_each_step_has_its_own(replay, steps):
    ahead, how = Ahead(CONFIG, PLAN, replay, build("cnn2"), steps), AUGMENTATIONS["mild"]
    for step in (*range(PLAN.steps), 2):  # the last as a resumed run would ask
        count, key = PLAN.images_of(step), (CONFIG.seed, step)
        images, drawn = torch.randn(count, 1, 28, 28), ahead.take(step)
        assert torch.equal(drawn.old, replay.draw(count, key))
        assert torch.equal(warp(images, how, drawn.moves), augment(images, how, how.draw(count, key)))


def test_made_for_many_steps_at_once(monkeypatch):
    calls = []
    right = ahead_module.maps
    monkeypatch.setattr(
        ahead_module, "maps", lambda how, draws, *rest: calls.append(len(draws)) or right(how, draws, *rest)
    )
    ahead = Ahead(CONFIG, PLAN, None, build("cnn2"), 5)
    for step in range(PLAN.steps):
        ahead.take(step)
    ahead.reach(PLAN.steps)  # there is no such step
    assert calls == [5] * (PLAN.steps // 5) + [PLAN.steps % 5] * (PLAN.steps % 5 > 0)


def test_nothing_is_drawn_for_nothing():
    drawn = Ahead(TrainConfig(), PLAN, None, build("cnn2")).take(0)
    assert (drawn.moves, drawn.old) == (None, None)
