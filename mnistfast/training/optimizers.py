"""The optimisers, by the options that name them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mnistfast.options.learning import LearnConfig
from mnistfast.training.muon import Muon


def make_optimizer(config: LearnConfig, parameters: Any) -> torch.optim.Optimizer:
    """Returns the optimiser of `config`, in torch's fused form: one kernel a step instead of several a tensor."""
    if config.optimizer == "sgd":
        momentum = config.momentum
        return torch.optim.SGD(
            parameters, config.lr, momentum, weight_decay=config.weight_decay, nesterov=momentum > 0, fused=True
        )
    if config.optimizer == "muon":
        return Muon(parameters, config.lr, config.betas, config.momentum, config.weight_decay)
    adam = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return adam(parameters, config.lr, config.betas, weight_decay=config.weight_decay, fused=True)


def align(optimizer: torch.optim.Optimizer) -> None:
    """Lays what the optimiser keeps of a parameter as the parameter lies, which another device may have had otherwise.

    Fused kernels walk through both in the order of memory, and would take one weight's momentum for another's.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)
