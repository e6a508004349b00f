"""What a batch is told: its gradient, each image's loss and answer, and where the next batch begins."""

import pytest
import torch
import torch.nn.functional as F

from mnistfast.ops.cursor import Cursor
from mnistfast.ops.loss import learn_from

BATCH, START, IMAGES = 8, 11, 30
NAN, INF = float("nan"), float("inf")


class Told:
    """The results of a batch whose rows from `rows_start` on are judged in the middle of an epoch."""

    def __init__(self, inside, logits, labels, rows_start=1, smoothing=0.1, scale=1.0, **options):
        self.cursor = Cursor(*(inside(torch.tensor(pair)) for pair in ((0, 0), (5, START))))
        self.losses, self.answers = inside(torch.full((IMAGES,), 7.0)), inside(torch.full((IMAGES,), 7))
        options = {"batch": BATCH, "advance": True, "add": False, "answers": self.answers} | options
        kept = self.losses, options.pop("answers")
        given = {"rows_start": rows_start, "smoothing": smoothing, "scale": scale, **options}
        self.gradient = learn_from(logits, labels, self.cursor, *kept, **given)
        self.at = slice(START + rows_start, START + rows_start + len(labels))


def made(rows, classes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows + classes)
    logits = 4 * torch.randn(rows, classes, generator=generator)
    return logits.to(dtype), torch.randint(0, classes, (rows,), generator=generator)


def plain(logits, labels, smoothing):
    """Each image's share in the mean and the gradient of their sum, in float64."""
    logits = logits.double().requires_grad_()
    shares = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none") / BATCH
    return shares.detach(), torch.autograd.grad(shares.sum(), logits)[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("rows", "classes"), [(7, 10), (1, 10), (5, 1), (3, 2), (6, 37), (2, 1000), (2, 1500), (0, 10)]
)
def test_against_float64(way, rows, classes, smoothing, inside):
    logits, labels = made(rows, classes)
    told = Told(inside, logits, labels, smoothing=smoothing)
    shares, gradient = plain(logits, labels, smoothing)
    # A logarithm of a sum of `classes` exponentials, beside logits of up to 16.
    torch.testing.assert_close(told.losses[told.at], shares.float(), rtol=2e-6, atol=2e-6 / BATCH)
    torch.testing.assert_close(told.gradient, gradient.float(), rtol=5e-6, atol=1e-7 / BATCH)
    assert torch.equal(told.answers[told.at], logits.argmax(1))
    assert told.cursor.coming.tolist() == [6, START + BATCH]
    assert told.cursor.now.tolist() == [5, START]
    for kept in (told.losses, told.answers):  # of other images
        others = torch.cat([kept[: told.at.start], kept[told.at.stop :]])
        assert torch.equal(others, torch.full_like(others, 7))


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_torchs_gradient_is_autograds_to_the_bit(smoothing, scale, inside):
    """Of the cross-entropy against probabilities, which training has always learnt by."""
    logits, labels = made(128, 10)
    told = Told(inside, logits[:7], labels[:7], smoothing=smoothing, scale=scale)
    leaf, rest = logits[:7].clone().requires_grad_(), smoothing / 10
    wanted = torch.full_like(leaf, rest / BATCH, requires_grad=False)
    wanted.scatter_(1, labels[:7, None], (1 - smoothing + rest) / BATCH)
    F.cross_entropy(leaf, wanted, reduction="sum").backward(torch.tensor(scale))
    assert torch.equal(told.gradient, leaf.grad)


def test_the_gradient_is_scaled_and_the_losses_are_not(way, inside):
    logits, labels = made(5, 10)
    once, thrice = Told(inside, logits, labels), Told(inside, logits, labels, scale=3.0)
    torch.testing.assert_close(thrice.gradient, 3 * once.gradient)
    assert torch.equal(thrice.losses, once.losses)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_are_judged_in_float32(way, dtype, inside):
    logits, labels = made(6, 10, dtype)
    narrow, wide = Told(inside, logits, labels), Told(inside, logits.float(), labels)
    assert torch.equal(narrow.losses, wide.losses)
    assert torch.equal(narrow.answers, wide.answers)
    assert narrow.gradient.dtype == dtype
    # The interpreter cuts what it stores as bfloat16, in the place of rounding it.
    torch.testing.assert_close(narrow.gradient.float(), wide.gradient, rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # NumPy's, of infinities in Triton's interpreter
def test_the_first_of_equals_is_the_answer_and_nan_is_larger_than_any_number(way, inside):
    logits = torch.tensor([[1, 3, 3], [INF, NAN, NAN], [2, 2, 2], [-INF, -INF, -INF], [0, INF, INF], [NAN, 5, INF]])
    told = Told(inside, logits, torch.zeros(6, dtype=torch.int64))
    assert told.answers[told.at].tolist() == [1, 1, 0, 0, 1, 0]
    finite = torch.tensor([True, False, True, False, False, False])
    assert torch.equal(told.losses[told.at].isfinite(), finite)
    assert torch.equal(told.gradient.isfinite().all(1), finite)


def test_nobody_need_ask_for_answers(way, inside):
    told = Told(inside, *made(5, 10), answers=None)
    assert told.answers.tolist() == [7] * IMAGES


def test_losses_of_a_second_data_set_are_added(way, inside):
    logits, labels = made(5, 10)
    once, added = Told(inside, logits, labels), Told(inside, logits, labels, add=True, advance=False)
    torch.testing.assert_close(added.losses[added.at], 7 + once.losses[once.at])
    assert added.cursor.coming.tolist() == [0, 0]


def test_logits_may_be_a_part_of_others(way, inside):
    logits, labels = made(5, 10)
    whole = torch.cat([logits, logits], 1)
    part, own = Told(inside, whole[:, 10:], labels), Told(inside, logits, labels)
    assert torch.equal(part.gradient, own.gradient)
    assert torch.equal(part.losses, own.losses)


def test_slices_of_processes_make_the_batch(way, inside):
    logits, labels = made(8, 10)
    whole = Told(inside, logits, labels, rows_start=0)
    first, second = Told(inside, logits[:3], labels[:3], 0), Told(inside, logits[3:], labels[3:], 3)
    assert torch.equal(torch.cat([first.gradient, second.gradient]), whole.gradient)
    assert torch.equal(torch.cat([first.losses[first.at], second.losses[second.at]]), whole.losses[whole.at])
    assert first.cursor.coming.tolist() == second.cursor.coming.tolist() == whole.cursor.coming.tolist()


def test_works_where_nothing_is_differentiated(way, inside):
    logits, labels = made(4, 10)
    with torch.no_grad():
        inner = Told(inside, logits, labels)
    assert torch.equal(inner.gradient, Told(inside, logits, labels).gradient)
    assert not inner.gradient.requires_grad
