"""The optimisers, by the options that name them. Their rates lie on the device, where a step reads its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mnistfast.ops.batch import Rates
from mnistfast.options.learning import LearnConfig
from mnistfast.training.muon import Muon
from mnistfast.training.schedules import learning_rate


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


def make_rates(config: LearnConfig, optimizer: torch.optim.Optimizer, steps: int, device: torch.device) -> Rates:
    """Returns the rates of all `steps` steps for each group of `optimizer`, whose `lr_scale` they are multiplied with.

    In float64 on CPUs, where torch's fused kernels then compute with the bits of a Python number; a GPU's take float32.
    """
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    rates = [learning_rate(config.schedule, step, steps, config.lr) for step in range(steps)]
    table = torch.tensor(rates, dtype=torch.float64)[:, None] * torch.tensor(scales, dtype=torch.float64)
    return Rates(table.to(device, dtype), torch.zeros(len(scales), dtype=dtype, device=device))


def tie(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    """Lets `optimizer`, new or just loaded, read the rates of a step where the step writes them.

    What it keeps of a parameter is laid as the parameter lies, which another device may have had otherwise: fused
    kernels walk through both in the order of memory, and would take one weight's momentum for another's.
    """
    for group, lr in zip(optimizer.param_groups, rates.lr, strict=True):
        group["lr"] = lr
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)


@contextmanager
def capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Lets a step of `optimizer` be recorded; outside of that Adam warns of being able to."""
    groups = [group for group in optimizer.param_groups if "capturable" in group]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False


def saved(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns the optimiser's state with plain numbers for rates, which are read by nobody: `tie` gives them anew."""
    state = optimizer.state_dict()
    return {**state, "param_groups": [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]}
