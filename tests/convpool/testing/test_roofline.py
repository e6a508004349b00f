"""The work that a layer cannot avoid, and the peaks that it is held to."""

import torch

from convpool.testing import roofline
from convpool.testing.cases import by_name

CPU = torch.device("cpu")


def test_the_necessary_work_of_a_layer() -> None:
    geometry = by_name("lenet5-1").geometry  # (4, 1, 28, 28) -> 6 k5 p2, pooled to 14x14
    forward = roofline.work(geometry, torch.float32, dx=False, backward=False)
    x, y, parameters = 4 * 784, 4 * 6 * 196, 6 * 26
    assert forward == roofline.Work(2 * 25 * 4 * 6 * 784, 4 * (x + y + parameters))
    training = roofline.work(geometry, torch.float32, dx=False, backward=True)
    assert training.flops - forward.flops == 2 * 25 * y
    assert training.bytes - forward.bytes == 2 * y + 4 * (y + x + parameters)  # codes twice; dy, x; dw and db
    both = roofline.work(geometry, torch.float32, dx=True, backward=True)
    assert both.flops - training.flops == 2 * 25 * y
    assert both.bytes - training.bytes == 4 * (x + parameters)


def test_the_bound_is_the_slower_of_the_two() -> None:
    peaks = roofline.Peaks(flops=100.0, bandwidth=10.0)
    assert peaks.bound(roofline.Work(1000, 10)) == 10
    assert peaks.bound(roofline.Work(10, 1000)) == 100


def test_peaks_are_measured_once() -> None:
    first = roofline.peak_bandwidth(CPU, 60_000)
    assert first == roofline.peak_bandwidth(CPU, 50_000)  # within the same power of two
    assert first > 0
