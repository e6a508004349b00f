"""Whether layers under batch statistics are one op at all, before anybody knows the picture that they will see."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from convpool import planning
from convpool.functional import autocast_dtype
from convpool.geometry import make_settings
from convpool.module import conv_options, pool_options

_POSITIONS = 64  # of the conv output, high and wide, and images: an ordinary picture, for which plans are asked


def obstacle(conv: Any, pool: Any, dx: bool) -> str | None:
    """Why conv -> norm -> ReLU -> pool stay torch's layers in training mode, or None.

    Args:
        conv, pool: an nn.Conv2d, and an nn.MaxPool2d or what has its attributes.
        dx: whether conv's input has a gradient.
    """
    weight = conv.weight
    if not isinstance(weight, Tensor):
        return "torch.fx records the layers, which follow train() and eval()"
    padding = conv.padding if conv.padding_mode == "zeros" else 0  # else it has been padded before
    options = {"padding": padding, **conv_options(conv), **pool_options(pool)}
    values = tuple((name, tuple(v) if isinstance(v, list) else v) for name, v in options.items())
    ask = _asked if torch.compiler.is_compiling() else _asked_once
    question = planning.normalised_with_dx if dx else planning.normalised
    requested = planning.requested_backend()
    return ask(tuple(weight.shape), values, autocast_dtype(weight), weight.device, requested, question)


def _asked(
    weight_shape: tuple[int, ...],
    options: tuple[tuple[str, Any], ...],
    dtype: torch.dtype,
    device: torch.device,
    requested: str,
    question: planning.Question,
) -> str | None:
    settings = make_settings(weight_shape[2:], **dict(options))
    spans = zip(settings.pool_kernel, settings.pool_dilation, strict=True)
    sizes = [max(_POSITIONS, 4 * kernel * dilation) for kernel, dilation in spans]
    axes = zip(sizes, settings.stride, weight_shape[2:], settings.dilation, strict=True)
    size = [(count - 1) * stride + (kernel - 1) * dilation + 1 for count, stride, kernel, dilation in axes]
    x_shape = _POSITIONS, weight_shape[1] * settings.groups, size[0], size[1]
    try:
        plan = planning.choose(x_shape, weight_shape, settings, dtype, device, requested, question)[1]
    except RuntimeError as error:  # the backend that was named serves no such call
        return str(error)
    return plan.reason if plan.plan == "plain" else None


_asked_once = lru_cache(4096)(_asked)
planning.when_backends_change(_asked_once.cache_clear)
