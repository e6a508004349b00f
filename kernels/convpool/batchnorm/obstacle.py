"""Whether layers under batch statistics are one op, asked before anything is computed."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from convpool import planning, registry
from convpool.functional import autocast_dtype
from convpool.geometry import Settings, make_settings
from convpool.protocol import Use

_POSITIONS = 64  # of the conv output, high and wide, and images: an ordinary picture, where none is known


def obstacle(conv: Any, pool: Any, use: Use, shape: tuple[int, ...] | None = None) -> str | None:
    """Why conv -> norm -> ReLU -> pool stay torch's layers in training mode, or None.

    Args:
        conv, pool: an nn.Conv2d, and an nn.MaxPool2d or what has its attributes.
        use: how conv's input is used, as far as that is known.
        shape: of conv's input, where it is known.
    """
    weight = conv.weight
    if not isinstance(weight, Tensor):
        return "torch.fx records the layers, which follow train() and eval()"
    padding = conv.padding
    if conv.padding_mode != "zeros":  # x is padded before, to another shape
        padding, shape = 0, None
    call = weight.shape, autocast_dtype(weight), weight.device, use, planning.requested_backend()
    pooling = pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
    options = (conv.stride, padding, conv.dilation, conv.groups, *pooling)  # asked at each call: no dict for them
    if torch.compiler.is_compiling():
        return _asked(shape, *call, options)
    try:
        return _asked_once(shape, *call, options)
    except TypeError:  # a list among the options
        return _asked(shape, *call, options)


def _asked(
    shape: tuple[int, ...] | None,
    weight_shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    use: Use,
    requested: str,
    options: tuple[Any, ...],
) -> str | None:
    settings = make_settings(tuple(weight_shape)[2:], *options)
    if shape is None:
        shape = _ordinary(tuple(weight_shape), settings)
    if len(shape) != 4:
        return "a norm takes a batch of images"
    try:
        sizes = shape, tuple(weight_shape), settings
        _, plan = planning.choose(*sizes, dtype, device, use, requested, planning.normalised)
    except (RuntimeError, ValueError) as error:  # the backend that was named serves no such call, or it fits no layer
        return str(error)
    return plan.reason if plan.is_torch else None


def _ordinary(weight_shape: tuple[int, ...], settings: Settings) -> tuple[int, ...]:
    """The shape of an x for such a layer."""
    spans = zip(settings.pool_kernel, settings.pool_dilation, strict=True)
    sizes = [max(_POSITIONS, 4 * kernel * dilation) for kernel, dilation in spans]
    axes = zip(sizes, settings.stride, weight_shape[2:], settings.dilation, strict=True)
    size = [(count - 1) * stride + (kernel - 1) * dilation + 1 for count, stride, kernel, dilation in axes]
    return _POSITIONS, weight_shape[1] * settings.groups, size[0], size[1]


_asked_once = lru_cache(4096)(_asked)
registry.when_backends_change(_asked_once.cache_clear)
