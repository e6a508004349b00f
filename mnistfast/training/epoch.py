"""What the steps of an epoch learn from: the order of its samples, and what is random in them.

It lies on the device, in tensors that every epoch is written into, so that a step finds its samples by the cursor
alone: a replayed step reads nothing else. The draws are made on the CPU, so that they are the same on every device, and
sent together: step by step, some transfers would let the CPU wait for the device, and each would cost it a call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mnistfast.data.augment import AUGMENTATIONS, Augmentation, Maps, maps
from mnistfast.data.loader import DeviceData, epoch_order
from mnistfast.models.zoo import Classifier
from mnistfast.options.learning import LearnConfig
from mnistfast.training.plan import Plan


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


class Epoch:
    """The samples of the present epoch, in the order in which its steps take them.

    Attributes:
        order: int64 (images,), which samples they are.
        moves: how each is moved, (images, ...); None: they are not.
        old: int64 (images,), the old samples that are learnt from beside them; None: of none.
    """

    def __init__(self, config: LearnConfig, plan: Plan, replay: Replay | None, model: Classifier) -> None:
        """Takes `model` for the size of the images, and its device for theirs; `begin` fills the tensors."""
        self._config, self._plan, self._replay = config, plan, replay
        self._size, self._device = model.input_size[1:], next(model.parameters()).device
        self.order = self._room(torch.int64)
        self.old = None if replay is None else self._room(torch.int64)
        self.moves: Maps | None = None
        if config.augment != "none":
            one = maps(self._how, [self._how.draw(1, (0, 0))], self._size, torch.device("cpu"))
            affine, bumps = (self._room(torch.float32, *part.shape[1:]) for part in (one.affine, one.bumps))
            self.moves = Maps(affine, bumps)

    def begin(self, epoch: int) -> None:
        """Fills in the samples of `epoch`, counted from 0; what is random hangs on the seed and the step alone."""
        self.order.copy_(epoch_order(len(self.order), self._config.seed, epoch), non_blocking=True)
        first, count = epoch * self._plan.steps_per_epoch, self._plan.steps_in(epoch)
        keys = [(self._plan.images_of(step), (self._config.seed, step)) for step in range(first, first + count)]
        images = self._plan.bounds[count]
        if self.moves:
            drawn = maps(self._how, [self._how.draw(*key) for key in keys], self._size, self._device)
            self.moves.affine[:images], self.moves.bumps[:images] = drawn.affine, drawn.bumps
        if self.old is not None and self._replay:
            self.old[:images] = torch.cat([self._replay.draw(*key) for key in keys]).to(self._device, non_blocking=True)

    @property
    def _how(self) -> Augmentation:
        return AUGMENTATIONS[self._config.augment]

    def _room(self, dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.zeros((self._plan.images, *shape), dtype=dtype, device=self._device)
