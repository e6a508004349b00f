"""Which images belong to which step of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from mnistfast.options.learning import GROWTH, LearnConfig


@dataclass(frozen=True)
class Plan:
    """The steps of a training.

    Attributes:
        epochs: times over the images.
        images: of an epoch.
        config: sizes of the batches, and where the training ends if not after the last epoch.
    """

    epochs: int
    images: int
    config: LearnConfig

    @cached_property
    def bounds(self) -> tuple[int, ...]:
        """The images of an epoch before each of its steps, and at the end all of them."""
        last, first = self.config.batch_size, self.config.first_batch or self.config.batch_size
        growing = GROWTH * min(self.images / self.config.mean_batch, self.config.max_steps or math.inf)
        bounds = [0]
        while bounds[-1] < self.images:
            share = min(1.0, (len(bounds) - 1) / growing)
            bounds.append(min(bounds[-1] + round(first + (last - first) * share), self.images))
        return tuple(bounds)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch that nothing cuts short."""
        return len(self.bounds) - 1

    @property
    def steps(self) -> int:
        """All steps of all epochs, the last of which `max_steps` may cut short."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.config.max_steps is None else min(steps, self.config.max_steps)

    def images_of(self, step: int) -> int:
        """Returns how many images `step` learns from."""
        slot = step % self.steps_per_epoch
        return self.bounds[slot + 1] - self.bounds[slot]

    def steps_in(self, epoch: int) -> int:
        """Returns the steps of `epoch`, counted from 0."""
        return min(self.steps_per_epoch, self.steps - epoch * self.steps_per_epoch)
