"""torch's own four layers under batch statistics: the oracle of the tests, and what runs where no backend serves."""

import torch
from torch import Tensor
from torch.nn import functional as F

from convpool import eager
from convpool.geometry import Settings


def bn_relu_max_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    settings: Settings,
    *,
    eps: float,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float | Tensor = 0.0,
) -> Tensor:
    """`max_pool2d(relu(batch_norm(conv2d(x, weight, bias))))`, with the pool before the ReLU, which handles less then.

    Same value and gradients, for ReLU is monotone; updates the running statistics as `torch.nn.functional.batch_norm`.
    """
    z = eager.conv(x, weight, bias, settings)
    if isinstance(momentum, Tensor) and running_mean is not None and running_var is not None:
        mean, variance = running_mean.clone(), running_var.clone()
        normalised = F.batch_norm(z, mean, variance, gamma, beta, True, 1.0, eps)  # with momentum it would wait for it
        move(running_mean, mean, momentum)
        move(running_var, variance, momentum)
    else:
        normalised = F.batch_norm(z, running_mean, running_var, gamma, beta, True, float(momentum), eps)
    if eager.has_empty_windows(settings, z.shape[-2:]):
        y = eager.pool(F.relu(normalised), settings)
    else:
        y = F.relu(eager.pool(normalised, settings))
    return y.contiguous() if settings.contiguous_output else y


@torch.no_grad()
def move(running: Tensor, batch: Tensor, momentum: float | Tensor) -> None:
    """Update a running statistic by that of a batch."""
    running.copy_(running.to(batch.dtype) * (1 - momentum) + batch * momentum)


def check_count(shape: tuple[int, ...]) -> None:
    """Refuse a conv output of one value a channel, as torch does.

    Raises:
        ValueError: its variance would be that of one value.
    """
    batch, _, height, width = shape
    if batch * height * width == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {torch.Size(shape)}")
