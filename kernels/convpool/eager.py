"""torch's own three calls: the oracle of the tests, the baseline of the benchmarks, the fallback of `auto`."""

import torch
from torch import Tensor
from torch.nn import functional as F

from convpool.geometry import Geometry, Settings
from convpool.layout import memory_format


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings) -> Tensor:
    """`conv2d` under the settings' padding, which torch takes only when it is symmetric."""
    top, bottom, left, right = settings.padding
    if not settings.symmetric_padding:
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    return F.conv2d(x, weight, bias, settings.stride, (top, left), settings.dilation, settings.groups)


def pool(z: Tensor, settings: Settings) -> Tensor:
    return F.max_pool2d(
        z,
        settings.pool_kernel,
        settings.pool_stride,
        settings.pool_padding,
        settings.pool_dilation,
        ceil_mode=settings.ceil_mode,
    )


def pool_with_positions(z: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """The pooled maxima, and the index of each window's winner in its plane of z (int64)."""
    s = settings
    return F.max_pool2d_with_indices(z, s.pool_kernel, s.pool_stride, s.pool_padding, s.pool_dilation, s.ceil_mode)


def relu_then_pool(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings) -> Tensor:
    """The definition: `max_pool2d(relu(conv2d(x, weight, bias)))`."""
    return _in_format(pool(F.relu(conv(x, weight, bias, settings)), settings), settings)


def pool_then_relu(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings) -> Tensor:
    """Same value and gradients, for ReLU is monotone; the ReLU then handles a window's worth fewer elements.

    One exception: of a window without a position (`Geometry.empty_windows`) torch's max-pool makes -inf, ReLU then 0.
    """
    return _in_format(F.relu(pool(conv(x, weight, bias, settings), settings)), settings)


def fastest(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """What `auto` runs where no kernel serves: pool before ReLU, on CPUs in channels_last, in eager's output format."""
    settings = geometry.settings
    if geometry.empty_windows:
        return relu_then_pool(x, weight, bias, settings)
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.layout is not torch.strided:
        return pool_then_relu(x, weight, bias, settings)
    y = pool_then_relu(x.contiguous(memory_format=torch.channels_last), weight, bias, settings)
    return y.contiguous(memory_format=memory_format(x, weight, settings))


def _in_format(y: Tensor, settings: Settings) -> Tensor:
    return y.contiguous() if settings.contiguous_output else y
