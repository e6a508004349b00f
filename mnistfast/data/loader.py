"""A whole split on the device as uint8; batches are gathered there by index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mnistfast.data.datasets import Split
from mnistfast.ops.batch import Rates, take_batch, take_rows
from mnistfast.ops.cursor import Cursor


class DeviceData:
    """One split on one device: images as uint8, normalised to float32 batch by batch. No worker processes.

    A uint8 set is small (MNIST's training images: 47 MB), so it lives on the device whole and a batch costs one gather
    and one conversion there, instead of a Python call for each image and a copy for each batch.

    Attributes:
        labels: int64 (N,), on the device.
    """

    def __init__(self, split: Split, device: torch.device, mean: Sequence[float], std: Sequence[float]) -> None:
        """Copies `split` to `device`.

        Args:
            split: images uint8 (N, C, H, W) and labels int64 (N,).
            device: where batches are wanted.
            mean: C channel means of pixel / 255.
            std: C channel standard deviations of pixel / 255, above 0.

        Raises:
            ValueError: `mean` or `std` do not have C entries, or an entry of `std` is not above 0.
        """
        channels = split.images.shape[1]
        if not len(mean) == len(std) == channels:
            raise ValueError(f"mean has {len(mean)} and std {len(std)} entries; the images have {channels} channels")
        if not all(value > 0 for value in std):
            raise ValueError(f"std is {tuple(std)}: every entry must be above 0")
        self._images = torch.from_numpy(split.images).to(device)
        self.labels = torch.from_numpy(split.labels).to(device)
        # As a GPU's convolutions want several channels; a CPU's take them as they are stored.
        last = device.type == "cuda" and channels > 1
        self._memory_format = torch.channels_last if last else torch.contiguous_format
        # (pixel / 255 - mean) / std as one multiplication and one addition; formed in float64, rounded once.
        per_channel = (1, channels, 1, 1)
        mean64, std64 = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        self._scale = torch.from_numpy(1 / (255 * std64)).float().view(per_channel).to(device)
        self._shift = torch.from_numpy(-mean64 / std64).float().view(per_channel).to(device)

    def __len__(self) -> int:
        """Returns the number of samples."""
        return len(self.labels)

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the samples at `index` (int64 (B,), any device).

        Returns:
            Images float32 (B, C, H, W), normalised, and labels int64 (B,), both on the device and both fresh copies.
        """
        index = index.to(self.labels.device)
        pixels = self._images.index_select(0, index)
        return pixels.to(torch.float32).mul_(self._scale).add_(self._shift), self.labels.index_select(0, index)

    def take(self, order: Tensor, cursor: Cursor, rates: Rates, rows: slice) -> tuple[Tensor, Tensor]:
        """Begins a step of a training, and returns those `rows` of its batch that come next in `order` (int64 (M,)).

        Returns:
            Images float32 (B, C, H, W), normalised, and labels int64 (B,).
        """
        return take_batch(
            self._images, self.labels, self._scale, self._shift, order, cursor, rates, rows, self._memory_format
        )

    def like_taken(self, count: int) -> Tensor:
        """Returns the images of the first `count` samples, float32 (count, C, H, W), with the strides that `take` gives
        them."""
        return self.gather(torch.arange(count))[0].contiguous(memory_format=self._memory_format)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields every sample once, as stored, in batches; the last one is smaller when the sizes do not divide."""
        for index in torch.arange(len(self), device=self.labels.device).split(batch_size):
            yield self.gather(index)


class EmbeddedData(DeviceData):
    """What a frozen body makes of one split: embeddings in the place of images, computed once."""

    def __init__(self, embeddings: Tensor, labels: Tensor) -> None:
        """Takes embeddings float32 (N, width) and labels int64 (N,), both on one device."""
        self._images, self.labels, self._memory_format = embeddings, labels, torch.contiguous_format

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the embeddings float32 (B, width) and labels int64 (B,) at `index` (int64 (B,), any device)."""
        index = index.to(self.labels.device)
        return self._images.index_select(0, index), self.labels.index_select(0, index)

    def take(self, order: Tensor, cursor: Cursor, rates: Rates, rows: slice) -> tuple[Tensor, Tensor]:
        """Begins a step, and returns the embeddings float32 (B, width) and labels int64 (B,) of its `rows`."""
        return take_rows(self._images, self.labels, order, cursor, rates, rows)


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Returns the order of `n` samples in `epoch`: int64 (n,), a permutation of 0..n-1, on the CPU.

    It depends on the three arguments alone, so a resumed run needs no generator state to shuffle as it would have.
    """
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(n))
