"""torch's own layers, kept away from what is wrong in them."""

import itertools

import pytest
import torch

from convpool import eager
from convpool.geometry import make_settings
from tests.convpool.samples import VIEWS

STRIDES = ("contiguous", "channels-last-strides", "slice-of-channels")


def wrong_convolutions(channels: int) -> tuple[int, int]:
    """How many of a sweep's convolutions with few output columns are not exact on integers, and how many there are."""
    generator, wrong, count = torch.Generator().manual_seed(0), 0, 0

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randint(-2, 3, shape, generator=generator).float()

    pairs = list(itertools.product((1, 2, 3), repeat=2))
    for kernel, stride, padding, outputs, columns in itertools.product(pairs, pairs, (0, 1), (1, 17), (1, 2)):
        width = kernel[1] + (columns - 1) * stride[1] + (stride[1] > 1) - 2 * padding
        if width < 1:
            continue
        x, weight = drawn(3, channels, 9, width), drawn(outputs, channels, *kernel)
        settings = make_settings(kernel, stride, padding)
        expected = eager.conv(x.double(), weight.double(), None, settings)
        for of_x, of_weight in itertools.product(STRIDES, STRIDES[:2]):
            z = eager.conv(VIEWS[of_x](x), VIEWS[of_weight](weight), None, settings)
            wrong += not torch.equal(z.double(), expected)
            count += 1
    return wrong, count


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_no_convolution_is_wrong(channels: int) -> None:
    """oneDNN's are, of one channel that by its strides is channels_last, with one column left of several."""
    wrong, count = wrong_convolutions(channels)
    assert wrong == 0
    assert count > 3000


@pytest.mark.parametrize("of_x", STRIDES[:2])
@pytest.mark.parametrize(("padding", "channels"), [(0, 1), (0, 3), (1, 2)])
def test_a_kernel_of_one_pixel_never_steps(padding: int, channels: int, of_x: str, monkeypatch) -> None:
    """torch's weight gradient of 15 images of 92x92 in channels_last, every second pixel, ends the process."""
    strides, conv2d = [], torch.nn.functional.conv2d

    def noted(x, weight, bias=None, stride=(1, 1), *rest, **named):
        strides.append(stride)
        return conv2d(x, weight, bias, stride, *rest, **named)

    x, weight, bias = torch.randn(2, channels, 8, 7), torch.randn(5, channels, 1, 1), torch.randn(5)
    x, settings = VIEWS[of_x](x), make_settings((1, 1), (2, 3), padding)
    expected = conv2d(x, weight, bias, (2, 3), padding)
    monkeypatch.setattr(torch.nn.functional, "conv2d", noted)
    z = eager.conv(x, weight, bias, settings)
    assert strides == [(1, 1)]
    assert z.stride() == expected.stride()
    torch.testing.assert_close(z, expected)
