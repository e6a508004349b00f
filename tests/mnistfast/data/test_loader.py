"""Batches on the device: every sample, its own label, a new order each epoch, the plain formula."""

import numpy as np
import pytest
import torch

from mnistfast.data.datasets import Split
from mnistfast.data.loader import DeviceData, epoch_order
from mnistfast.data.statistics import channel_stats

CPU = torch.device("cpu")


def numbered(n, channels=1):
    """Returns a split whose image `i` is `i` everywhere and whose label is `i`: a sample that tells which one it is."""
    labels = np.arange(n)
    return Split(np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (n, channels, 2, 3)).copy(), labels)


def plain(split):
    """Returns data that keeps pixel / 255 (mean 0, deviation 1)."""
    channels = split.images.shape[1]
    return DeviceData(split, CPU, [0.0] * channels, [1.0] * channels)


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 8, [3]), (5, 1, [1] * 5)]
)
def test_all_samples_once_and_the_last_batch_is_smaller(n, batch_size, sizes):
    data = plain(numbered(n))
    batches = list(data.batches(batch_size))
    assert [len(labels) for _, labels in batches] == sizes
    assert torch.cat([labels for _, labels in batches]).tolist() == list(range(n))
    assert len(data) == n


def test_each_image_comes_with_its_own_label():
    # Catches a label off by one against the image, in any order.
    data = plain(numbered(50))
    for index in epoch_order(50, seed=0, epoch=0).split(7):
        images, labels = data.gather(index)
        assert images.shape == (len(labels), 1, 2, 3)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        wanted = labels.view(-1, 1, 1, 1).expand_as(images)
        np.testing.assert_allclose(images * 255, wanted, rtol=1e-6)


def test_index_is_followed_and_may_be_a_subset():
    _, labels = plain(numbered(10)).gather(torch.tensor([5, 2, 9, 2]))
    assert labels.tolist() == [5, 2, 9, 2]


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_is_the_plain_formula(channels):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, channels, 6, 5), np.uint8)
    mean, std = channel_stats(images)
    got, _ = DeviceData(Split(images, np.zeros(40, np.int64)), CPU, mean, std).gather(torch.arange(40))
    per_channel = (1, channels, 1, 1)
    wanted = (images / 255 - np.reshape(mean, per_channel)) / np.reshape(std, per_channel)
    # Terms below 4 before they cancel, three float32 roundings (scale, product, sum): 3 x 2^-24 x 4.
    np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=7.2e-7)
    np.testing.assert_allclose(got.mean(dim=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(got.std(dim=(0, 2, 3), correction=0), 1, atol=1e-5)


def test_channels_do_not_share_their_statistics():
    split = Split(np.full((1, 2, 1, 1), 255, np.uint8), np.zeros(1, np.int64))
    images, _ = DeviceData(split, CPU, [0.5, 0.0], [0.25, 2.0]).gather(torch.tensor([0]))
    np.testing.assert_allclose(images.flatten(), [2.0, 0.5], rtol=1e-6)


def test_a_batch_is_a_copy():
    data = plain(numbered(4))
    for images, labels in data.batches(4):
        images.zero_()
        labels.zero_()
    images, labels = data.gather(torch.arange(4))
    assert labels.tolist() == [0, 1, 2, 3]
    assert images[3].ne(0).all()


def test_the_set_lies_on_the_device_as_bytes():
    data = plain(numbered(4))
    assert data._images.dtype == torch.uint8


@pytest.mark.parametrize(("mean", "std"), [([0.0], [1.0]), ([0.0] * 3, [1.0]), ([0.0] * 2, [1.0, 0.0])])
def test_statistics_that_do_not_fit(mean, std):
    with pytest.raises(ValueError, match=r"channels|above 0"):
        DeviceData(numbered(4, channels=2), CPU, mean, std)


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_epoch_order_is_a_permutation(n):
    order = epoch_order(n, 3, 4)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(n))


def test_each_epoch_and_each_seed_shuffles_afresh():
    # Catches a shuffle drawn once: unrelated permutations of 1,000 agree in one place on average.
    orders = [epoch_order(1000, seed, epoch) for seed in (0, 1) for epoch in range(5)]
    orders.append(torch.arange(1000))
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 12


def test_epoch_order_depends_on_its_arguments_alone():
    first = epoch_order(100, 7, 3)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002  (the global state that must not matter)
    epoch_order(100, 7, 4)
    assert torch.equal(first, epoch_order(100, 7, 3))
