# mypy: ignore-errors
"""The fused forward pass on the matrix unit for small windows and filters: a window's pixels are read once each.

Neighbouring conv outputs share most of their input. `forward_dot` loads it for each of them: 36 pixels for a window of
2x2 and a filter of 3x3 that read 16.
"""

import triton
import triton.language as tl

from convpool.gpu.tiles import Shape, as_index, multiply, patch_extent, store_winner, take, unflatten, visible


@triton.constexpr_function
def _tap(shape: Shape, u: int, v: int, p: int) -> int:
    """The tap through which the conv output at window position p reads pixel (u, v) of the patch; -1: through none."""
    shape = Shape(*shape)  # Triton before 3.7 hands over a plain tuple
    tap = 0
    for pixel, position, axis in ((u, p // shape.pool[1], 0), (v, p % shape.pool[1], 1)):
        offset = pixel - position * shape.pool_dilation[axis] * shape.stride[axis]
        along, rest = divmod(offset, shape.dilation[axis])
        if rest or not 0 <= along < shape.kernel[axis]:
            return -1
        tap = tap * shape.kernel[axis] + along
    return tap


@triton.jit(do_not_specialize=["positions"])
def forward_patch(
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
    X_STEP: tl.constexpr,
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
    """`y[n, o, i, j] = max(0, max_p z_p)` as in `forward`, and the p that won; RELU as there.

    A program computes BLOCK_M windows of BLOCK_O channels, one of `parts` of a group, with an accumulator z_p
    [BLOCK_M, BLOCK_O] for each window position, so that a thread compares its own registers. A trip takes BLOCK_K input
    channels: the weights of all taps, then pixel after pixel of the windows' patches, a dot product for each z_p that
    reads it. All loads of a trip are asynchronous copies that are under way together.

    X_STEP divides the strides of x but for the channels': more than Triton finds out, and 2-byte elements are copied
    asynchronously only by fours or more.
    """
    KH: tl.constexpr = shape.kernel[0]
    KW: tl.constexpr = shape.kernel[1]
    WINDOW: tl.constexpr = shape.pool[0] * shape.pool[1]
    PATCH_H: tl.constexpr = patch_extent(shape, 0)
    PATCH_W: tl.constexpr = patch_extent(shape, 1)
    blocks = tl.cdiv(positions, BLOCK_M)
    pid = tl.program_id(0).to(INDEX)
    by_n, by_c, by_h, by_w = as_index(x_stride, INDEX)
    by_n, by_h, by_w = by_n // X_STEP * X_STEP, by_h // X_STEP * X_STEP, by_w // X_STEP * X_STEP  # changes nothing
    w_stride = as_index(w_stride, INDEX)
    y_stride = as_index(y_stride, INDEX)
    block = pid // parts % blocks
    group = pid // parts // blocks
    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    in_range = m < positions
    n, i, j = unflatten(m, size.pooled_height, size.pooled_width)
    conv_row = i * shape.pool_stride[0] - shape.pool_padding[0]
    conv_column = j * shape.pool_stride[1] - shape.pool_padding[1]
    row = conv_row * shape.stride[0] - shape.padding[0]
    column = conv_column * shape.stride[1] - shape.padding[1]
    o = (pid % parts) * BLOCK_O + tl.arange(0, BLOCK_O)
    is_channel = o < size.outputs
    o = group * size.outputs + o

    x_rows = x_ptr + n * by_n + row * by_h + column * by_w + group * INPUTS * by_c
    w_columns = w_ptr + o * w_stride[0]
    step = tl.arange(0, BLOCK_K).to(INDEX)
    z = ()
    for _ in tl.static_range(WINDOW):
        z = z + (tl.zeros((BLOCK_M, BLOCK_O), ACC),)  # noqa: RUF005 (a kernel has no unpacking)
    for start in range(0, size.inputs, BLOCK_K):  # an argument's: without a loop no copies are asynchronous
        c = start + step
        is_input = c < INPUTS
        weights = ()
        for t in tl.static_range(KH * KW):
            # [BLOCK_K, BLOCK_O]
            at = w_columns[None, :] + (c * w_stride[1] + (t // KW) * w_stride[2] + (t % KW) * w_stride[3])[:, None]
            weights = weights + (tl.load(at, mask=is_input[:, None] & is_channel[None, :], other=0.0),)  # noqa: RUF005
        for u in tl.static_range(PATCH_H):
            for v in tl.static_range(PATCH_W):
                seen = in_range & visible(row + u, column + v, size.height, size.width, INSIDE)
                at = x_rows[:, None] + (c * by_c + u * by_h + v * by_w)[None, :]
                a = tl.load(at, mask=seen[:, None] & is_input[None, :], other=0.0)  # [BLOCK_M, BLOCK_K]
                sums = ()
                for p in tl.static_range(WINDOW):
                    if _tap(shape, u, v, p) >= 0:
                        sums = sums + (multiply(a, weights[_tap(shape, u, v, p)], z[p], PRECISION),)  # noqa: RUF005
                    else:
                        sums = sums + (z[p],)  # noqa: RUF005
                z = sums
    bias = tl.zeros((1, BLOCK_O), ACC)
    if HAS_BIAS:
        bias = tl.load(b_ptr + o * b_stride, mask=is_channel, other=0.0).to(ACC)[None, :]
    best = tl.full((BLOCK_M, BLOCK_O), float("-inf"), ACC)
    winner = tl.full((BLOCK_M, BLOCK_O), 0 if RELU else 255, tl.int32)
    for p in tl.static_range(WINDOW):
        r = conv_row + (p // shape.pool[1]) * shape.pool_dilation[0]
        s = conv_column + (p % shape.pool[1]) * shape.pool_dilation[1]
        seen = in_range & visible(r, s, size.conv_height, size.conv_width, WINDOWS_INSIDE)
        best, winner = take(z[p] + bias, seen[:, None], p, best, winner, RELU)
    offset = (n * y_stride[0] + i * y_stride[2] + j * y_stride[3])[:, None] + (o * y_stride[1])[None, :]
    mask = in_range[:, None] & is_channel[None, :]
    store_winner(y_ptr, code_ptr, offset, best, winner, mask, RELU, WITH_CODE)
