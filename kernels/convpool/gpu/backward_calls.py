"""What each kernel of a backward pass is launched with, from a call's metadata alone: see `forward_calls`."""

from dataclasses import dataclass

import torch
import triton.language as tl
from triton import cdiv

from convpool.geometry import Geometry
from convpool.gpu import config, epilogue
from convpool.gpu.config import Architecture
from convpool.gpu.input_grad import input_grad
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
)
from convpool.gpu.tiles import Shape, Sizes
from convpool.gpu.weight_grad import sum_partials, weight_grad
from convpool.layout import Layout, Strides, gradient_layouts, is_channels_last
from convpool.protocol import Needs

_TORCH_TYPE = {tl.float32: torch.float32, tl.float64: torch.float64}


@dataclass(frozen=True)
class Backward:
    """Attributes:
    dx: its sizes and strides.
    partial_sums, accumulator: sizes and strides, and type, of what the next two share.
    weight_grad: on x, dy, code and the partial sums.
    sum_partials: on the partial sums, dw and db.
    input_grad: on dy, code, weight and dx.
    """

    dx: Layout
    partial_sums: Layout
    accumulator: torch.dtype
    weight_grad: Launch | None
    sum_partials: Launch | None
    input_grad: Launch | None


@kept
def backward(
    geometry: Geometry,
    dtype: torch.dtype,
    x_stride: Strides,
    w_stride: Strides,
    y_stride: Strides,
    needs: Needs,
    tf32: bool,
    device: int,
) -> Backward:
    arch = architecture()
    precision = precision_of(dtype, tf32, arch)
    dx, dw, _ = gradient_layouts(geometry, w_stride, y_stride, needs)
    of_weight: tuple[Layout, Launch | None, Launch | None] = ((0, 0), (0, 1)), None, None
    if needs[1] or needs[2]:
        of_weight = _weight_grad(geometry, dtype, x_stride, dw[1], y_stride, needs, precision, arch, device)
    of_input = None
    if needs[0] and 0 not in geometry.x_shape:
        of_input = _input_grad(geometry, dtype, w_stride, y_stride, dx, precision, arch, device)
    return Backward(dx, of_weight[0], _TORCH_TYPE[accumulator(dtype)], *of_weight[1:], of_input)


def _weight_grad(
    geometry: Geometry,
    dtype: torch.dtype,
    x_stride: Strides,
    dw_stride: Strides,
    y_stride: Strides,
    needs: Needs,
    precision: str,
    arch: Architecture,
    device: int,
) -> tuple[Layout, Launch, Launch]:
    """Sizes and strides of the partial sums, and the two launches; x is only read for dw."""
    launch = config.weight_grad(geometry, precision, dtype.itemsize, arch, needs[1])
    sizes, positions = Sizes.of(geometry), pooled_positions(geometry)
    range_size = cdiv(cdiv(positions, launch.ranges), launch.summed) * launch.summed
    ranges = max(1, cdiv(positions, max(1, range_size)))
    weights = geometry.out_channels * geometry.reduction if needs[1] else 0
    biases = geometry.out_channels if needs[2] else 0
    columns = weights + biases
    blocks = cdiv(sizes.outputs, launch.rows) * geometry.settings.groups * ranges
    if needs[1]:
        blocks *= cdiv(geometry.reduction, launch.columns)
    y = geometry.output_shape, y_stride
    x = y if not needs[1] else (geometry.x_shape, x_stride)
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
        "INSIDE": reads_inside(geometry),
        "PRECISION": precision,
        "ACC": accumulator(dtype),
        "INDEX": index_type(max(positions + launch.summed, ranges * columns), x, y),
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
        "ACC": accumulator(dtype),
        "INDEX": index_type(ranges * columns + summing.columns, (geometry.weight_shape, (by_o, by_c, by_h, by_w))),
    }
    return (
        ((ranges, columns), (columns, 1)),
        Launch(weight_grad, blocks, first, launch.options, device),
        Launch(sum_partials, cdiv(columns, summing.columns), second, summing.options, device),
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
    launch = config.input_grad(of_full_batch(geometry, arch), precision, dtype.itemsize, arch)
    settings, sizes = geometry.settings, Sizes.of(geometry)
    cell_h, cell_w = (a * b for a, b in zip(settings.pool_stride, settings.stride, strict=True))
    cells = geometry.batch * cdiv(geometry.height, cell_h) * cdiv(geometry.width, cell_w)
    shares = cell_h * cell_w // launch.apart if launch.apart else 1
    parts = shares * cdiv(sizes.inputs * (1 if launch.apart else cell_h * cell_w), launch.columns)
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
        "ACC": accumulator(dtype),
        "INDEX": index_type(
            cells + launch.rows, dx, (geometry.output_shape, y_stride), (geometry.weight_shape, w_stride)
        ),
    }
    return Launch(input_grad, settings.groups * parts * cdiv(cells, launch.rows), arguments, launch.options, device)


@kept
def expand(geometry: Geometry, dtype: torch.dtype, y_stride: Strides, z_stride: Strides, device: int) -> Launch:
    """On dy, code and dz."""
    z = geometry.conv_shape, z_stride
    elements = elements_of(geometry.conv_shape)
    launch = config.pointwise(architecture(), elements)
    arguments = {
        "size": all_channels(geometry),
        "elements": elements,
        "y_stride": y_stride,
        "z_stride": z_stride,
        "shape": Shape.of(geometry),
        "CHANNELS_LAST": is_channels_last(*z),
        "BLOCK": launch.rows,
        "ACC": accumulator(dtype),
        "INDEX": index_type(elements + launch.rows, z, (geometry.output_shape, y_stride)),
    }
    return Launch(epilogue.expand, cdiv(elements, launch.rows), arguments, launch.options, device)
