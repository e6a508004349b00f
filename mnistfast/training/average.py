"""The moving average of a model's weights over its steps, of which the host need not know how many there were."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from convpool.torch_private import foreach_copy_, foreach_lerp_
from mnistfast.models.zoo import Classifier


class Average(nn.Module):
    """An exponential moving average of weights; its state is that of torch's `AveragedModel`, whose place it takes.

    After t steps the decay is at most (1 + t) / (10 + t), so that a short training forgets the random weights that it
    began with: of the decay 0.999 alone, two thirds of them would be left after MNIST's 422 steps an epoch.

    The count of steps lies on the device and points into a table: `AveragedModel` asks the device for it several times
    a step, which waits for all that the device has yet to do.

    Attributes:
        module: the model with the average weights, and with the latest of whatever else it keeps.
    """

    n_averaged: Tensor
    _shares: Tensor

    def __init__(self, model: Classifier, decay: float, steps: int) -> None:
        """Begins with a copy of `model`, for at most so many `steps`."""
        super().__init__()
        self.module = deepcopy(model)
        device = next(model.parameters()).device
        # The first step is taken as it is. In float64, rounded once.
        shares = [1.0, *(1 - min(decay, (1 + t) / (10 + t)) for t in range(1, steps))]
        self.register_buffer("n_averaged", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("_shares", torch.tensor(shares, device=device), persistent=False)

    @torch.no_grad()
    def update(self, model: Classifier) -> None:
        """Takes in the weights of `model` after a step."""
        share = self._shares.index_select(0, self.n_averaged).squeeze()
        averages = tuple(self.module.parameters())
        weights = tuple(model.parameters())
        foreach_lerp_(averages, weights, [share] * len(weights))
        if kept := tuple(self.module.buffers()):
            foreach_copy_(kept, tuple(model.buffers()))
        self.n_averaged += 1
