"""What an epoch's steps came to, every image counted once."""

import pytest
import torch

from mnistfast.options.learning import TrainConfig
from mnistfast.training.plan import Plan
from mnistfast.training.ranks import Ranks
from mnistfast.training.tally import Tally

PLAN = Plan(1, 10, TrainConfig(batch_size=4))  # steps of 4, 4 and 2 images
CPU = torch.device("cpu")


SIZES = (4, 4, 2)


def step(tally, slot, loss):
    """A step that answered class 0 and was right with its first image alone."""
    images = slice(PLAN.bounds[slot], PLAN.bounds[slot + 1])
    tally.losses[images] = loss / SIZES[slot]
    tally.answers[images] = 0


def begun(tally, steps=0):
    tally.begin(torch.tensor([0, 1, 1, 1] * 2 + [0, 1]), steps)
    return tally


def filled(losses):
    tally = begun(Tally(PLAN, Ranks(), CPU))
    for slot, loss in enumerate(losses):
        step(tally, slot, loss)
    return tally


@pytest.mark.parametrize(
    ("losses", "expected"), [([1.0], (1.0, 1 / 4)), ([1.0, 2.0], (1.5, 2 / 8)), ([1.0, 2.0, 6.0], (2.4, 3 / 10))]
)
def test_the_smaller_step_counts_less(losses, expected):
    assert filled(losses).means(len(losses)) == pytest.approx(expected)


def test_the_first_loss_that_is_no_number():
    assert filled([1.0, 2.0]).first_bad(0) is None
    assert filled([1.0, 2.0]).first_bad(2) is None
    assert filled([1.0, float("inf"), float("nan")]).first_bad(3) == (1, float("inf"))
    assert filled([1.0, float("inf")]).first_bad(1) is None


def test_goes_on_where_it_was():
    whole, first, second = filled([1.0, 2.0, 6.0]), filled([1.0, 2.0]), Tally(PLAN, Ranks(), CPU)
    second.load(**first.state(2))
    step(begun(second, 2), 2, 6.0)
    assert second.means(3) == whole.means(3)


def test_sums_are_made_once_and_after_each_look():
    tally = filled([1.0])
    assert tally.means(1) == (1.0, 1 / 4)
    tally.losses[:4] = 9.0  # looked at already
    step(tally, 1, 2.0)
    step(tally, 2, 6.0)
    assert tally.means(3) == pytest.approx((2.4, 3 / 10))


def test_a_new_epoch_knows_nothing_of_the_last():
    tally = begun(filled([1.0, 2.0, 6.0]))
    assert tally.means(3) == (0.0, 0.0)
    assert tally.state(0)["losses"].shape == (0,)


def test_the_sums_go_on_in_the_first_process_alone(monkeypatch):
    monkeypatch.setattr(Ranks, "total", lambda self, values: values)  # its own share
    first, other = filled([1.0, 2.0]).state(2), Tally(PLAN, Ranks(1, 2), CPU)
    assert first["losses"].tolist() == [1, 2]
    other.load(**first)
    step(begun(other, 2), 2, 9.0)
    assert other.state(3)["losses"].tolist() == [0, 0, 9]
