"""Losses and hits of the steps of an epoch, kept on the device and looked at seldom: a look waits for the device."""

from __future__ import annotations

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
        self._step_losses = torch.zeros(plan.steps_per_epoch, device=device)
        self._step_hits = torch.zeros(plan.steps_per_epoch, dtype=torch.int64, device=device)
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
        bounds = torch.tensor(self._plan.bounds[: steps + 1], dtype=torch.float64)
        sizes, images = bounds.diff(), self._plan.bounds[steps]
        losses, hits = self._totals(steps)
        return ((losses.cpu().double() * sizes).sum() / images).item(), hits.sum().item() / images

    def first_bad(self, steps: int) -> tuple[int, float] | None:
        """Returns the first of `steps` steps whose loss is no finite number, and the loss; None: all are."""
        if not steps:
            return None
        losses, _ = self._totals(steps)
        bad = (~torch.isfinite(losses)).nonzero()
        if not len(bad):
            return None
        slot = int(bad[0])
        return slot, losses[slot].item()

    def state(self, steps: int) -> dict[str, Tensor]:
        """Returns what has to be saved after `steps` steps of an epoch: sums over all processes, on the CPU."""
        losses, hits = self._totals(steps)
        return {"losses": losses.cpu(), "hits": hits.cpu()}

    def load(self, losses: Tensor, hits: Tensor) -> None:
        """Goes on from what `state` returned: the sums go on in the first process."""
        if not self._ranks.first:
            losses, hits = torch.zeros_like(losses), torch.zeros_like(hits)
        self._step_losses[: len(losses)], self._step_hits[: len(losses)] = losses, hits

    def _totals(self, steps: int) -> tuple[Tensor, Tensor]:
        """Returns losses float32 and hits int64 of the first `steps` steps, (steps,), over all processes."""
        first, bounds = self._summed, self._plan.bounds
        if first < steps:
            images = slice(bounds[first], bounds[steps])
            sizes = [bounds[step + 1] - bounds[step] for step in range(first, steps)]
            hits = self.answers[images] == self._labels[images]
            for sums, parts in ((self._step_losses, self.losses[images]), (self._step_hits, hits)):
                sums[first:steps] = torch.stack([part.sum() for part in parts.split(sizes)])
            self._summed = steps
        return self._ranks.total(self._step_losses[:steps]), self._ranks.total(self._step_hits[:steps])
