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
from mnistfast.training.ahead import Drawn, Replay
from mnistfast.training.ranks import Ranks
from mnistfast.training.step import make_learner, take_step

CONFIG = TrainConfig(model="lenet5", optimizer="sgd", momentum=0.0, label_smoothing=0.1, clip=0.5)
INDEX, OLD = torch.arange(0, 40, 2), torch.arange(60, 80)


@pytest.fixture
def data(tiny):
    """200 images on the CPU."""
    return DeviceData(load(str(tiny)).train, torch.device("cpu"), [0.1], [0.3])


def lenet5():
    torch.manual_seed(0)
    return build("lenet5", old_classes=[10])


def loss_of(model, data, index, head=0):
    images, labels = data.gather(index)
    return F.cross_entropy(model(images, head), labels, label_smoothing=0.1)


@pytest.mark.parametrize("replay", [False, True])
def test_against_a_plain_step(data, replay):
    model, plain = lenet5(), lenet5()
    tuning = choose(model, "full", lr_mult=0.5, old_head=1)
    learner = make_learner(model, data, CONFIG, 1, Ranks(), tuning, Replay(data, 1) if replay else None)
    loss, logits, labels = take_step(learner, INDEX, Drawn(None, OLD if replay else None), 0.3)
    expected = loss_of(plain, data, INDEX) + (loss_of(plain, data, OLD, 1) if replay else 0)
    torch.testing.assert_close(logits, plain(data.gather(INDEX)[0]))
    assert torch.equal(labels, data.gather(INDEX)[1])
    assert (loss.requires_grad, logits.requires_grad) == (False, False)
    torch.testing.assert_close(loss, expected.detach())
    expected.backward()
    nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
    for (name, before), after in zip(plain.named_parameters(), model.parameters(), strict=True):
        rate = 0.3 * (1.0 if name.startswith("head.4") else 0.5)
        moved = 0 if before.grad is None else rate * before.grad
        torch.testing.assert_close(after, before - moved, msg=name)


def test_no_gradient_is_left_from_the_step_before(data):
    once, twice = lenet5(), lenet5()
    for parameter in twice.parameters():
        parameter.grad = torch.ones_like(parameter)
    for model in (once, twice):
        learner = make_learner(model, data, CONFIG, 1, Ranks(), Tuning(), None)
        take_step(learner, INDEX, Drawn(None, None), 0.1)
    for one, two in zip(once.parameters(), twice.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_average_is_judged(data):
    learner = make_learner(lenet5(), data, replace(CONFIG, ema=0.9), 2, Ranks(), Tuning(), None)
    for _ in range(2):
        take_step(learner, INDEX, Drawn(None, None), 0.1)
    assert learner.judged is learner.average.module
    assert not torch.equal(learner.judged.last.weight, learner.model.last.weight)
    assert make_learner(lenet5(), data, CONFIG, 2, Ranks(), Tuning(), None).judged is not learner.judged
