"""Batch, loss and cursor together: step after step, an epoch goes over its order, and the next one over its own."""

import torch

from mnistfast.ops.batch import Rates, take_batch
from mnistfast.ops.cursor import Cursor
from mnistfast.ops.loss import learn_from

CPU, IMAGES = torch.device("cpu"), 10


def test_steps_follow_one_another_by_what_is_on_the_device(way):
    images, labels = torch.arange(IMAGES, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(IMAGES)
    one, order = torch.ones(1, 1, 1, 1), torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))
    rates = Rates(torch.arange(6.0).view(6, 1), torch.zeros(1))
    cursor, epoch = Cursor.begin(CPU), order.clone()
    losses, answers = torch.full((IMAGES,), 7.0), torch.full((IMAGES,), -1)
    for step, size in enumerate((4, 4, 2, 4, 4, 2)):
        if step == 3:  # what the host does between epochs
            assert torch.equal(answers, order)
            cursor.move(3, 0)
            epoch.copy_(order.flip(0))
        x, y = take_batch(images, labels, one, one, epoch, cursor, rates, slice(0, size), torch.contiguous_format)
        assert torch.equal(x.flatten(), y + 1.0)
        assert rates.lr.item() == step
        sure = 9 * torch.nn.functional.one_hot(y, IMAGES).float()
        judged = {"rows_start": 0, "smoothing": 0.0, "batch": size, "scale": 1.0}
        learn_from(sure, y, cursor, losses, answers, **judged, advance=True, add=False)
    assert torch.equal(answers, order.flip(0))
    assert losses.max() < 0.01
    assert cursor.coming.tolist() == [6, IMAGES]
