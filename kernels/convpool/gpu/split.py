"""The split plan: the vendor's convolution, and between it and the op a backend's pooling pass and its reverse.

For layers bound by arithmetic, where a hand-written convolution cannot beat the vendor's. The conv output (or its
gradient) exists within one call only. The vendor multiplies every position of dz, so a non-finite x or weight beside a
dead position gives NaN as in eager, and determinism is the vendor's.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from convpool import eager
from convpool.geometry import Geometry
from convpool.layout import input_format, new_code, new_gradients, new_output
from convpool.protocol import Needs

# pool(z, bias, geometry, y, code): fills y and, unless it is empty, code from the conv output z, in one pass over z.
Pool: TypeAlias = Callable[[Tensor, Tensor | None, Geometry, Tensor, Tensor], None]
# expand(dy, code, geometry, dz): fills dz, zeros included. dy and code share their strides; dz has their memory format.
Expand: TypeAlias = Callable[[Tensor, Tensor, Geometry, Tensor], None]


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, with_code: bool, pool: Pool
) -> tuple[Tensor, Tensor]:
    """y and code. The conv output handed to `pool` has the vendor's strides, usually those of x's memory format."""
    z = eager.conv(x, weight, None, geometry.settings)
    y = new_output(x, weight, geometry)
    code = new_code(y, with_code)
    pool(z, bias, geometry, y, code)
    return y, code


def backward(
    dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, geometry: Geometry, needs: Needs, expand: Expand
) -> tuple[Tensor, Tensor]:
    """dx and dw with the strides of `layout.new_gradients`; x is read only for dw. (db is left to the fused plan's
    kernels: nothing of the vendor's is in it.)"""
    grad_x, grad_weight = None, None
    if needs[0] or needs[1]:
        grad_x, grad_weight = _vendor_gradients(dy, code, x, weight, geometry, needs, expand)
    # After dz is gone, so that they can take its memory.
    dx, dw, _ = new_gradients(code, weight, geometry, (needs[0], needs[1], False))
    return _restrided(grad_x, dx), _restrided(grad_weight, dw)


def _vendor_gradients(
    dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, geometry: Geometry, needs: Needs, expand: Expand
) -> tuple[Tensor | None, Tensor | None]:
    settings = geometry.settings
    layout = input_format(code, weight, geometry)
    if x is None:  # only its shape is read
        x = torch.empty(geometry.x_shape, dtype=weight.dtype, device=weight.device, memory_format=layout)
    top, bottom, left, right = settings.padding
    padding = (top, left)
    if not settings.symmetric_padding:
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    dz = torch.empty(geometry.conv_shape, dtype=dy.dtype, device=dy.device, memory_format=layout)
    expand(dy, code, geometry, dz)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        dz,
        x,
        weight,
        None,
        settings.stride,
        padding,
        settings.dilation,
        False,  # transposed
        (0, 0),  # output padding
        settings.groups,
        (needs[0], needs[1], False),
    )
    if needs[0] and not settings.symmetric_padding:
        grad_x = grad_x[:, :, top : top + geometry.height, left : left + geometry.width]
    return grad_x, grad_weight


def _restrided(grad: Tensor | None, out: Tensor) -> Tensor:
    """`grad`, with the strides of `out`: itself where it has them."""
    if grad is None or grad.stride() == out.stride():
        return out if grad is None else grad
    return out.copy_(grad)
