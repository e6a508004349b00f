"""Losses and hits of the steps of an epoch, kept on the device and looked at seldom: a look waits for the device."""

from __future__ import annotations

import math
from itertools import groupby, pairwise

import torch
from torch import Tensor

from mnistfast.training.plan import Plan
from mnistfast.training.ranks import Ranks


class Tally:
    """What the steps of an epoch came to. Of several processes, each has its share and all ask alike.

    A step writes down each of its images, at the image's place in the epoch, and adds nothing up: sums of many steps at
    once cost as much as those of one.

    Attributes:
        losses: float32 (images,), each image's share in the mean loss of its batch.
        answers: int64 (images,), the class that each image was taken for.
    """

    def __init__(self, plan: Plan, ranks: Ranks, device: torch.device) -> None:
        self._plan, self._ranks = plan, ranks
        self.losses = torch.zeros(plan.images, device=device)
        self.answers = torch.zeros(plan.images, dtype=torch.int64, device=device)
        self._labels = self.answers
        # Of the steps, on the CPU.
        self._step_losses = torch.zeros(plan.steps_per_epoch)
        self._step_hits = torch.zeros(plan.steps_per_epoch, dtype=torch.int64)
        self._summed = 0  # steps of the epoch

    def begin(self, labels: Tensor, steps: int) -> None:
        """Prepares for an epoch of which `steps` are over.

        Args:
            labels: int64 (images,), in the epoch's order.
            steps: those whose sums were loaded.
        """
        self._labels, self._summed = labels, steps
        self.losses.zero_()
        self.answers.fill_(-1)  # another process' images are no hits of this one

    def means(self, steps: int) -> tuple[float, float]:
        """Returns loss and accuracy over the first `steps` steps of this epoch; every image counts the same."""
        sizes = torch.tensor(self._sizes(0, steps), dtype=torch.float64)
        images = self._plan.bounds[steps]
        losses, hits = self._totals(steps)
        return ((losses.double() * sizes).sum() / images).item(), hits.sum().item() / images

    def first_bad(self, steps: int) -> tuple[int, float] | None:
        """Returns the first of `steps` steps whose loss is no finite number, and the loss; None: all are."""
        if not steps:
            return None
        losses, _ = self._totals(steps)
        return next(((slot, loss) for slot, loss in enumerate(losses.tolist()) if not math.isfinite(loss)), None)

    def state(self, steps: int) -> dict[str, Tensor]:
        """Returns what has to be saved after `steps` steps of an epoch: sums over all processes, on the CPU."""
        losses, hits = self._totals(steps)
        return {"losses": losses.clone(), "hits": hits.clone()}

    def load(self, losses: Tensor, hits: Tensor) -> None:
        """Goes on from what `state` returned: the sums go on in the first process."""
        if not self._ranks.first:
            losses, hits = torch.zeros_like(losses), torch.zeros_like(hits)
        self._step_losses[: len(losses)], self._step_hits[: len(losses)] = losses, hits

    def _totals(self, steps: int) -> tuple[Tensor, Tensor]:
        """Returns losses float32 and hits int64 of the first `steps` steps, (steps,), over all processes."""
        if self._summed < steps:
            losses, hits = self._sums(self._summed, steps).cpu()  # the one wait for the device
            self._step_losses[self._summed : steps], self._step_hits[self._summed : steps] = losses, hits
            self._summed = steps
        return self._ranks.total(self._step_losses[:steps]), self._ranks.total(self._step_hits[:steps])

    def _sums(self, first: int, last: int) -> Tensor:
        """Returns losses and hits of these steps, float64 (2, steps): so that rounding does not tell which were summed
        together, as it must not where a run was stopped between them."""
        images = slice(self._plan.bounds[first], self._plan.bounds[last])
        hits = self.answers[images] == self._labels[images]
        rows = torch.stack([self.losses[images].double(), hits.double()])
        alike = [(size, len(list(group))) for size, group in groupby(self._sizes(first, last))]
        parts = rows.split([size * count for size, count in alike], 1)
        return torch.cat(
            [part.view(2, count, size).sum(2) for part, (size, count) in zip(parts, alike, strict=True)], 1
        )

    def _sizes(self, first: int, last: int) -> list[int]:
        """Returns the images of each of these steps."""
        return [after - before for before, after in pairwise(self._plan.bounds[first : last + 1])]
