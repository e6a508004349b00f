"""What an epoch's steps came to, every image counted once."""

import pytest
import torch

from mnistfast.options.learning import TrainConfig
from mnistfast.training.plan import Plan
from mnistfast.training.ranks import Ranks
from mnistfast.training.tally import Tally

PLAN = Plan(1, 10, TrainConfig(batch_size=4))  # steps of 4, 4 and 2 images
CPU = torch.device("cpu")


def filled(losses):
    """A tally after steps that answered class 0 and were right with their first image alone."""
    tally = Tally(PLAN, Ranks(), CPU)
    for slot, (loss, size) in enumerate(zip(losses, (4, 4, 2), strict=False)):
        logits = torch.eye(3)[torch.zeros(size, dtype=torch.int64)]
        tally.add(slot, torch.tensor(loss), logits, (torch.arange(size) > 0).long())
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
    second.add(2, torch.tensor(6.0), torch.eye(3)[[0, 0]], torch.tensor([0, 1]))
    assert second.means(3) == whole.means(3)


def test_the_sums_go_on_in_the_first_process_alone():
    other = Tally(PLAN, Ranks(1, 2), CPU)
    other.losses.fill_(9.0)
    other.load(**filled([1.0, 2.0]).state(2))
    assert other.losses.tolist() == [0, 0, 9]
