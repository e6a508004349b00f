"""The loss that is learnt by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float, count: int) -> Tensor:
    """Returns the share that some images have in the mean cross-entropy of a batch.

    Against probabilities: with smoothing, torch's own way from class numbers takes nine small operations backwards
    instead of four. With the gradients dropped before the step, one of `cnn2` went from 9.8 to 9.3 ms on two threads.

    Args:
        logits: float (N, classes).
        labels: int64 (N,).
        smoothing: share of the probability that is spread evenly over the classes.
        count: images of the whole batch.
    """
    rest = smoothing / logits.shape[1]
    wanted = torch.full_like(logits, rest / count, dtype=torch.float32, requires_grad=False)
    wanted.scatter_(1, labels[:, None], (1 - smoothing + rest) / count)
    return F.cross_entropy(logits.float(), wanted, reduction="sum")
