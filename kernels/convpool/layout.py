"""Memory formats: what torch's own layers would return, and the tensors allocated in that format."""

from typing import TypeAlias

import torch
from torch import Tensor

from convpool.geometry import Geometry, Settings

Strides: TypeAlias = tuple[int, ...]
Layout: TypeAlias = tuple[tuple[int, ...], Strides]  # sizes and strides: the arguments of `empty_strided`


def has_channels_last_strides(t: Tensor) -> bool:
    """Whether torch takes a 4-d tensor for channels_last; with one channel the strides decide.

    The rule is that of c10/core/MemoryFormat.h (is_channels_last_strides_2d), which Python does not expose:
    `is_contiguous(memory_format=...)` says yes to both formats when a tensor has one channel.
    """
    return is_channels_last(t.shape, t.stride())


def is_channels_last(shape: tuple[int, ...], strides: Strides) -> bool:
    """As `has_channels_last_strides` of a tensor with these sizes and strides."""
    (n, c, h, w), (by_n, by_c, by_h, by_w) = shape, strides
    if 0 in (n, c, h, w) or by_c == 0:
        return False
    return by_w >= by_c * c and by_h >= by_w * w and by_n >= by_h * h and by_h * h != by_c


def memory_format(x: Tensor, weight: Tensor, settings: Settings) -> torch.memory_format:
    """channels_last if x or weight has its strides, as torch's conv2d returns, unless `settings` ask for contiguous.

    A single output channel lies alike in both formats; torch's ReLU then returns the strides of the contiguous one.
    """
    if settings.contiguous_output or weight.shape[0] == 1:
        return torch.contiguous_format
    if has_channels_last_strides(x) or has_channels_last_strides(weight):
        return torch.channels_last
    return torch.contiguous_format


def new_output(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Uninitialised y of x's dtype, (N, C_out, pooled_height, pooled_width)."""
    layout = memory_format(x, weight, geometry.settings)
    return torch.empty(geometry.output_shape, dtype=x.dtype, device=x.device, memory_format=layout)


def new_code(y: Tensor, with_code: bool) -> Tensor:
    """Uninitialised uint8 winners in the layout of y; without elements where no gradient can be asked for."""
    return torch.empty_like(y, dtype=torch.uint8) if with_code else y.new_empty(0, dtype=torch.uint8)


def dense(code: Tensor) -> Tensor:
    """code with the strides of one of the two memory formats: a hook may have copied it into others, and kernels step
    through it by these, even along sizes of 1, where any stride passes for contiguous."""
    _, c, h, w = code.shape
    if code.stride() in ((c * h * w, h * w, w, 1), (h * w * c, 1, w * c, c)):
        return code
    layout = torch.channels_last if has_channels_last_strides(code) else torch.contiguous_format
    return torch.empty_like(code, memory_format=layout).copy_(code)


def input_format(code: Tensor, weight: Tensor, geometry: Geometry) -> torch.memory_format:
    """The format of dx, and of what else a backward pass makes beside it: y's, or weight's where y's was asked for."""
    model = weight if geometry.settings.contiguous_output else code
    return torch.channels_last if has_channels_last_strides(model) else torch.contiguous_format


def output_layout(geometry: Geometry, x_stride: Strides, w_stride: Strides) -> Layout:
    """Sizes and strides of y, as of the winners' code."""
    x = torch.empty_strided(geometry.x_shape, x_stride, device="meta")
    weight = torch.empty_strided(geometry.weight_shape, w_stride, device="meta")
    return _layout(new_output(x, weight, geometry))


def gradient_layouts(
    geometry: Geometry, w_stride: Strides, y_stride: Strides, needs: tuple[bool, bool, bool]
) -> tuple[Layout, Layout, Layout]:
    """Sizes and strides of dx, dw and db, as `new_gradients` allocates them."""
    code = torch.empty_strided(geometry.output_shape, y_stride, device="meta")
    weight = torch.empty_strided(geometry.weight_shape, w_stride, device="meta")
    dx, dw, db = new_gradients(code, weight, geometry, needs)
    return _layout(dx), _layout(dw), _layout(db)


def _layout(t: Tensor) -> Layout:
    return tuple(t.shape), t.stride()


def new_gradients(
    code: Tensor, weight: Tensor, geometry: Geometry, needs: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised dx (`input_format`), dw (strides of weight) and db; without elements where not needed."""
    dx = weight.new_empty(0)
    if needs[0]:
        layout = input_format(code, weight, geometry)
        dx = torch.empty(geometry.x_shape, dtype=weight.dtype, device=weight.device, memory_format=layout)
    dw = torch.empty_like(weight) if needs[1] else weight.new_empty(0)
    db = weight.new_empty(geometry.out_channels) if needs[2] else weight.new_empty(0)
    return dx, dw, db
