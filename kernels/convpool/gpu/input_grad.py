# mypy: ignore-errors
"""dx of the fused plan, in gather form: no atomics, and codes and dy are read once for each cell that a window reaches.

Cut x into cells of `pool_stride * stride` rows and columns; a cell's positions are its phases. Pool windows repeat
with the cells, so for cell (i, j), window (i + di, j + dj) and window position p, the tap that leads from the conv
output at p to phase (a, b) is the same in all cells:

    tap row * dilation = a + padding - (di * pool_stride - pool_padding + p's row * pool_dilation) * stride

(columns alike), where that is a multiple of the dilation and a row of the kernel. So `dx[cell, (phase, c)]` is a sum
over (di, dj), p and o of `dy where code == p` [cells, o] times `weight[o, c, tap(p, di, dj, phase)]` [o, (phase, c)]:
one matrix product for each p, into one accumulator.
"""

import triton
import triton.language as tl

from convpool.gpu.tiles import Shape, as_index, is_finite, multiply, unflatten, visible


@triton.jit(do_not_specialize=["positions"])
def input_grad(
    dy_ptr,
    code_ptr,
    w_ptr,
    dx_ptr,
    size,
    positions,
    y_stride,
    w_stride,
    x_stride,
    shape: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
):
    """dx at BLOCK_M cells and BLOCK_C of the flattened (phase, channel) of one group, BLOCK_O output channels at a
    time."""
    CELL_H: tl.constexpr = shape.pool_stride[0] * shape.stride[0]
    CELL_W: tl.constexpr = shape.pool_stride[1] * shape.stride[1]
    pid = tl.program_id(0).to(INDEX)
    y_stride = as_index(y_stride, INDEX)
    w_stride = as_index(w_stride, INDEX)
    x_stride = as_index(x_stride, INDEX)
    parts = tl.cdiv(size.inputs * (CELL_H * CELL_W), BLOCK_C)
    blocks = tl.cdiv(positions, BLOCK_M)
    group = pid // parts // blocks
    m = (pid // parts % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (pid % parts) * BLOCK_C + tl.arange(0, BLOCK_C)

    sums = _sum_windows(
        dy_ptr, code_ptr, w_ptr, m, column, group, size, positions, y_stride, w_stride, shape, BLOCK_M, BLOCK_C,
        BLOCK_O, PRECISION, ACC, INDEX,
    )  # fmt: skip
    # Positions that did not win add 0 * weight, a NaN where that is not finite: then each cell is summed again by
    # itself.
    finite = True if BLOCK_O == 1 else is_finite(sums)
    if finite:
        _store(dx_ptr, sums, m, column, group, size, positions, x_stride, shape)
    else:
        for row in range(BLOCK_M):
            one = (pid // parts % blocks) * BLOCK_M + row + tl.arange(0, 1)
            cell_sums = _sum_winners(
                dy_ptr, code_ptr, w_ptr, one, column, group, size, positions, y_stride, w_stride, shape, BLOCK_C, ACC
            )
            _store(dx_ptr, cell_sums, one, column, group, size, positions, x_stride, shape)


@triton.jit
def _store(dx_ptr, sums, m, column, group, size, positions, x_stride, shape: tl.constexpr):
    """dx [cells, columns] written where its positions lie in x."""
    CELL_H: tl.constexpr = shape.pool_stride[0] * shape.stride[0]
    CELL_W: tl.constexpr = shape.pool_stride[1] * shape.stride[1]
    n, i, j = unflatten(m, tl.cdiv(size.height, CELL_H), tl.cdiv(size.width, CELL_W))
    phase = column // size.inputs
    c = group * size.inputs + column % size.inputs
    h = (i * CELL_H)[:, None] + (phase // CELL_W)[None, :]
    w = (j * CELL_W)[:, None] + (phase % CELL_W)[None, :]
    at = (n * x_stride[0])[:, None] + (c * x_stride[1])[None, :] + h * x_stride[2] + w * x_stride[3]
    is_position = (m < positions)[:, None] & (phase < CELL_H * CELL_W)[None, :] & (h < size.height) & (w < size.width)
    tl.store(dx_ptr + at, sums.to(dx_ptr.dtype.element_ty), mask=is_position)


@triton.jit
def _sum_windows(
    dy_ptr, code_ptr, w_ptr, m, column, group, size, positions, y_stride, w_stride, shape: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """dx [BLOCK_M, BLOCK_C] of cells m. With BLOCK_O 1 there is no matrix product, and only winners are multiplied."""
    CELL_H: tl.constexpr = shape.pool_stride[0] * shape.stride[0]
    CELL_W: tl.constexpr = shape.pool_stride[1] * shape.stride[1]
    FIRST_H: tl.constexpr = _first_window(shape, 0)
    FIRST_W: tl.constexpr = _first_window(shape, 1)
    WINDOWS_W: tl.constexpr = windows_of_cell(shape, 1)
    in_range = m < positions
    n, cell_i, cell_j = unflatten(m, tl.cdiv(size.height, CELL_H), tl.cdiv(size.width, CELL_W))
    phase = column // size.inputs
    w_columns = w_ptr + column % size.inputs * w_stride[1]
    sums = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    chunks = tl.cdiv(size.outputs, BLOCK_O)
    for step in range(windows_of_cell(shape, 0) * WINDOWS_W * chunks):
        di = FIRST_H + step // chunks // WINDOWS_W
        dj = FIRST_W + step // chunks % WINDOWS_W
        o = step % chunks * BLOCK_O + tl.arange(0, BLOCK_O).to(INDEX)
        is_channel = o < size.outputs
        o = group * size.outputs + o
        i = cell_i + di
        j = cell_j + dj
        is_window = in_range & visible(i, j, size.pooled_height, size.pooled_width, False)
        seen = is_window[:, None] & is_channel[None, :]
        at = (n * y_stride[0] + i * y_stride[2] + j * y_stride[3])[:, None] + (o * y_stride[1])[None, :]
        code = tl.load(code_ptr + at, mask=seen, other=255).to(tl.int32)  # [BLOCK_M, BLOCK_O]
        dy = tl.load(dy_ptr + at, mask=seen, other=0.0)
        for p in range(shape.pool[0] * shape.pool[1]):
            th, has_row = _tap(phase // CELL_W, di, p // shape.pool[1], shape, 0)
            tw, has_column = _tap(phase % CELL_W, dj, p % shape.pool[1], shape, 1)
            has_tap = has_row & has_column & (phase < CELL_H * CELL_W)
            taps = (w_columns + th * w_stride[2] + tw * w_stride[3])[None, :] + (o * w_stride[0])[:, None]
            weight = tl.load(taps, mask=is_channel[:, None] & has_tap[None, :], other=0.0)  # [BLOCK_O, BLOCK_C]
            if BLOCK_O == 1:
                sums += tl.where((code == p) & has_tap[None, :], dy.to(ACC) * weight.to(ACC), 0.0)
            else:
                sums = multiply(tl.where(code == p, dy, tl.zeros_like(dy)), weight, sums, PRECISION)
    return sums


@triton.jit
def _sum_winners(
    dy_ptr, code_ptr, w_ptr, m, column, group, size, positions, y_stride, w_stride, shape: tl.constexpr,
    BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dx [1, BLOCK_C] of one cell m [1], winner by winner: slow, and nothing is multiplied by 0."""
    CELL_H: tl.constexpr = shape.pool_stride[0] * shape.stride[0]
    CELL_W: tl.constexpr = shape.pool_stride[1] * shape.stride[1]
    n, cell_i, cell_j = unflatten(m, tl.cdiv(size.height, CELL_H), tl.cdiv(size.width, CELL_W))
    phase = column // size.inputs
    sums = tl.zeros((1, BLOCK_C), ACC)
    for window in range(windows_of_cell(shape, 0) * windows_of_cell(shape, 1)):
        di = _first_window(shape, 0) + window // windows_of_cell(shape, 1)
        dj = _first_window(shape, 1) + window % windows_of_cell(shape, 1)
        i = cell_i + di
        j = cell_j + dj
        seen = (m < positions) & visible(i, j, size.pooled_height, size.pooled_width, False)
        for channel in range(size.outputs):
            o = group * size.outputs + channel
            at = n * y_stride[0] + o * y_stride[1] + i * y_stride[2] + j * y_stride[3]
            code = tl.load(code_ptr + at, mask=seen, other=255).to(tl.int32)
            dy = tl.load(dy_ptr + at, mask=seen, other=0.0).to(ACC)
            th, has_row = _tap(phase // CELL_W, di, code // shape.pool[1], shape, 0)
            tw, has_column = _tap(phase % CELL_W, dj, code % shape.pool[1], shape, 1)
            is_winner = code < shape.pool[0] * shape.pool[1]
            has_tap = has_row & has_column & (phase < CELL_H * CELL_W) & is_winner
            tap = w_ptr + o * w_stride[0] + column % size.inputs * w_stride[1] + th * w_stride[2] + tw * w_stride[3]
            weight = tl.load(tap, mask=has_tap, other=0.0).to(ACC)
            sums += tl.where(has_tap, dy * weight, 0.0)[None, :]
    return sums


@triton.jit
def _tap(phase, window, position, shape: tl.constexpr, AXIS: tl.constexpr):
    """The tap row (AXIS 0) or column from a window's position to a phase, and whether the kernel has it."""
    conv = window * shape.pool_stride[AXIS] - shape.pool_padding[AXIS] + position * shape.pool_dilation[AXIS]
    distance = phase + shape.padding[AXIS] - conv * shape.stride[AXIS]
    if shape.dilation[AXIS] > 1:
        tap = distance // shape.dilation[AXIS]
        return tap, (distance >= 0) & (distance % shape.dilation[AXIS] == 0) & (tap < shape.kernel[AXIS])
    else:
        return distance, (distance >= 0) & (distance < shape.kernel[AXIS])


@triton.constexpr_function
def _first_window(shape: Shape, axis: int) -> int:
    """The first window, relative to a cell, whose conv outputs read the cell: the `di` (axis 0) to begin with."""
    shape = Shape(*shape)  # Triton before 3.7 hands over a plain tuple
    cell = shape.pool_stride[axis] * shape.stride[axis]
    furthest = (shape.pool[axis] - 1) * shape.pool_dilation[axis] - shape.pool_padding[axis]
    furthest = furthest * shape.stride[axis] + (shape.kernel[axis] - 1) * shape.dilation[axis] - shape.padding[axis]
    return -(furthest // cell)


@triton.constexpr_function
def windows_of_cell(shape: Shape, axis: int) -> int:
    """How many windows in a row (axis 0) or column read one cell."""
    shape = Shape(*shape)  # Triton before 3.7 hands over a plain tuple
    cell = shape.pool_stride[axis] * shape.stride[axis]
    nearest = -shape.pool_padding[axis] * shape.stride[axis] - shape.padding[axis]
    last = (cell - 1 - nearest) // cell
    return last - _first_window(shape, axis) + 1
