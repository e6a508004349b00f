# mypy: ignore-errors
"""dx of the fused plan, in gather form: no atomics, and codes and dy are read once for each cell that a window reaches.

Cut x into cells of `pool_stride * stride` rows and columns; a cell's positions are its phases. Pool windows repeat
with the cells, so for cell (i, j), window (i + di, j + dj) and window position p, the tap that leads from the conv
output at p to phase (a, b) is the same in all cells:

    tap row * dilation = a + padding - (di * pool_stride - pool_padding + p's row * pool_dilation) * stride

(columns alike), where that is a multiple of the dilation and a row of the kernel. So `dx[cell, (phase, c)]` is a sum
over (di, dj), p and o of `dy where code == p` [cells, o] times `weight[o, c, tap(p, di, dj, phase)]` [o, (phase, c)].

Two ways to sum: in any geometry, the columns of a tile are (phase, c) mixed, one matrix product for each p. Where a
phase has channels enough for a tile of its own, each has one, and what leads to no tap of the kernel (7/16 of all for a
3x3 kernel and 2x2 windows) is left out by the compiler.
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
    w_stride: tl.constexpr,
    x_stride,
    shape: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    APART: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
):
    """dx at BLOCK_M cells, BLOCK_O output channels at a time.

    Of one group, a program computes BLOCK_C of the flattened (phase, channel) or, where APART is not 0, BLOCK_C
    channels of APART phases. Weight strides are compiled in: the same in every call of a layer.
    """
    CELL_H: tl.constexpr = shape.pool_stride[0] * shape.stride[0]
    CELL_W: tl.constexpr = shape.pool_stride[1] * shape.stride[1]
    pid = tl.program_id(0).to(INDEX)
    y_stride = as_index(y_stride, INDEX)
    x_stride = as_index(x_stride, INDEX)
    SHARES: tl.constexpr = CELL_H * CELL_W // APART if APART else 1
    share = pid % SHARES
    pid = pid // SHARES
    parts = tl.cdiv(size.inputs if APART else size.inputs * (CELL_H * CELL_W), BLOCK_C)
    blocks = tl.cdiv(positions, BLOCK_M)
    group = pid // parts // blocks
    first = (pid // parts % blocks) * BLOCK_M
    column = (pid % parts) * BLOCK_C + tl.arange(0, BLOCK_C)
    if APART:
        phase = tl.zeros_like(column) + share * APART
        c = column
        sums = ()
        for _ in tl.static_range(APART):
            sums = sums + (tl.zeros((BLOCK_M, BLOCK_C), ACC),)  # noqa: RUF005 (a kernel has no unpacking)
        for s in tl.static_range(SHARES):
            if share == s:
                sums = _sum_apart(
                    sums, dy_ptr, code_ptr, w_ptr, first, c, group, size, positions, y_stride, w_stride, shape,
                    s * APART, APART, BLOCK_M, BLOCK_O, PRECISION, INDEX,
                )  # fmt: skip
    else:
        phase = column // size.inputs
        c = column % size.inputs
        mixed = _sum_mixed(
            dy_ptr, code_ptr, w_ptr, first, phase, c, group, size, positions, y_stride, w_stride, shape, BLOCK_M,
            BLOCK_C, BLOCK_O, PRECISION, ACC, INDEX,
        )  # fmt: skip
        sums = (mixed,)
    TURNS: tl.constexpr = APART if APART else 1
    # Positions that did not win added 0 * weight, a NaN where that is not finite: then each cell is summed again by
    # itself.
    finite = True if BLOCK_O == 1 else is_finite(sums[0])
    for turn in tl.static_range(1, TURNS):
        finite = finite & is_finite(sums[turn])
    if finite:
        m = first + tl.arange(0, BLOCK_M)
        for turn in tl.static_range(TURNS):
            _store(dx_ptr, sums[turn], m, phase + turn, c, group, size, positions, x_stride, shape)
    else:
        for one in range(BLOCK_M * TURNS):
            cell = first + one // TURNS + tl.arange(0, 1)
            cell_sums = _sum_winners(
                dy_ptr, code_ptr, w_ptr, cell, phase + one % TURNS, c, group, size, positions, y_stride, w_stride,
                shape, BLOCK_C, ACC,
            )  # fmt: skip
            _store(dx_ptr, cell_sums, cell, phase + one % TURNS, c, group, size, positions, x_stride, shape)


@triton.jit
def _store(dx_ptr, sums, m, phase, c, group, size, positions, x_stride, shape: tl.constexpr):
    """dx [cells, columns] written where its positions lie in x."""
    CELL_H: tl.constexpr = shape.pool_stride[0] * shape.stride[0]
    CELL_W: tl.constexpr = shape.pool_stride[1] * shape.stride[1]
    n, i, j = unflatten(m, tl.cdiv(size.height, CELL_H), tl.cdiv(size.width, CELL_W))
    h = (i * CELL_H)[:, None] + (phase // CELL_W)[None, :]
    w = (j * CELL_W)[:, None] + (phase % CELL_W)[None, :]
    channel = group * size.inputs + c
    at = (n * x_stride[0])[:, None] + (channel * x_stride[1])[None, :] + h * x_stride[2] + w * x_stride[3]
    is_column = (phase < CELL_H * CELL_W) & (c < size.inputs)
    is_position = (m < positions)[:, None] & is_column[None, :] & (h < size.height) & (w < size.width)
    tl.store(dx_ptr + at, sums.to(dx_ptr.dtype.element_ty), mask=is_position)


@triton.jit
def _sum_mixed(
    dy_ptr, code_ptr, w_ptr, first, phase, c, group, size, positions, y_stride, w_stride: tl.constexpr,
    shape: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """dx [BLOCK_M, BLOCK_C] of cells from `first` on and columns (phase, c).

    With BLOCK_O 1 there is no matrix product, and only winners are multiplied.
    """
    CELL_H: tl.constexpr = shape.pool_stride[0] * shape.stride[0]
    CELL_W: tl.constexpr = shape.pool_stride[1] * shape.stride[1]
    FIRST_H: tl.constexpr = _first_window(shape, 0)
    FIRST_W: tl.constexpr = _first_window(shape, 1)
    WINDOWS_W: tl.constexpr = windows_of_cell(shape, 1)
    m = first + tl.arange(0, BLOCK_M)
    n, cell_i, cell_j = unflatten(m, tl.cdiv(size.height, CELL_H), tl.cdiv(size.width, CELL_W))
    w_columns = w_ptr + c * w_stride[1]
    sums = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    chunks = tl.cdiv(size.outputs, BLOCK_O)
    for step in range(windows_of_cell(shape, 0) * WINDOWS_W * chunks):
        di = FIRST_H + step // chunks // WINDOWS_W
        dj = FIRST_W + step // chunks % WINDOWS_W
        o = step % chunks * BLOCK_O + tl.arange(0, BLOCK_O).to(INDEX)
        is_channel = o < size.outputs
        o = group * size.outputs + o
        code, dy = _load_window(
            dy_ptr, code_ptr, n, cell_i + di, cell_j + dj, o, m < positions, is_channel, size, y_stride
        )
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
def _sum_apart(
    sums, dy_ptr, code_ptr, w_ptr, first, c, group, size, positions, y_stride, w_stride: tl.constexpr,
    shape: tl.constexpr, FIRST: tl.constexpr, TURNS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """For each of TURNS phases from FIRST on, dx of cells from `first` on and channels c added to one of sums.

    A turn loads dy, winners and the weights of all taps once, for BLOCK_O output channels; all else is unrolled.
    """
    CELL_H: tl.constexpr = shape.pool_stride[0] * shape.stride[0]
    CELL_W: tl.constexpr = shape.pool_stride[1] * shape.stride[1]
    WINDOWS_W: tl.constexpr = windows_of_cell(shape, 1)
    m = first + tl.arange(0, BLOCK_M)
    n, cell_i, cell_j = unflatten(m, tl.cdiv(size.height, CELL_H), tl.cdiv(size.width, CELL_W))
    for start in range(0, size.outputs, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O).to(INDEX)
        is_channel = o < size.outputs
        o = group * size.outputs + o
        first_tap = w_ptr + ((o * w_stride[0])[:, None] + (c * w_stride[1])[None, :])
        reads = is_channel[:, None] & (c < size.inputs)[None, :]
        weights = ()
        for t in tl.static_range(shape.kernel[0] * shape.kernel[1]):
            tap = first_tap + (t // shape.kernel[1] * w_stride[2] + t % shape.kernel[1] * w_stride[3])
            weights = weights + (tl.load(tap, mask=reads, other=0.0),)  # noqa: RUF005
        for window in tl.static_range(windows_of_cell(shape, 0) * WINDOWS_W):
            i = cell_i + _first_window(shape, 0) + window // WINDOWS_W
            j = cell_j + _first_window(shape, 1) + window % WINDOWS_W
            code, dy = _load_window(dy_ptr, code_ptr, n, i, j, o, m < positions, is_channel, size, y_stride)
            for p in tl.static_range(shape.pool[0] * shape.pool[1]):
                for turn in tl.static_range(TURNS):
                    if tap_between(shape, window, p, FIRST + turn) >= 0:
                        # Triton would hand a tile that several products share to all but one through shared memory:
                        # for each phase the comparison is another one.
                        dz = tl.where(code + turn == p + turn, dy, tl.zeros_like(dy))
                        weight = weights[tap_between(shape, window, p, FIRST + turn)]
                        added = multiply(dz, weight, sums[turn], PRECISION)
                        sums = sums[:turn] + (added,) + sums[turn + 1 :]  # noqa: RUF005
    return sums


@triton.jit
def _load_window(dy_ptr, code_ptr, n, i, j, o, in_range, is_channel, size, y_stride):
    """Winners and dy [cells, channels] of windows (n, i, j), where they exist."""
    is_window = in_range & visible(i, j, size.pooled_height, size.pooled_width, False)
    seen = is_window[:, None] & is_channel[None, :]
    at = (n * y_stride[0] + i * y_stride[2] + j * y_stride[3])[:, None] + (o * y_stride[1])[None, :]
    code = tl.load(code_ptr + at, mask=seen, other=255).to(tl.int32)
    return code, tl.load(dy_ptr + at, mask=seen, other=0.0)


@triton.jit
def _sum_winners(
    dy_ptr, code_ptr, w_ptr, m, phase, c, group, size, positions, y_stride, w_stride: tl.constexpr, shape: tl.constexpr,
    BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dx [1, BLOCK_C] of one cell m [1] and columns (phase, c), winner by winner: slow, nothing is multiplied by 0."""
    CELL_H: tl.constexpr = shape.pool_stride[0] * shape.stride[0]
    CELL_W: tl.constexpr = shape.pool_stride[1] * shape.stride[1]
    n, cell_i, cell_j = unflatten(m, tl.cdiv(size.height, CELL_H), tl.cdiv(size.width, CELL_W))
    is_column = (phase < CELL_H * CELL_W) & (c < size.inputs)
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
            has_tap = has_row & has_column & is_column & is_winner
            tap = w_ptr + o * w_stride[0] + c * w_stride[1] + th * w_stride[2] + tw * w_stride[3]
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
def tap_between(shape: Shape, window: int, position: int, phase: int) -> int:
    """What `_tap` tells, of numbers known to the compiler: the tap from a window's position to a phase, or -1; windows,
    positions, phases and taps each counted row by row."""
    shape = Shape(*shape)  # Triton before 3.7 hands over a plain tuple
    cell_w = shape.pool_stride[1] * shape.stride[1]
    windows, offsets = divmod(window, windows_of_cell(shape, 1)), divmod(position, shape.pool[1])
    phases = divmod(phase, cell_w)
    found = 0
    for axis in (0, 1):
        conv = (_first_window(shape, axis) + windows[axis]) * shape.pool_stride[axis] - shape.pool_padding[axis]
        conv += offsets[axis] * shape.pool_dilation[axis]
        distance = phases[axis] + shape.padding[axis] - conv * shape.stride[axis]
        tap, rest = divmod(distance, shape.dilation[axis])
        if rest or not 0 <= tap < shape.kernel[axis]:
            return -1
        found = found * shape.kernel[axis] + tap
    return found


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
