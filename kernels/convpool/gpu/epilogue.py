# mypy: ignore-errors
"""The split plan's two kernels, around the vendor's convolution: bias + ReLU + max-pool of z, and dz from winners."""

import triton
import triton.language as tl

from convpool.gpu.tiles import as_index, at_once, store_winner, take, unflatten, visible


@triton.jit
def pool(
    z_ptr,
    b_ptr,
    y_ptr,
    code_ptr,
    size,
    elements,
    z_stride,
    b_stride,
    y_stride,
    shape: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WITH_CODE: tl.constexpr,
    RELU: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
):
    """`y = max(0, max over the window of z + bias)` and its winner, from z [N, C, conv H, conv W].

    Without RELU y is the maximum itself, and a window dead where it holds no conv output at all. Reads z once where
    windows do not overlap. A program computes BLOCK outputs, in the order of their addresses.
    """
    z_stride = as_index(z_stride, INDEX)
    y_stride = as_index(y_stride, INDEX)
    m = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    in_range = m < elements
    n, o, i, j = _position(m, size.outputs, size.pooled_height, size.pooled_width, CHANNELS_LAST)
    bias = tl.zeros((BLOCK,), ACC)
    if HAS_BIAS:
        bias = tl.load(b_ptr + o * b_stride, mask=in_range, other=0.0).to(ACC)
    z_base = z_ptr + n * z_stride[0] + o * z_stride[1]
    best = tl.full((BLOCK,), float("-inf"), ACC)
    winner = tl.full((BLOCK,), 0 if RELU else 255, tl.int32)
    WINDOW: tl.constexpr = shape.pool[0] * shape.pool[1]
    STEP: tl.constexpr = at_once(WINDOW, 16)
    for start in range(0, WINDOW, STEP):
        for step in tl.static_range(STEP):
            p = start + step
            row = i * shape.pool_stride[0] - shape.pool_padding[0] + p // shape.pool[1] * shape.pool_dilation[0]
            column = j * shape.pool_stride[1] - shape.pool_padding[1] + p % shape.pool[1] * shape.pool_dilation[1]
            exists = in_range & visible(row, column, size.conv_height, size.conv_width, False)
            z = tl.load(z_base + row * z_stride[2] + column * z_stride[3], mask=exists, other=0.0).to(ACC) + bias
            best, winner = take(z, exists, p, best, winner, RELU)
    at = n * y_stride[0] + o * y_stride[1] + i * y_stride[2] + j * y_stride[3]
    store_winner(y_ptr, code_ptr, at, best, winner, in_range, RELU, WITH_CODE)


@triton.jit
def expand(
    dy_ptr,
    code_ptr,
    dz_ptr,
    size,
    elements,
    y_stride,
    z_stride,
    shape: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
):
    """dz [N, C, conv H, conv W], every element written: the sum of dy over the windows that elected it, mostly 0."""
    z_stride = as_index(z_stride, INDEX)
    y_stride = as_index(y_stride, INDEX)
    m = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    in_range = m < elements
    n, o, row, column = _position(m, size.outputs, size.conv_height, size.conv_width, CHANNELS_LAST)
    base = n * y_stride[0] + o * y_stride[1]
    dz = _conv_gradient(dy_ptr, code_ptr, base, row, column, in_range, size, y_stride, shape, ACC)
    at = n * z_stride[0] + o * z_stride[1] + row * z_stride[2] + column * z_stride[3]
    tl.store(dz_ptr + at, dz.to(dz_ptr.dtype.element_ty), mask=in_range)


@triton.jit
def _position(m, channels, height, width, CHANNELS_LAST: tl.constexpr):
    """(n, o, i, j) of the m-th element of a dense (N, C, H, W) tensor in either memory format."""
    if CHANNELS_LAST:
        n, i, j = unflatten(m // channels, height, width)
        o = m % channels
    else:
        plane, i, j = unflatten(m, height, width)
        n = plane // channels
        o = plane % channels
    return n, o, i, j


@triton.jit
def _conv_gradient(dy_ptr, code_ptr, base, row, column, mask, size, y_stride, shape: tl.constexpr, ACC: tl.constexpr):
    """dz at conv positions (row, column): the sum of dy over the windows that elected them.

    `base` holds the offsets of image and channel in dy and code, `mask` where to look at all. Conv row r lies in
    windows i with `r = i * pool_stride - pool_padding + a * pool_dilation`, 0 <= a < pool; ROWS of them at most.
    """
    ROWS: tl.constexpr = ((shape.pool[0] - 1) * shape.pool_dilation[0]) // shape.pool_stride[0] + 1
    COLUMNS: tl.constexpr = ((shape.pool[1] - 1) * shape.pool_dilation[1]) // shape.pool_stride[1] + 1
    STEP: tl.constexpr = at_once(ROWS * COLUMNS, 16)
    dz = tl.zeros(row.shape, ACC)
    for start in range(0, ROWS * COLUMNS, STEP):
        for step in tl.static_range(STEP):
            i = (row + shape.pool_padding[0]) // shape.pool_stride[0] - (start + step) // COLUMNS
            a, in_row = _window_offset(row, i, size.pooled_height, shape, 0)
            j = (column + shape.pool_padding[1]) // shape.pool_stride[1] - (start + step) % COLUMNS
            b, in_column = _window_offset(column, j, size.pooled_width, shape, 1)
            seen = mask & in_row & in_column
            offset = base + i * y_stride[2] + j * y_stride[3]
            winner = tl.load(code_ptr + offset, mask=seen, other=255).to(tl.int32)
            hit = seen & (winner == a * shape.pool[1] + b)
            dz += tl.where(hit, tl.load(dy_ptr + offset, mask=seen, other=0.0).to(ACC), 0.0)
    return dz


@triton.jit
def _window_offset(position, window, windows, shape: tl.constexpr, AXIS: tl.constexpr):
    """Where in a window a conv row or column lies, in steps of the window's dilation; and whether it does."""
    offset = position + shape.pool_padding[AXIS] - window * shape.pool_stride[AXIS]
    inside = (window >= 0) & (window < windows)
    if shape.pool_dilation[AXIS] > 1:
        inside = inside & (offset % shape.pool_dilation[AXIS] == 0)
        offset = offset // shape.pool_dilation[AXIS]
    return offset, inside & (offset < shape.pool[AXIS])
