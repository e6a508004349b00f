"""Where a training is, kept on the device: what changes from step to step is read there, not handed over."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cursor:
    """Where a training is, on its device, where kernels and a replayed graph read it.

    A step has two of them, so that no kernel reads what it writes: the step's first operation copies `coming` to `now`,
    which all others read, and the last one that judges its batch sets `coming`.

    Attributes:
        coming: int64 (2,), of the step to come: its number in the training, and how many images of its epoch come
            before it.
        now: int64 (2,), the same of the step that is being taken.
    """

    coming: Tensor
    now: Tensor
    # What is asked for in every step is made once, and held where a graph may read it. By the rows, by the images:
    _rows: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False, repr=False)
    _strides: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def begin(cls, device: torch.device) -> Cursor:
        """Returns the cursor of a training's first step."""
        return cls(*(torch.zeros(2, dtype=torch.int64, device=device) for _ in range(2)))

    def move(self, step: int, start: int) -> None:
        """Sets `coming`, as a launch of its own: nothing waits for the device."""
        self.coming[0].fill_(step)
        self.coming[1].fill_(start)

    def advance(self, images: int) -> None:
        """Sets `coming` to one step and so many images behind `now`."""
        stride = self._strides.get(images)
        if stride is None:
            stride = self._strides[images] = torch.tensor([1, images], device=self.now.device)
        torch.add(self.now, stride, out=self.coming)

    def positions(self, rows: slice) -> Tensor:
        """Returns where in the epoch these rows of the step's batch are: int64 (rows,)."""
        numbers = self._rows.get((rows.start, rows.stop))
        if numbers is None:
            numbers = torch.arange(rows.start, rows.stop, device=self.now.device)
            self._rows[rows.start, rows.stop] = numbers
        return numbers + self._start

    @cached_property
    def step(self) -> Tensor:
        """The number of the step that is being taken: int64 (1,), a view of `now`."""
        return self.now[:1]

    @cached_property
    def _start(self) -> Tensor:
        return self.now[1]
