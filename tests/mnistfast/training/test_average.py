"""The moving average of the weights: torch's own values and states, without a look at the device."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from mnistfast.models.zoo import build
from mnistfast.training.average import Average

DECAY = 0.7  # below (1 + t) / (10 + t) from the 21st step on


def torchs(model):
    def move(averages, weights, steps):
        torch._foreach_lerp_(averages, weights, 1 - min(DECAY, (1 + int(steps)) / (10 + int(steps))))

    return AveragedModel(model, multi_avg_fn=move)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build("accurate").to(memory_format=torch.channels_last)


def walk(model, *updates, steps):
    """Moves weights and statistics at random, and calls `updates` after each step."""
    for _ in range(steps):
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.add_(torch.randn(tensor.shape) if tensor.is_floating_point() else 1)
        for update in updates:
            update(model)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_torchs_own_average_bit_for_bit(model):
    ours, theirs = Average(model, DECAY, 30), torchs(model)
    for _ in range(30):
        walk(model, ours.update, theirs.update_parameters, steps=1)
        assert same(ours.state_dict(), theirs.state_dict())
    assert same(dict(ours.module.named_buffers()), dict(model.named_buffers()))


def test_goes_on_from_a_state_of_torchs(model):
    theirs = torchs(model)
    walk(model, theirs.update_parameters, steps=12)
    ours = Average(build("accurate"), DECAY, 30)
    ours.load_state_dict(theirs.state_dict())
    walk(model, ours.update, theirs.update_parameters, steps=18)
    assert same(ours.state_dict(), theirs.state_dict())


def test_asks_the_device_nothing(model):
    """A tensor on "meta" has no value to be asked for."""
    model = model.to("meta")
    average = Average(model, DECAY, 3)
    for _ in range(3):
        average.update(model)
    assert all(tensor.is_meta for tensor in (*average.parameters(), *average.buffers()))
