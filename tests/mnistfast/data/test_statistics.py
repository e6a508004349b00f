"""The statistics of pixels against their plain formula."""

import numpy as np
import pytest

from mnistfast.data.statistics import channel_stats
from mnistfast.errors import DataError


def test_channel_stats_is_the_plain_formula():
    images = np.random.default_rng(0).integers(
        0, 256, (5000, 3, 4, 3), np.uint8
    )  # more than one block of the histogram
    images[:, 1] //= 9
    mean, std = channel_stats(images)
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 2, 3)), rtol=1e-12)
    assert all(type(value) is float for value in (*mean, *std))


@pytest.mark.parametrize("images", [np.full((4, 1, 2, 2), 7, np.uint8), np.zeros((0, 1, 2, 2), np.uint8)])
def test_channel_stats_of_nothing(images):
    with pytest.raises(DataError, match="channel 0 of the training images has the same value"):
        channel_stats(images)
