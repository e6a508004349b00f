"""What each kernel is launched with: grids, strides, integer types and precision, from a call's metadata alone.

Every function gives the launches for tensors of one geometry, with these strides and this dtype, on the current device,
whose index is `device` (-1 on the CPU); `tf32` says whether products of float32 may be rounded to TF32. What is given
is kept: Python takes longer to work it out than a kernel does for a small layer.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from convpool.geometry import Geometry
from convpool.gpu import config, epilogue
from convpool.gpu.backend import INTERPRETED
from convpool.gpu.config import Architecture
from convpool.gpu.forward import forward_direct, forward_dot
from convpool.gpu.input_grad import input_grad
from convpool.gpu.prepared import Launch, kept
from convpool.gpu.tiles import Shape, Sizes
from convpool.gpu.weight_grad import sum_partials, weight_grad
from convpool.layout import Layout, Strides, gradient_layouts, is_channels_last, output_layout
from convpool.protocol import Needs


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
    precision, last = _precision(dtype, tf32, arch), is_channels_last(*layout)
    launch = config.forward(geometry, precision, dtype.itemsize, arch, last)
    sizes, positions = Sizes.of(geometry), _pooled_positions(geometry)
    parts = triton.cdiv(sizes.outputs, launch.channels or launch.columns)
    arguments = {
        "size": sizes,
        "positions": positions,
        "parts": parts,
        "x_stride": x_stride,
        "w_stride": w_stride,
        "b_stride": b_stride or 0,
        "y_stride": layout[1],
        "shape": Shape.of(geometry),
        "BLOCK_M": launch.rows,
        "BLOCK_O": launch.columns,
        "INSIDE": _reads_inside(geometry),
        "WINDOWS_INSIDE": _windows_inside(geometry),
        "HAS_BIAS": b_stride is not None,
        "WITH_CODE": with_code,
        "ACC": _accumulator(dtype),
        "INDEX": _index_type(
            positions + launch.rows, (geometry.x_shape, x_stride), (geometry.weight_shape, w_stride), layout
        ),
    }
    grid = geometry.settings.groups * triton.cdiv(positions, launch.rows) * parts
    if config.takes_direct(geometry):
        arguments |= {"INPUTS": geometry.group_channels, "CHANNELS": launch.channels}
        return Forward(layout, Launch(forward_direct, grid, arguments, launch.options, device))
    arguments |= {
        "INPUTS": launch.inputs,
        "CHANNELS_INNER": is_channels_last(geometry.x_shape, x_stride),
        "BLOCK_K": launch.summed,
        "PRECISION": precision,
    }
    return Forward(layout, Launch(forward_dot, grid, arguments, launch.options, device))


@dataclass(frozen=True)
class Backward:
    """Attributes:
    results: sizes and strides of dx, dw and db.
    partial_sums: sizes and type of what the next two share.
    weight_grad: on x, dy, code and the partial sums.
    sum_partials: on the partial sums, dw and db.
    input_grad: on dy, code, weight and dx.
    """

    results: tuple[Layout, Layout, Layout]
    partial_sums: tuple[tuple[int, int], torch.dtype]
    weight_grad: Launch | None
    sum_partials: Launch | None
    input_grad: Launch | None


@kept
def backward(
    geometry: Geometry,
    dtype: torch.dtype,
    x_stride: Strides | None,
    w_stride: Strides,
    y_stride: Strides,
    needs: Needs,
    tf32: bool,
    device: int,
) -> Backward:
    arch = architecture()
    precision = _precision(dtype, tf32, arch)
    results = gradient_layouts(geometry, w_stride, y_stride, needs)
    of_weight: tuple[tuple[int, int], Launch | None, Launch | None] = (0, 0), None, None
    if needs[1] or needs[2]:
        of_weight = _weight_grad(geometry, dtype, x_stride, results[1][1], y_stride, needs, precision, arch, device)
    of_input = None
    if needs[0] and 0 not in geometry.x_shape:
        of_input = _input_grad(geometry, dtype, w_stride, y_stride, results[0], precision, arch, device)
    return Backward(results, (of_weight[0], _TORCH_TYPE[_accumulator(dtype)]), *of_weight[1:], of_input)


def _weight_grad(
    geometry: Geometry,
    dtype: torch.dtype,
    x_stride: Strides | None,
    dw_stride: Strides,
    y_stride: Strides,
    needs: Needs,
    precision: str,
    arch: Architecture,
    device: int,
) -> tuple[tuple[int, int], Launch, Launch]:
    """Sizes of the partial sums, and the two launches; x is only read for dw."""
    launch = config.weight_grad(geometry, precision, dtype.itemsize, arch, needs[1])
    sizes, positions = Sizes.of(geometry), _pooled_positions(geometry)
    range_size = triton.cdiv(triton.cdiv(positions, launch.ranges), launch.summed) * launch.summed
    ranges = max(1, triton.cdiv(positions, max(1, range_size)))
    weights = geometry.out_channels * geometry.reduction if needs[1] else 0
    biases = geometry.out_channels if needs[2] else 0
    columns = weights + biases
    blocks = triton.cdiv(sizes.outputs, launch.rows) * geometry.settings.groups * ranges
    if needs[1]:
        blocks *= triton.cdiv(geometry.reduction, launch.columns)
    y = geometry.output_shape, y_stride
    x = y if x_stride is None or not needs[1] else (geometry.x_shape, x_stride)
    first = {
        "size": sizes,
        "positions": positions,
        "x_stride": x[1],
        "y_stride": y_stride,
        "range_size": range_size,
        "ranges": ranges,
        "partial_size": columns,
        "channels": geometry.out_channels,
        "shape": Shape.of(geometry),
        "BLOCK_O": launch.rows,
        "BLOCK_C": launch.columns,
        "BLOCK_M": launch.summed,
        "NEEDS_WEIGHT": needs[1],
        "NEEDS_BIAS": needs[2],
        "INSIDE": _reads_inside(geometry),
        "PRECISION": precision,
        "ACC": _accumulator(dtype),
        "INDEX": _index_type(max(positions + launch.summed, ranges * columns), x, y),
    }
    summing = config.sum_partials(arch, ranges, columns)
    kernel_h, kernel_w = geometry.kernel
    by_o, by_c, by_h, by_w = dw_stride if needs[1] else (0, 0, 0, 0)
    second = {
        "inputs": sizes.inputs,
        "taps": kernel_h * kernel_w,
        "kernel_w": kernel_w,
        "stride_o": by_o,
        "stride_c": by_c,
        "stride_h": by_h,
        "stride_w": by_w,
        "ranges": ranges,
        "weights": weights,
        "biases": biases,
        "BLOCK_R": summing.rows,
        "BLOCK": summing.columns,
        "ACC": _accumulator(dtype),
        "INDEX": _index_type(ranges * columns + summing.columns, (geometry.weight_shape, (by_o, by_c, by_h, by_w))),
    }
    return (
        (ranges, columns),
        Launch(weight_grad, blocks, first, launch.options, device),
        Launch(sum_partials, triton.cdiv(columns, summing.columns), second, summing.options, device),
    )


def _input_grad(
    geometry: Geometry,
    dtype: torch.dtype,
    w_stride: Strides,
    y_stride: Strides,
    dx: Layout,
    precision: str,
    arch: Architecture,
    device: int,
) -> Launch:
    launch = config.input_grad(geometry, precision, dtype.itemsize, arch)
    settings, sizes = geometry.settings, Sizes.of(geometry)
    cell_h, cell_w = (a * b for a, b in zip(settings.pool_stride, settings.stride, strict=True))
    cells = geometry.batch * triton.cdiv(geometry.height, cell_h) * triton.cdiv(geometry.width, cell_w)
    shares = cell_h * cell_w // launch.apart if launch.apart else 1
    parts = shares * triton.cdiv(sizes.inputs * (1 if launch.apart else cell_h * cell_w), launch.columns)
    arguments = {
        "size": sizes,
        "positions": cells,
        "y_stride": y_stride,
        "w_stride": w_stride,
        "x_stride": dx[1],
        "shape": Shape.of(geometry),
        "BLOCK_M": launch.rows,
        "BLOCK_C": launch.columns,
        "BLOCK_O": launch.summed,
        "APART": launch.apart,
        "PRECISION": precision,
        "ACC": _accumulator(dtype),
        "INDEX": _index_type(
            cells + launch.rows, dx, (geometry.output_shape, y_stride), (geometry.weight_shape, w_stride)
        ),
    }
    return Launch(
        input_grad, settings.groups * parts * triton.cdiv(cells, launch.rows), arguments, launch.options, device
    )


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
    elements = _elements(geometry.output_shape)
    launch = config.pointwise(architecture(), elements)
    arguments = {
        "size": _all_channels(geometry),
        "elements": elements,
        "z_stride": z_stride,
        "b_stride": b_stride or 0,
        "y_stride": y_stride,
        "shape": Shape.of(geometry),
        "CHANNELS_LAST": is_channels_last(*y),
        "BLOCK": launch.rows,
        "HAS_BIAS": b_stride is not None,
        "WITH_CODE": with_code,
        "ACC": _accumulator(dtype),
        "INDEX": _index_type(elements + launch.rows, (geometry.conv_shape, z_stride), y),
    }
    return Launch(epilogue.pool, triton.cdiv(elements, launch.rows), arguments, launch.options, device)


@kept
def expand(geometry: Geometry, dtype: torch.dtype, y_stride: Strides, z_stride: Strides, device: int) -> Launch:
    """On dy, code and dz."""
    z = geometry.conv_shape, z_stride
    elements = _elements(geometry.conv_shape)
    launch = config.pointwise(architecture(), elements)
    arguments = {
        "size": _all_channels(geometry),
        "elements": elements,
        "y_stride": y_stride,
        "z_stride": z_stride,
        "shape": Shape.of(geometry),
        "CHANNELS_LAST": is_channels_last(*z),
        "BLOCK": launch.rows,
        "ACC": _accumulator(dtype),
        "INDEX": _index_type(elements + launch.rows, z, (geometry.output_shape, y_stride)),
    }
    return Launch(epilogue.expand, triton.cdiv(elements, launch.rows), arguments, launch.options, device)


def architecture() -> Architecture:
    """The limits of the current device, which launches go to: call it under the device guard."""
    if INTERPRETED:
        return config.INTERPRETER
    driver = triton.runtime.driver.active
    return _architecture_of(driver, driver.get_current_device())


@cache
def _architecture_of(driver: Any, device: int | str) -> Architecture:
    target = driver.get_current_target()
    count = None  # of a stand-in for a driver, which has no devices
    if hasattr(driver, "utils"):
        count = driver.utils.get_device_properties(device)["multiprocessor_count"]
    return config.architecture_of(target.backend, target.arch, count)


_TORCH_TYPE = {tl.float32: torch.float32, tl.float64: torch.float64}


def _pooled_positions(g: Geometry) -> int:
    return g.batch * g.pooled_height * g.pooled_width


def _elements(shape: tuple[int, int, int, int]) -> int:
    n, c, h, w = shape
    return n * c * h * w


def _all_channels(g: Geometry) -> Sizes:
    """Sizes for kernels that know no groups."""
    return Sizes.of(g)._replace(outputs=g.out_channels)


def _accumulator(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def _precision(dtype: torch.dtype, tf32: bool, arch: Architecture) -> str:
    """How dot products treat their operands."""
    if arch.interpreted or (dtype.itemsize == 2 and not arch.matrix_unit):
        return "upcast"
    return "tf32" if tf32 and arch.tf32 else "ieee"


def _index_type(positions: int, *layouts: Layout) -> tl.dtype:
    """int64 where positions or the offsets in a tensor do not fit an int32."""
    largest = positions
    for sizes, strides in layouts:
        largest = max(largest, sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)))
    return tl.int64 if largest >= 1 << 31 else tl.int32


def _reads_inside(g: Geometry) -> bool:
    """Whether all taps of all window positions lie in x, so that kernels need not look."""
    return _windows_inside(g) and not any(g.settings.padding)


def _windows_inside(g: Geometry) -> bool:
    """Whether all window positions lie in the conv output."""
    s = g.settings
    for axis, (size, pooled) in enumerate(((g.conv_height, g.pooled_height), (g.conv_width, g.pooled_width))):
        last = (pooled - 1) * s.pool_stride[axis] + (s.pool_kernel[axis] - 1) * s.pool_dilation[axis]
        if s.pool_padding[axis] or last >= size:
            return False
    return True
