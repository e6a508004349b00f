# mypy: ignore-errors
"""The fused forward pass: conv outputs live in registers only, where the pool windows look.

These kernels, and `forward_patch`, compute `y[n, o, i, j] = max(0, max_p z_p)` with z_p the conv output at position p
of window (i, j), and the p that won. ReLU is monotone, so it can follow the maximum; without RELU y is the maximum
itself, and a window is dead only where it holds no conv output at all. The bias is added before comparing: the winner
is eager's even where the bias is not finite.
"""

import triton
import triton.language as tl

from convpool.gpu.tiles import Shape, as_index, better, multiply, patch_extent, store_winner, take, unflatten, visible


@triton.constexpr_function
def _patch_index(shape: Shape, p: int, k: int) -> int:
    """Where in the patch (channel, row, column) lies the k-th factor of the conv output at window position p."""
    shape = Shape(*shape)  # Triton before 3.7 hands over a plain tuple
    height, width = patch_extent(shape, 0), patch_extent(shape, 1)
    rows, columns = shape.kernel
    row = p // shape.pool[1] * shape.pool_dilation[0] * shape.stride[0] + k // columns % rows * shape.dilation[0]
    column = p % shape.pool[1] * shape.pool_dilation[1] * shape.stride[1] + k % columns * shape.dilation[1]
    return (k // (rows * columns) * height + row) * width + column


@triton.jit(do_not_specialize=["positions"])
def forward_direct(
    x_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    code_ptr,
    size,
    positions,
    parts,
    x_stride,
    w_stride: tl.constexpr,
    b_stride,
    y_stride,
    shape: tl.constexpr,
    INPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    INSIDE: tl.constexpr,
    WINDOWS_INSIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WITH_CODE: tl.constexpr,
    RELU: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Few products a conv output: the input patch under a pool window stays in registers while CHANNELS channels pass
    by.

    A program computes BLOCK_M windows of CHANNELS output channels (a multiple of BLOCK_O), BLOCK_O at a time, one of
    the `parts` that a group's channels are cut into (an argument, for Triton compiles a 1 in and then divides less).
    Weight strides are compiled in, for one layer's do not change, and offsets inside a filter then cost no
    instructions.
    """
    KH: tl.constexpr = shape.kernel[0]
    KW: tl.constexpr = shape.kernel[1]
    PATCH_H: tl.constexpr = patch_extent(shape, 0)
    PATCH_W: tl.constexpr = patch_extent(shape, 1)

    blocks = tl.cdiv(positions, BLOCK_M)
    pid = tl.program_id(0).to(INDEX)
    x_stride = as_index(x_stride, INDEX)
    y_stride = as_index(y_stride, INDEX)
    first_channel = (pid % parts) * CHANNELS
    group = pid // parts // blocks
    m = (pid // parts % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]  # [BLOCK_M, 1]
    in_range = m < positions
    n, i, j = unflatten(m, size.pooled_height, size.pooled_width)
    conv_row = i * shape.pool_stride[0] - shape.pool_padding[0]
    conv_column = j * shape.pool_stride[1] - shape.pool_padding[1]
    row = conv_row * shape.stride[0] - shape.padding[0]
    column = conv_column * shape.stride[1] - shape.padding[1]

    x_base = x_ptr + n * x_stride[0] + group * INPUTS * x_stride[1] + row * x_stride[2] + column * x_stride[3]
    patch = ()
    for c in tl.static_range(INPUTS):
        for h in tl.static_range(PATCH_H):
            for w in tl.static_range(PATCH_W):
                seen = in_range & visible(row + h, column + w, size.height, size.width, INSIDE)
                at = x_base + c * x_stride[1] + h * x_stride[2] + w * x_stride[3]
                patch = patch + (tl.load(at, mask=seen, other=0.0).to(ACC),)  # noqa: RUF005 (a kernel has no unpacking)

    y_base = n * y_stride[0] + i * y_stride[2] + j * y_stride[3]
    step = tl.arange(0, BLOCK_O)[None, :]  # [1, BLOCK_O]
    for start in range(first_channel, tl.minimum(first_channel + CHANNELS, size.outputs), BLOCK_O):
        is_channel = True if BLOCK_O == 1 else start + step < size.outputs
        o = group * size.outputs + start
        weights = ()
        for c in tl.static_range(INPUTS):
            for h in tl.static_range(KH):
                for w in tl.static_range(KW):
                    tap = w_ptr + o * w_stride[0] + c * w_stride[1] + h * w_stride[2] + w * w_stride[3]
                    weights = weights + (tl.load(tap + step * w_stride[0], mask=is_channel, other=0.0).to(ACC),)  # noqa: RUF005
        bias = tl.zeros((1, BLOCK_O), ACC)
        if HAS_BIAS:
            bias = tl.load(b_ptr + o * b_stride + step * b_stride, mask=is_channel, other=0.0).to(ACC)

        best = tl.full((BLOCK_M, BLOCK_O), float("-inf"), ACC)
        winner = tl.full((BLOCK_M, BLOCK_O), 0 if RELU else 255, tl.int32)
        for p in tl.static_range(shape.pool[0] * shape.pool[1]):
            z = tl.zeros((BLOCK_M, BLOCK_O), ACC)
            for k in tl.static_range(INPUTS * KH * KW):
                z += patch[_patch_index(shape, p, k)] * weights[k]
            z += bias  # last: a sum that begins with it rounds more
            r = conv_row + (p // shape.pool[1]) * shape.pool_dilation[0]
            s = conv_column + (p % shape.pool[1]) * shape.pool_dilation[1]
            exists = visible(r, s, size.conv_height, size.conv_width, WINDOWS_INSIDE)
            best, winner = take(z, exists, p, best, winner, RELU)
        offset = y_base + (o + step) * y_stride[1]
        store_winner(y_ptr, code_ptr, offset, best, winner, in_range & is_channel, RELU, WITH_CODE)


@triton.jit(do_not_specialize=["positions"])
def forward_dot(
    x_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    code_ptr,
    size,
    positions,
    parts,
    x_stride,
    w_stride,
    b_stride,
    y_stride,
    shape: tl.constexpr,
    INPUTS: tl.constexpr,
    FLAT: tl.constexpr,
    CHANNELS_INNER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INSIDE: tl.constexpr,
    WINDOWS_INSIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WITH_CODE: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
):
    """An implicit matrix product on the matrix unit; the positions of a pool window are so many more rows of it.

    WINDOW is the window rounded up to a power of two. Row r is position `r // BLOCK_M` of window `r % BLOCK_M`, so one
    accumulator [WINDOW * BLOCK_M, BLOCK_O] serves all positions, and a tree of pairwise comparisons takes the maximum
    after the K loop. (A running maximum inside the loop, or an accumulator for each position, spills registers.)

    A program computes BLOCK_O output channels, one of `parts` of a group.

    The K loop takes BLOCK_K products at a time: channels of one tap, or, where FLAT, for few channels, products from
    (tap, channel) flattened, the channel inner where CHANNELS_INNER.
    """
    WINDOW: tl.constexpr = triton.next_power_of_2(shape.pool[0] * shape.pool[1])
    TAPS: tl.constexpr = shape.kernel[0] * shape.kernel[1]
    blocks = tl.cdiv(positions, BLOCK_M)
    pid = tl.program_id(0).to(INDEX)
    x_stride = as_index(x_stride, INDEX)
    w_stride = as_index(w_stride, INDEX)
    y_stride = as_index(y_stride, INDEX)
    block = pid // parts % blocks
    group = pid // parts // blocks

    r = tl.arange(0, WINDOW * BLOCK_M)
    p = r // BLOCK_M
    m = block * BLOCK_M + r % BLOCK_M
    n, i, j = unflatten(m, size.pooled_height, size.pooled_width)
    conv_row = i * shape.pool_stride[0] - shape.pool_padding[0] + p // shape.pool[1] * shape.pool_dilation[0]
    conv_column = j * shape.pool_stride[1] - shape.pool_padding[1] + p % shape.pool[1] * shape.pool_dilation[1]
    exists = (m < positions) & (p < shape.pool[0] * shape.pool[1])
    exists = exists & visible(conv_row, conv_column, size.conv_height, size.conv_width, WINDOWS_INSIDE)
    row = conv_row * shape.stride[0] - shape.padding[0]
    column = conv_column * shape.stride[1] - shape.padding[1]

    o = (pid % parts) * BLOCK_O + tl.arange(0, BLOCK_O)
    is_channel = o < size.outputs
    o = group * size.outputs + o

    x_rows = x_ptr + n * x_stride[0] + row * x_stride[2] + column * x_stride[3] + group * size.inputs * x_stride[1]
    w_columns = w_ptr + o * w_stride[0]
    acc = tl.zeros((WINDOW * BLOCK_M, BLOCK_O), ACC)
    step = tl.arange(0, BLOCK_K).to(INDEX)
    if FLAT:
        for start in range(0, INPUTS * TAPS, BLOCK_K):
            k = start + step
            c = k % INPUTS if CHANNELS_INNER else k // TAPS
            t = k // INPUTS if CHANNELS_INNER else k % TAPS
            th = t // shape.kernel[1]
            tw = t % shape.kernel[1]
            h = row[:, None] + (th * shape.dilation[0])[None, :]
            w = column[:, None] + (tw * shape.dilation[1])[None, :]
            seen = exists[:, None] & (k < INPUTS * TAPS)[None, :] & visible(h, w, size.height, size.width, INSIDE)
            tap = c * x_stride[1] + th * shape.dilation[0] * x_stride[2] + tw * shape.dilation[1] * x_stride[3]
            a = tl.load(x_rows[:, None] + tap[None, :], mask=seen, other=0.0)  # [WINDOW * BLOCK_M, BLOCK_K]
            at = w_columns[None, :] + (c * w_stride[1] + th * w_stride[2] + tw * w_stride[3])[:, None]
            b = tl.load(at, mask=(k < INPUTS * TAPS)[:, None] & is_channel[None, :], other=0.0)  # [BLOCK_K, BLOCK_O]
            acc = multiply(a, b, acc, PRECISION)
    else:
        CHUNKS: tl.constexpr = triton.cdiv(INPUTS, BLOCK_K)
        for step_number in range(TAPS * tl.cdiv(size.inputs, BLOCK_K)):  # an argument's: a constant would be unrolled
            t = step_number // CHUNKS
            th = t // shape.kernel[1]
            tw = t % shape.kernel[1]
            c = (step_number % CHUNKS) * BLOCK_K + step
            is_input = c < INPUTS
            h = row + th * shape.dilation[0]
            w = column + tw * shape.dilation[1]
            seen = exists & visible(h, w, size.height, size.width, INSIDE)
            tap = c * x_stride[1] + th * shape.dilation[0] * x_stride[2] + tw * shape.dilation[1] * x_stride[3]
            a = tl.load(x_rows[:, None] + tap[None, :], mask=seen[:, None] & is_input[None, :], other=0.0)
            at = w_columns[None, :] + (c * w_stride[1] + th * w_stride[2] + tw * w_stride[3])[:, None]
            b = tl.load(at, mask=is_input[:, None] & is_channel[None, :], other=0.0)
            acc = multiply(a, b, acc, PRECISION)
    if HAS_BIAS:
        acc += tl.load(b_ptr + o * b_stride, mask=is_channel, other=0.0).to(ACC)[None, :]
    acc = tl.where(exists[:, None], acc, float("-inf"))
    winners = p if RELU else tl.where(exists, p, 255)
    winners = tl.broadcast_to(winners[:, None], (WINDOW * BLOCK_M, BLOCK_O))
    best, winner = _window_maximum(acc, winners, WINDOW, BLOCK_M, BLOCK_O, RELU)

    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    n, i, j = unflatten(m, size.pooled_height, size.pooled_width)
    offset = (n * y_stride[0] + i * y_stride[2] + j * y_stride[3])[:, None] + (o * y_stride[1])[None, :]
    mask = (m < positions)[:, None] & is_channel[None, :]
    store_winner(y_ptr, code_ptr, offset, best, winner, mask, RELU, WITH_CODE)


@triton.jit
def _window_maximum(
    values, winners, WINDOW: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, RELU: tl.constexpr
):
    """Maximum and winner over the leading WINDOW of [WINDOW * BLOCK_M, BLOCK_O], neighbours first: order stays
    row-major. Without RELU winners are 255 where there is no conv output."""
    if WINDOW == 1:
        return values, winners
    else:
        HALF: tl.constexpr = WINDOW // 2
        pairs = tl.permute(tl.reshape(values, (HALF, 2, BLOCK_M, BLOCK_O)), (0, 2, 3, 1))
        first, second = tl.split(pairs)
        pairs = tl.permute(tl.reshape(winners, (HALF, 2, BLOCK_M, BLOCK_O)), (0, 2, 3, 1))
        first_winner, second_winner = tl.split(pairs)
        wins = better(second, first)
        if not RELU:
            wins = wins | (first_winner == 255)
        values = tl.reshape(tl.where(wins, second, first), (HALF * BLOCK_M, BLOCK_O))
        winners = tl.reshape(tl.where(wins, second_winner, first_winner), (HALF * BLOCK_M, BLOCK_O))
        return _window_maximum(values, winners, HALF, BLOCK_M, BLOCK_O, RELU)
