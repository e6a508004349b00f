"""What each kernel of a forward pass is launched with, from a call's metadata alone.

Every function gives the launches for tensors of one geometry, with these strides and this dtype, on the current device,
whose index is `device` (-1 on the CPU); `tf32` says whether products of float32 may be rounded to TF32. What is given
is kept: Python takes longer to work it out than a kernel does for a small layer.
"""

from dataclasses import dataclass
from math import gcd

import torch
from triton import cdiv

from convpool.geometry import Geometry
from convpool.gpu import config, epilogue
from convpool.gpu.forward import forward_direct, forward_dot
from convpool.gpu.forward_patch import forward_patch
from convpool.gpu.prepared import Launch, kept
from convpool.gpu.specialise import (
    accumulator,
    all_channels,
    architecture,
    elements_of,
    index_type,
    of_full_batch,
    pooled_positions,
    precision_of,
    reads_inside,
    windows_inside,
)
from convpool.gpu.tiles import Shape, Sizes
from convpool.layout import Layout, Strides, is_channels_last, output_layout


@dataclass(frozen=True)
class Forward:
    """Attributes:
    y: sizes and strides of y, as of code.
    launch: on x, weight, bias (or weight, where there is none), y and code; None where there is nothing to compute.
    """

    y: Layout
    launch: Launch | None


@kept
def forward(
    geometry: Geometry,
    dtype: torch.dtype,
    x_stride: Strides,
    w_stride: Strides,
    b_stride: int | None,
    with_code: bool,
    tf32: bool,
    device: int,
) -> Forward:
    layout = output_layout(geometry, x_stride, w_stride)
    if 0 in geometry.output_shape:
        return Forward(layout, None)
    arch = architecture()
    precision, x_last = precision_of(dtype, tf32, arch), is_channels_last(geometry.x_shape, x_stride)
    chosen_for = of_full_batch(geometry, arch) if with_code else geometry
    launch = config.forward(chosen_for, precision, dtype.itemsize, arch, x_last, is_channels_last(*layout))
    sizes, positions = Sizes.of(geometry), pooled_positions(geometry)
    parts = cdiv(sizes.outputs, launch.channels or launch.columns)
    arguments = {
        "size": sizes,
        "positions": positions,
        "parts": parts,
        "x_stride": x_stride,
        "w_stride": w_stride,
        "b_stride": b_stride or 0,
        "y_stride": layout[1],
        "shape": Shape.of(geometry),
        "INPUTS": geometry.group_channels,
        "BLOCK_M": launch.rows,
        "BLOCK_O": launch.columns,
        "INSIDE": reads_inside(geometry),
        "WINDOWS_INSIDE": windows_inside(geometry),
        "HAS_BIAS": b_stride is not None,
        "WITH_CODE": with_code,
        "RELU": True,
        "ACC": accumulator(dtype),
        "INDEX": index_type(
            positions + launch.rows, (geometry.x_shape, x_stride), (geometry.weight_shape, w_stride), layout
        ),
    }
    grid = geometry.settings.groups * cdiv(positions, launch.rows) * parts
    if launch.kernel == "forward_direct":
        arguments |= {"CHANNELS": launch.channels}
        return Forward(layout, Launch(forward_direct, grid, arguments, launch.options, device))
    arguments |= {"BLOCK_K": launch.summed, "PRECISION": precision}
    if launch.kernel == "forward_patch":
        arguments |= {"X_STEP": gcd(16, x_stride[0], *x_stride[2:])}
        return Forward(layout, Launch(forward_patch, grid, arguments, launch.options, device))
    arguments |= {"FLAT": launch.flat, "CHANNELS_INNER": x_last}
    return Forward(layout, Launch(forward_dot, grid, arguments, launch.options, device))


@kept
def pool(
    geometry: Geometry,
    dtype: torch.dtype,
    z_stride: Strides,
    b_stride: int | None,
    y_stride: Strides,
    with_code: bool,
    device: int,
) -> Launch:
    """On z, bias (or z, where there is none), y and code."""
    y = geometry.output_shape, y_stride
    elements = elements_of(geometry.output_shape)
    launch = config.pointwise(architecture(), elements)
    arguments = {
        "size": all_channels(geometry),
        "elements": elements,
        "z_stride": z_stride,
        "b_stride": b_stride or 0,
        "y_stride": y_stride,
        "shape": Shape.of(geometry),
        "CHANNELS_LAST": is_channels_last(*y),
        "BLOCK": launch.rows,
        "HAS_BIAS": b_stride is not None,
        "WITH_CODE": with_code,
        "RELU": True,
        "ACC": accumulator(dtype),
        "INDEX": index_type(elements + launch.rows, (geometry.conv_shape, z_stride), y),
    }
    return Launch(epilogue.pool, cdiv(elements, launch.rows), arguments, launch.options, device)
