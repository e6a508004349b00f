"""Losses and hits of the steps of an epoch, kept on the device and looked at seldom: a look waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from mnistfast.training.plan import Plan
from mnistfast.training.ranks import Ranks


class Tally:
    """What the steps of an epoch came to. Of several processes, each has its share and all ask alike.

    Attributes:
        losses: float32 (steps of an epoch,), of each step of this epoch so far.
    """

    def __init__(self, plan: Plan, ranks: Ranks, device: torch.device) -> None:
        self._plan, self._ranks = plan, ranks
        self.losses = torch.zeros(plan.steps_per_epoch, device=device)
        self._hits = torch.zeros(plan.steps_per_epoch, dtype=torch.int64, device=device)
        self._answers: list[tuple[Tensor, Tensor]] = []  # logits and labels of the steps whose hits are not yet counted

    def add(self, slot: int, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Notes the epoch's step `slot`: its loss, logits (N, classes) and labels (N,), all without gradients."""
        self.losses[slot] = loss
        self._answers.append((logits, labels))

    def means(self, steps: int) -> tuple[float, float]:
        """Returns loss and accuracy over the first `steps` steps of this epoch; every image counts the same."""
        self._count_hits(steps)
        bounds = torch.tensor(self._plan.bounds[: steps + 1], dtype=torch.float64)
        sizes, images = bounds.diff(), self._plan.bounds[steps]
        loss = (self._ranks.total(self.losses[:steps]).cpu().double() * sizes).sum() / images
        return loss.item(), self._ranks.total(self._hits[:steps]).sum().item() / images

    def first_bad(self, steps: int) -> tuple[int, float] | None:
        """Returns the first of `steps` steps whose loss is no finite number, and the loss; None: all are."""
        if not steps:
            return None
        losses = self._ranks.total(self.losses[:steps])
        bad = (~torch.isfinite(losses)).nonzero()
        if not len(bad):
            return None
        slot = int(bad[0])
        return slot, losses[slot].item()

    def state(self, steps: int) -> dict[str, Tensor]:
        """Returns what has to be saved after `steps` steps of an epoch: sums over all processes, on the CPU."""
        self._count_hits(steps)
        return {
            "losses": self._ranks.total(self.losses[:steps]).cpu(),
            "hits": self._ranks.total(self._hits[:steps]).cpu(),
        }

    def load(self, losses: Tensor, hits: Tensor) -> None:
        """Goes on from what `state` returned: the sums go on in the first process."""
        if not self._ranks.first:
            losses, hits = torch.zeros_like(losses), torch.zeros_like(hits)
        self.losses[: len(losses)], self._hits[: len(losses)] = losses, hits

    def _count_hits(self, steps: int) -> None:
        """Fills in the hits of the last of `steps` steps, for all at once: a step's four operations took it 0.2 ms."""
        if self._answers:
            logits, labels = zip(*self._answers, strict=True)
            right = torch.cat(logits).argmax(1) == torch.cat(labels)
            counts = [part.sum() for part in right.split([len(some) for some in labels])]
            self._hits[steps - len(counts) : steps] = torch.stack(counts)
            self._answers.clear()
