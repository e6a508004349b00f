"""Where a training is: set by the host, read on the device, moved by its steps."""

import torch

from mnistfast.ops.cursor import Cursor

CPU = torch.device("cpu")


def test_a_training_begins_at_its_first_image():
    cursor = Cursor.begin(CPU)
    assert (cursor.coming.tolist(), cursor.now.tolist()) == ([0, 0], [0, 0])
    assert (cursor.coming.dtype, cursor.now.dtype) == (torch.int64, torch.int64)


def test_what_is_coming_is_set_without_touching_now():
    cursor = Cursor.begin(CPU)
    cursor.move(7, 96)
    assert (cursor.coming.tolist(), cursor.now.tolist()) == ([7, 96], [0, 0])


def test_a_step_is_one_step_and_its_images_further():
    cursor = Cursor.begin(CPU)
    cursor.now.copy_(torch.tensor([7, 96]))
    cursor.advance(32)
    assert (cursor.coming.tolist(), cursor.now.tolist()) == ([8, 128], [7, 96])


def test_positions_are_those_of_the_rows_that_are_wanted():
    cursor = Cursor.begin(CPU)
    cursor.now.copy_(torch.tensor([7, 96]))
    assert cursor.positions(slice(2, 5)).tolist() == [98, 99, 100]
    assert cursor.positions(slice(4, 4)).tolist() == []
