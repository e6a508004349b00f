"""A step does what a plain one of torch's own calls does, and changes nothing but what it says."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mnistfast.data.loader import DeviceData
from mnistfast.data.sources import load
from mnistfast.models.adapters import Tuning, choose
from mnistfast.models.zoo import build
from mnistfast.options.learning import TrainConfig
from mnistfast.training.epoch import Replay
from mnistfast.training.plan import Plan
from mnistfast.training.ranks import Ranks
from mnistfast.training.step import make_learner, take_step

CONFIG = TrainConfig(
    model="lenet5", optimizer="sgd", momentum=0.0, label_smoothing=0.1, clip=0.5, lr=0.3, schedule="step", batch_size=20
)


@pytest.fixture
def data(tiny):
    """200 images on the CPU."""
    return DeviceData(load(str(tiny)).train, torch.device("cpu"), [0.1], [0.3])


def lenet5():
    torch.manual_seed(0)
    return build("lenet5", old_classes=[10])


def learner_of(model, data, config=CONFIG, tuning=Tuning(), replay=None):  # noqa: B008  # has no state
    learner = make_learner(model, data, config, Plan(1, len(data), config), Ranks(), tuning, replay)
    learner.epoch.begin(0)
    learner.tally.begin(data.labels[learner.epoch.order], 0)
    return learner


def loss_of(model, data, index, head=0):
    images, labels = data.gather(index)
    return F.cross_entropy(model(images, head), labels, label_smoothing=0.1)


@pytest.mark.parametrize("replay", [False, True])
def test_against_a_plain_step(data, replay):
    model, plain = lenet5(), lenet5()
    learner = learner_of(model, data, tuning=choose(model, "full", lr_mult=0.5, old_head=1))
    if replay:
        learner = learner_of(model, data, tuning=choose(model, "full", lr_mult=0.5, old_head=1), replay=Replay(data, 1))
    learner.cursor.move(6, 120)  # of ten steps: its rate is a tenth of the peak
    index = learner.epoch.order[120:140]
    expected = loss_of(plain, data, index)
    if replay:
        expected = expected + loss_of(plain, data, learner.epoch.old[120:140], 1)
    take_step(learner, 20)
    answers = plain(data.gather(index)[0]).argmax(1)
    torch.testing.assert_close(learner.tally.losses[120:140].sum(), expected.detach())
    assert torch.equal(learner.tally.answers[120:140], answers)
    assert learner.tally.losses.count_nonzero() == 20
    assert learner.cursor.coming.tolist() == [7, 140]
    expected.backward()
    nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
    for (name, before), after in zip(plain.named_parameters(), model.parameters(), strict=True):
        rate = 0.03 * (1.0 if name.startswith("head.4") else 0.5)
        moved = 0 if before.grad is None else rate * before.grad
        torch.testing.assert_close(after, before - moved, msg=name)


def test_no_gradient_is_left_from_the_step_before(data):
    once, twice = lenet5(), lenet5()
    for parameter in twice.parameters():
        parameter.grad = torch.ones_like(parameter)
    for model in (once, twice):
        take_step(learner_of(model, data), 20)
    for one, two in zip(once.parameters(), twice.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_average_is_judged(data):
    learner = learner_of(lenet5(), data, replace(CONFIG, ema=0.9))
    for _ in range(2):
        take_step(learner, 20)
    assert learner.judged is learner.average.module
    assert not torch.equal(learner.judged.last.weight, learner.model.last.weight)
    plain = learner_of(lenet5(), data)
    assert plain.judged is plain.model
