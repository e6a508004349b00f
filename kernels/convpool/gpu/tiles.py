"""What the kernels share: the numbers they are given, positions, the winner rule, dot products, dz from winners.

Names: m counts pooled positions (n, i, j), p the positions of a pool window, k the products of one conv output, c input
channels and o output channels of one group, t the kernel's taps. Every kernel has a one-dimensional grid, for the other
grid axes end at 65535. `INDEX` is the integer type of positions and offsets; offsets between images are always int64.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from convpool.geometry import Geometry


class Sizes(NamedTuple):
    """What may change from call to call without a new kernel."""

    positions: int  # what the grid (and the weight gradient's loop) walks
    height: int
    width: int
    conv_height: int
    conv_width: int
    pooled_height: int
    pooled_width: int
    inputs: int  # channels of x in one group
    outputs: int  # channels of y in one group

    @staticmethod
    def of(g: Geometry, positions: int) -> "Sizes":
        groups = g.settings.groups
        return Sizes(
            positions,
            g.height,
            g.width,
            g.conv_height,
            g.conv_width,
            g.pooled_height,
            g.pooled_width,
            g.in_channels // groups,
            g.out_channels // groups,
        )


class Shape(NamedTuple):
    """What is compiled into a kernel: (rows, columns) each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]  # top, left
    dilation: tuple[int, int]
    pool: tuple[int, int]
    pool_stride: tuple[int, int]
    pool_padding: tuple[int, int]
    pool_dilation: tuple[int, int]

    @staticmethod
    def of(g: Geometry) -> "Shape":
        s = g.settings
        return Shape(
            g.kernel,
            s.stride,
            (s.padding[0], s.padding[2]),
            s.dilation,
            s.pool_kernel,
            s.pool_stride,
            s.pool_padding,
            s.pool_dilation,
        )


@triton.jit
def widen(strides, INDEX: tl.constexpr):
    """Four strides as INDEX: a Triton argument below 2^31 is an int32 and would overflow in a product."""
    return (
        tl.to_tensor(strides[0]).to(INDEX),
        tl.to_tensor(strides[1]).to(INDEX),
        tl.to_tensor(strides[2]).to(INDEX),
        tl.to_tensor(strides[3]).to(INDEX),
    )


@triton.jit
def unflatten(m, height, width):
    """(n, i, j) of the flat position m = (n * height + i) * width + j."""
    row = m // width
    return row // height, row % height, m % width


@triton.jit
def better(candidate, best):
    """torch's rule for max-pooling, candidates in row-major order: the first maximum wins, and the last NaN over all."""
    return (candidate > best) | (candidate != candidate)


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b. "upcast" is for machines without a matrix unit for a's type, and for Triton's interpreter, which would
    multiply the bit patterns of bfloat16."""
    if PRECISION == "upcast":
        return tl.dot(a.to(acc.dtype), b.to(acc.dtype), acc, input_precision="ieee", out_dtype=acc.dtype)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def has_non_finite(t):
    """Whether a 2-d tile holds an infinity or a NaN."""
    return tl.max(tl.max((~(tl.abs(t) < float("inf"))).to(tl.int32), 1), 0) > 0


@triton.jit
def conv_gradient(dy_ptr, code_ptr, base, row, column, mask, size, y_stride, shape: tl.constexpr, ACC: tl.constexpr):
    """dz at conv positions (row, column): the sum of dy over the windows that elected them. And whether any did.

    `base` holds the offsets of image and channel in dy and code, `mask` where to look at all. Conv row r lies in windows
    i with `r = i * pool_stride - pool_padding + a * pool_dilation`, 0 <= a < pool; at most ROWS of them can hold it.
    """
    ROWS: tl.constexpr = ((shape.pool[0] - 1) * shape.pool_dilation[0]) // shape.pool_stride[0] + 1
    COLUMNS: tl.constexpr = ((shape.pool[1] - 1) * shape.pool_dilation[1]) // shape.pool_stride[1] + 1
    dz = tl.zeros((row + column + base).shape, ACC)
    elected = tl.zeros((row + column + base).shape, tl.int1)
    for back_i in tl.static_range(ROWS):
        i = (row + shape.pool_padding[0]) // shape.pool_stride[0] - back_i
        a, in_row = _window_offset(row, i, size.pooled_height, shape, 0)
        for back_j in tl.static_range(COLUMNS):
            j = (column + shape.pool_padding[1]) // shape.pool_stride[1] - back_j
            b, in_column = _window_offset(column, j, size.pooled_width, shape, 1)
            seen = mask & in_row & in_column
            offset = base + i * y_stride[2] + j * y_stride[3]
            winner = tl.load(code_ptr + offset, mask=seen, other=255).to(tl.int32)
            hit = seen & (winner == a * shape.pool[1] + b)
            dz += tl.where(hit, tl.load(dy_ptr + offset, mask=seen, other=0.0).to(ACC), 0.0)
            elected = elected | hit
    return dz, elected


@triton.jit
def _window_offset(position, window, windows, shape: tl.constexpr, AXIS: tl.constexpr):
    """Where in a window a conv row or column lies, in steps of the window's dilation; and whether it does."""
    offset = position + shape.pool_padding[AXIS] - window * shape.pool_stride[AXIS]
    inside = (window >= 0) & (window < windows)
    if shape.pool_dilation[AXIS] > 1:
        inside = inside & (offset % shape.pool_dilation[AXIS] == 0)
        offset = offset // shape.pool_dilation[AXIS]
    return offset, inside & (offset < shape.pool[AXIS])
