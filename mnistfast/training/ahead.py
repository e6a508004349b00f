"""What is random in a step's samples, drawn and sent to the device before the step, for many steps at once.

The draws are made on the CPU, so that they are the same on every device. Sent step by step, some of them would let the
CPU wait for the device, and all of them would cost it a call each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mnistfast.data.augment import AUGMENTATIONS, Maps, maps
from mnistfast.data.loader import DeviceData
from mnistfast.models.zoo import Classifier
from mnistfast.options.learning import LearnConfig
from mnistfast.training.plan import Plan

AT_ONCE = 32  # steps: 1.7 MB for batches of 128 images that are moved elastically


@dataclass(frozen=True)
class Replay:
    """Old samples that are learnt from beside the new ones, as many in every step, so that their task is not forgotten.

    Attributes:
        data: the old samples.
        head: which of the model's heads answers them.
    """

    data: DeviceData
    head: int

    def draw(self, count: int, key: tuple[int, int]) -> Tensor:
        """Returns the indices of `count` samples, each drawn from all; the same `key` gives the same ones."""
        return torch.from_numpy(np.random.default_rng([*key, 1]).integers(len(self.data), size=count))


@dataclass(frozen=True)
class Drawn:
    """What is random in the samples of one step, on the device.

    Attributes:
        moves: how its images are moved; None: they are not.
        old: int64 indices of the old samples that it learns from; None: of none.
    """

    moves: Maps | None
    old: Tensor | None


class Ahead:
    """The draws of a training, by step; they hang on the seed and the step alone."""

    def __init__(
        self, config: LearnConfig, plan: Plan, replay: Replay | None, model: Classifier, at_once: int = AT_ONCE
    ) -> None:
        """Takes `model` for the size of the images, and its device for theirs; draws for `at_once` steps together."""
        self._config, self._plan, self._replay, self._at_once = config, plan, replay, at_once
        self._size, self._device = model.input_size[1:], next(model.parameters()).device
        self._drawn: dict[int, Drawn] = {}

    def take(self, step: int) -> Drawn:
        """Returns the draws of `step`."""
        self.reach(step)
        return self._drawn[step]

    def reach(self, step: int) -> None:
        """Makes sure that the draws of `step` are there, if the training has such a step."""
        if step in self._drawn or step >= self._plan.steps:
            return
        steps = range(step, min(step + self._at_once, self._plan.steps))
        moves, old = self._moves(steps), self._old(steps)
        self._drawn = dict(zip(steps, map(Drawn, moves, old), strict=True))

    def _moves(self, steps: range) -> Sequence[Maps | None]:
        how = AUGMENTATIONS[self._config.augment]
        if self._config.augment == "none":
            return [None] * len(steps)
        draws = [how.draw(self._plan.images_of(step), (self._config.seed, step)) for step in steps]
        return maps(how, draws, self._size, self._device)

    def _old(self, steps: range) -> Sequence[Tensor | None]:
        if self._replay is None:
            return [None] * len(steps)
        draws = [self._replay.draw(self._plan.images_of(step), (self._config.seed, step)) for step in steps]
        return torch.cat(draws).to(self._device, non_blocking=True).split([len(draw) for draw in draws])
