# mypy: ignore-errors
"""What the kernels share: the numbers they are given, positions, the winner rule, dot products, dz from winners.

Names: m counts pooled positions (n, i, j), p the positions of a pool window, k the products of one conv output, c input
channels and o output channels of one group, t the kernel's taps. Every kernel has a one-dimensional grid, for the other
grid axes end at 65535. `INDEX` is the integer type of positions and offsets, int64 only where a tensor needs it.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from convpool.geometry import Geometry


class Sizes(NamedTuple):
    """A layer's sizes but for the batch. What follows from the batch is handed over as plain numbers, for which Triton
    can be told not to compile a kernel of their own: in a tuple a 1 or a multiple of 16 always gets one."""

    height: int
    width: int
    conv_height: int
    conv_width: int
    pooled_height: int
    pooled_width: int
    inputs: int  # channels of x in one group
    outputs: int  # channels of y in one group

    @staticmethod
    def of(g: Geometry) -> "Sizes":
        groups = g.settings.groups
        return Sizes(
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


@triton.constexpr_function
def patch_extent(shape: Shape, axis: int) -> int:
    """Input rows (axis 0) or columns that a pool window's conv outputs read."""
    shape = Shape(*shape)  # Triton before 3.7 hands over a plain tuple
    span = (shape.pool[axis] - 1) * shape.pool_dilation[axis] * shape.stride[axis]
    return span + (shape.kernel[axis] - 1) * shape.dilation[axis] + 1


def pixels(shape: Shape) -> int:
    """How many input pixels the conv outputs of a pool window read."""
    count = 1
    for axis in (0, 1):
        step = shape.pool_dilation[axis] * shape.stride[axis]
        positions, taps = range(shape.pool[axis]), range(shape.kernel[axis])
        count *= len({p * step + t * shape.dilation[axis] for p in positions for t in taps})
    return count


@triton.constexpr_function
def at_once(count: int, most: int = 4) -> int:
    """How many of `count` turns a loop does at once: a divisor of it, at most `most`. All of a window's 255 positions
    unrolled were not compiled in 40 s."""
    return max(n for n in range(1, most + 1) if count % n == 0)


@triton.constexpr_function
def unrolled(shape: Shape) -> int:
    """How many positions of a pool window a gradient's loop over them handles at once."""
    rows, columns = Shape(*shape).pool  # Triton before 3.7 hands over a plain tuple
    return at_once(rows * columns)


@triton.jit
def as_index(strides, INDEX: tl.constexpr):
    """Four strides as INDEX: an argument below 2^31 is an int32 and would overflow in products."""
    return (
        tl.cast(strides[0], INDEX),
        tl.cast(strides[1], INDEX),
        tl.cast(strides[2], INDEX),
        tl.cast(strides[3], INDEX),
    )


@triton.jit
def unflatten(m, height, width):
    """(n, i, j) of the flat position m = (n * height + i) * width + j."""
    row = m // width
    return row // height, row % height, m % width


@triton.jit
def visible(row, column, height, width, INSIDE: tl.constexpr):
    """Whether (row, column) lies in a map; True at once where INSIDE says that no position of the call lies outside.

    Counted as unsigned, a negative position is beyond every map: one comparison an axis instead of two.
    """
    if INSIDE:
        return True
    else:
        in_height = row.to(tl.uint32) < tl.cast(height, tl.uint32)
        return in_height & (column.to(tl.uint32) < tl.cast(width, tl.uint32))


@triton.jit
def better(candidate, best):
    """torch's rule for candidates in row-major order: the first maximum wins, and the last NaN over all."""
    return (candidate > best) | (candidate != candidate)


@triton.jit
def take(candidate, exists, p, best, winner, RELU: tl.constexpr):
    """A window's best conv output and its winner so far, after the one at position p.

    Before ReLU a window of nothing but -inf is dead whatever its winner. Without RELU winners begin as 255, and the
    first conv output wins whatever it is, as in torch: only a window that holds none stays dead.
    """
    candidate = tl.where(exists, candidate, float("-inf"))
    wins = better(candidate, best)
    if not RELU:
        wins = wins | ((winner == 255) & exists)
    return tl.where(wins, candidate, best), tl.where(wins, p, winner)


@triton.jit
def store_winner(y_ptr, code_ptr, offset, best, winner, mask, RELU: tl.constexpr, WITH_CODE: tl.constexpr):
    """y and code written. After ReLU a window is dead where no gradient can flow, which a NaN (best <= 0 is false) is
    not."""
    if RELU:
        dead = best <= 0
        best = tl.where(dead, 0.0, best)
        winner = tl.where(dead, 255, winner)
    tl.store(y_ptr + offset, best.to(y_ptr.dtype.element_ty), mask=mask)
    if WITH_CODE:
        tl.store(code_ptr + offset, winner.to(tl.uint8), mask=mask)


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b, rounding operands as PRECISION says.

    "upcast" is for machines without a matrix unit for a's type, and for Triton's interpreter, which would multiply the
    bit patterns of bfloat16.
    """
    if PRECISION == "upcast":
        return tl.dot(a.to(acc.dtype), b.to(acc.dtype), acc, input_precision="ieee", out_dtype=acc.dtype)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)


@triton.jit
def is_finite(t):
    """Whether a 2-d tile holds no infinity and no NaN."""
    return tl.min(tl.min((tl.abs(t) < float("inf")).to(tl.int32), 1), 0) > 0
