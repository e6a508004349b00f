"""The samples of an epoch lie on the device as each of its steps draws them for itself."""

import pytest
import torch

from mnistfast.data.augment import AUGMENTATIONS, augment, warp
from mnistfast.data.datasets import Split
from mnistfast.data.loader import DeviceData, epoch_order
from mnistfast.data.sources import load
from mnistfast.models.zoo import build
from mnistfast.options.learning import TrainConfig
from mnistfast.training.epoch import Epoch, Replay
from mnistfast.training.plan import Plan

CONFIG = TrainConfig(batch_size=48, first_batch=10, augment="mild", seed=3)
PLAN = Plan(2, 170, CONFIG)


@pytest.fixture
def replay(tiny):
    split = load(str(tiny)).train
    return Replay(DeviceData(Split(split.images, split.labels), torch.device("cpu"), [0.1], [0.3]), 1)


@pytest.mark.parametrize("epochs", [[0, 1], [1], [1, 0]])
def test_each_step_has_its_own(replay, epochs):
    samples, how = Epoch(CONFIG, PLAN, replay, build("cnn2")), AUGMENTATIONS["mild"]
    places = [tensor.data_ptr() for tensor in (samples.order, samples.old, samples.moves.affine, samples.moves.bumps)]
    for epoch in epochs:
        samples.begin(epoch)
        assert torch.equal(samples.order, epoch_order(170, 3, epoch))
        for slot in range(PLAN.steps_per_epoch):
            step = epoch * PLAN.steps_per_epoch + slot
            count, key = PLAN.images_of(step), (CONFIG.seed, step)
            rows = torch.arange(PLAN.bounds[slot], PLAN.bounds[slot + 1])
            images = torch.randn(count, 1, 28, 28)
            assert torch.equal(samples.old[rows], replay.draw(count, key))
            assert torch.equal(warp(images, how, samples.moves.at(rows)), augment(images, how, how.draw(count, key)))
    assert places == [t.data_ptr() for t in (samples.order, samples.old, samples.moves.affine, samples.moves.bumps)]


def test_an_epoch_that_is_cut_short(replay):
    config = TrainConfig(batch_size=48, augment="mild", max_steps=6)
    samples = Epoch(config, Plan(2, 170, config), replay, build("cnn2"))
    samples.begin(1)  # two steps of four
    assert torch.equal(samples.old[48:96], replay.draw(48, (0, 5)))
    assert not samples.old[96:].any()


def test_nothing_is_drawn_for_nothing():
    samples = Epoch(TrainConfig(), PLAN, None, build("cnn2"))
    samples.begin(0)
    assert (samples.moves, samples.old) == (None, None)
