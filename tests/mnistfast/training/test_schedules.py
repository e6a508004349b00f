"""Learning rates against torch's own schedulers."""

import pytest
import torch

from mnistfast.training.schedules import learning_rate


def rates(schedule, steps, peak=0.1):
    return [learning_rate(schedule, step, steps, peak) for step in range(steps)]


def torch_rates(make, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("steps", [5, 10, 57, 844])
def test_onecycle(steps):
    from torch.optim.lr_scheduler import OneCycleLR

    expected = torch_rates(lambda optimizer: OneCycleLR(optimizer, 0.1, steps, cycle_momentum=False), steps - 1)
    assert rates("onecycle", steps)[:-1] == pytest.approx(expected, rel=1e-9)
    assert rates("onecycle", steps)[-1] == pytest.approx(0.1 / 25 / 1e4)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_onecycle_of_very_few_steps(steps):
    assert all(0 < rate <= 0.1 for rate in rates("onecycle", steps))


def test_cosine():
    from torch.optim.lr_scheduler import CosineAnnealingLR

    expected = torch_rates(lambda optimizer: CosineAnnealingLR(optimizer, 40), 40)
    assert rates("cosine", 40) == pytest.approx(expected, rel=1e-9)


def test_step():
    from torch.optim.lr_scheduler import MultiStepLR

    expected = torch_rates(lambda optimizer: MultiStepLR(optimizer, [20, 30]), 40)
    assert rates("step", 40) == pytest.approx(expected)


def test_constant():
    assert set(rates("constant", 10)) == {0.1}


def test_linear():
    found = rates("linear", 100)
    assert found[:30] == pytest.approx([0.1 * (step + 0.5) / 30 for step in range(30)])
    assert found[30:] == pytest.approx([0.1 * (99.5 - step) / 70 for step in range(30, 100)])
    assert 0 < rates("linear", 1)[0] <= 0.1
