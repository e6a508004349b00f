"""A step begins with the samples, the rates and the place that its number says."""

import pytest
import torch

from mnistfast.ops.batch import Rates, take_batch, take_rows
from mnistfast.ops.cursor import Cursor

CPU = torch.device("cpu")
STEP, START = 5, 11


class Made:
    """40 images of a size, in an order of 30 positions, at a step in the middle."""

    def __init__(self, inside, size=(3, 5, 7), groups=3):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (40, *size), generator=generator, dtype=torch.uint8)
        self.labels = torch.randint(0, 10, (40,), generator=generator)
        self.scale, self.shift = torch.rand(2, 1, size[0], 1, 1, generator=generator)
        self.order = torch.randperm(40, generator=generator)[:30]
        self.cursor = Cursor(*(inside(torch.zeros(2, dtype=torch.int64)) for _ in range(2)))
        self.cursor.move(STEP, START)
        table = torch.rand(9, groups, dtype=torch.float64, generator=generator)
        self.rates = Rates(table, inside(torch.zeros(groups, dtype=torch.float64)))

    def take(self, rows, memory_format=torch.contiguous_format):
        data = self.images, self.labels, self.scale, self.shift
        return take_batch(*data, self.order, self.cursor, self.rates, rows, memory_format)

    def wanted(self, rows):
        samples = self.order[START + rows.start : START + rows.stop]
        return self.images[samples].float() * self.scale + self.shift, self.labels[samples]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(1, 28, 28), (3, 5, 7), (3, 32, 32), (1, 1, 1)])
def test_samples_are_those_of_the_order_to_the_bit(way, size, memory_format, inside):
    made, rows = Made(inside, size), slice(2, 7)
    x, y = made.take(rows, memory_format)
    images, labels = made.wanted(rows)
    assert torch.equal(x, images)
    assert torch.equal(y, labels)
    assert x.is_contiguous(memory_format=memory_format)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("rows", [slice(0, 19), slice(18, 19), slice(3, 3), slice(0, 0)], ids=str)
def test_any_rows_begin_the_step(way, rows, inside):
    made = Made(inside, (1, 2, 3))
    for ours, plain in zip(made.take(rows), made.wanted(rows), strict=True):
        assert torch.equal(ours, plain)
    assert made.cursor.now.tolist() == made.cursor.coming.tolist() == [STEP, START]
    assert torch.equal(made.rates.lr, made.rates.table[STEP])


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_each_group_has_its_rate(way, groups, inside):
    made = Made(inside, (1, 2, 3), groups)
    made.take(slice(0, 1))
    assert torch.equal(made.rates.lr, made.rates.table[STEP])


def test_within_a_step_a_second_data_set_changes_nothing(way, inside):
    made, other = Made(inside, (1, 2, 3)), Made(inside, (2, 3, 3))
    first, second = made.take(slice(0, 4)), made.take(slice(0, 4))
    other.cursor = made.cursor
    other.rates = made.rates
    assert torch.equal(first[0], second[0])
    assert torch.equal(other.take(slice(1, 3))[0], other.wanted(slice(1, 3))[0])
    assert made.cursor.now.tolist() == made.cursor.coming.tolist() == [STEP, START]


def test_rows_of_values_are_taken_as_they_are(inside):
    made, values = Made(inside), torch.rand(40, 6)
    x, y = take_rows(values, made.labels, made.order, made.cursor, made.rates, slice(1, 4))
    samples = made.order[START + 1 : START + 4]
    assert torch.equal(x, values[samples])
    assert torch.equal(y, made.labels[samples])
    assert made.cursor.now.tolist() == [STEP, START]
    assert torch.equal(made.rates.lr, made.rates.table[STEP])
