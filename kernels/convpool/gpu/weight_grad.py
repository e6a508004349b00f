# mypy: ignore-errors
"""dw and db of the fused plan: partial sums over ranges of pooled positions, then their sum in a fixed order. No
atomics.

`dw[o, c, t] = sum over n, i, j of dy[n, o, i, j] * x[n, c, winner's row * stride + t's row, ...]`, and db is dy's sum,
both over live windows. Codes and dy are read once for each block of (tap, channel), and the window is unrolled inside:
with p the window offset, `dz_p = dy where code == p` makes it a sum of matrix products [o, positions] @ [positions,
(c, t)].
"""

import triton
import triton.language as tl

from convpool.gpu.tiles import as_index, is_finite, multiply, unflatten, unrolled, visible


@triton.jit(do_not_specialize=["positions", "range_size", "ranges"])
def weight_grad(
    x_ptr,
    dy_ptr,
    code_ptr,
    partial_ptr,
    size,
    positions,
    x_stride,
    y_stride,
    range_size,
    ranges,
    partial_size,
    channels,
    shape: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    NEEDS_WEIGHT: tl.constexpr,
    NEEDS_BIAS: tl.constexpr,
    INSIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Partial sums over one range of `range_size` pooled positions: row `range` of partial [ranges, partial_size].

    Its columns are dw [C_out, kernel, C_in / groups], then db [C_out]; either only if needed. A program sums BLOCK_O
    output channels by BLOCK_C of the flattened (tap, channel) of one group.
    """
    TAPS: tl.constexpr = shape.kernel[0] * shape.kernel[1]
    pid = tl.program_id(0).to(INDEX)
    x_stride = as_index(x_stride, INDEX)
    y_stride = as_index(y_stride, INDEX)
    part = pid % ranges
    pid = pid // ranges
    blocks_o = tl.cdiv(size.outputs, BLOCK_O)
    first_o = (pid % blocks_o) * BLOCK_O
    o = first_o + tl.arange(0, BLOCK_O)
    is_channel = o < size.outputs
    pid = pid // blocks_o
    blocks_c = tl.cdiv(size.inputs * TAPS, BLOCK_C) if NEEDS_WEIGHT else 1
    block_c = pid % blocks_c
    group = pid // blocks_c
    o = group * size.outputs + o
    k = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    t = k // size.inputs
    x_columns = x_ptr + (group * size.inputs + k % size.inputs) * x_stride[1]
    first = part * range_size
    last = tl.minimum(first + range_size, positions)
    adds_bias = NEEDS_BIAS and block_c == 0
    sums, bias_sums = _sum_range(
        x_columns, dy_ptr, code_ptr, o, is_channel, t, first, last, adds_bias, size, x_stride, y_stride, shape,
        BLOCK_O, BLOCK_C, BLOCK_M, NEEDS_WEIGHT, NEEDS_BIAS, INSIDE, PRECISION, ACC,
    )  # fmt: skip
    row = partial_ptr + part * partial_size
    if NEEDS_WEIGHT:
        columns = row + k
        # Positions that did not win add 0 * x, a NaN where x is not finite: then each channel is summed again by
        # itself.
        finite = True if BLOCK_O == 1 else is_finite(sums)
        if finite:
            at = columns[None, :] + (o * (size.inputs * TAPS))[:, None]
            tl.store(at, sums, mask=is_channel[:, None] & (t < TAPS)[None, :])
        else:
            for channel in range(tl.minimum(BLOCK_O, size.outputs - first_o)):
                one = group * size.outputs + first_o + channel
                channel_sums = _sum_winners(
                    x_columns, dy_ptr, code_ptr, one, t, first, last, size, x_stride, y_stride, shape, BLOCK_C, ACC
                )
                tl.store(columns + one * (size.inputs * TAPS), channel_sums, mask=t < TAPS)
        row += channels * (size.inputs * TAPS)
    if NEEDS_BIAS:  # noqa: SIM102 (the outer one is compiled away)
        if block_c == 0:
            tl.store(row + o, bias_sums, mask=is_channel)


@triton.jit
def _sum_range(
    x_columns, dy_ptr, code_ptr, o, is_channel, t, first, last, adds_bias, size, x_stride, y_stride,
    shape: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr,
    NEEDS_WEIGHT: tl.constexpr, NEEDS_BIAS: tl.constexpr, INSIDE: tl.constexpr, PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Sums of dw [BLOCK_O, BLOCK_C] and db [BLOCK_O] over positions first <= m < last, BLOCK_M at a time.

    With BLOCK_O 1 there is no matrix product, and only winners are multiplied.
    """
    sums = tl.zeros((BLOCK_O, BLOCK_C), ACC)
    bias_sums = tl.zeros((BLOCK_O, BLOCK_M), ACC)
    TAPS: tl.constexpr = shape.kernel[0] * shape.kernel[1]
    tap_row = t // shape.kernel[1] * shape.dilation[0]
    tap_column = t % shape.kernel[1] * shape.dilation[1]
    x_columns += tap_row * x_stride[2] + tap_column * x_stride[3]
    for start in range(first, last, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        in_range = m < last
        n, i, j = unflatten(m, size.pooled_height, size.pooled_width)
        at = (n * y_stride[0] + i * y_stride[2] + j * y_stride[3])[None, :] + (o * y_stride[1])[:, None]
        seen = is_channel[:, None] & in_range[None, :]
        code = tl.load(code_ptr + at, mask=seen, other=255).to(tl.int32)  # [BLOCK_O, BLOCK_M]
        dy = tl.load(dy_ptr + at, mask=seen, other=0.0)
        if NEEDS_BIAS:  # noqa: SIM102 (the outer one is compiled away)
            if adds_bias:
                bias_sums += tl.where(code < shape.pool[0] * shape.pool[1], dy.to(ACC), 0.0)
        if NEEDS_WEIGHT:
            row = (i * shape.pool_stride[0] - shape.pool_padding[0]) * shape.stride[0] - shape.padding[0]
            column = (j * shape.pool_stride[1] - shape.pool_padding[1]) * shape.stride[1] - shape.padding[1]
            for p_start in range(0, shape.pool[0] * shape.pool[1], unrolled(shape)):
                for p_step in tl.static_range(unrolled(shape)):
                    p = p_start + p_step
                    h = row + p // shape.pool[1] * (shape.pool_dilation[0] * shape.stride[0])
                    w = column + p % shape.pool[1] * (shape.pool_dilation[1] * shape.stride[1])
                    reads = in_range[:, None] & (t < TAPS)[None, :]
                    reads = reads & visible(
                        h[:, None] + tap_row[None, :], w[:, None] + tap_column[None, :], size.height, size.width, INSIDE
                    )
                    source = (n * x_stride[0] + h * x_stride[2] + w * x_stride[3])[:, None] + x_columns[None, :]
                    x = tl.load(source, mask=reads, other=0.0)  # [BLOCK_M, BLOCK_C]
                    if BLOCK_O == 1:
                        products = tl.where(tl.trans(code) == p, tl.trans(dy).to(ACC) * x.to(ACC), 0.0)
                        sums += tl.sum(products, 0)[None, :]
                    else:
                        sums = multiply(tl.where(code == p, dy, tl.zeros_like(dy)), x, sums, PRECISION)
    return sums, tl.sum(bias_sums, 1)


@triton.jit
def _sum_winners(
    x_columns, dy_ptr, code_ptr, o, t, first, last, size, x_stride, y_stride, shape: tl.constexpr, BLOCK_C:
    tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Sums of dw [BLOCK_C] of one output channel o, winner by winner: slow, and nothing is multiplied by 0."""
    sums = tl.zeros((BLOCK_C,), ACC)
    tap_row = t // shape.kernel[1] * shape.dilation[0] - shape.padding[0]
    tap_column = t % shape.kernel[1] * shape.dilation[1] - shape.padding[1]
    for m in range(first, last):
        n, i, j = unflatten(m, size.pooled_height, size.pooled_width)
        at = n * y_stride[0] + o * y_stride[1] + i * y_stride[2] + j * y_stride[3]
        code = tl.load(code_ptr + at).to(tl.int32)
        dy = tl.load(dy_ptr + at).to(ACC)
        row = i * shape.pool_stride[0] - shape.pool_padding[0] + code // shape.pool[1] * shape.pool_dilation[0]
        column = j * shape.pool_stride[1] - shape.pool_padding[1] + code % shape.pool[1] * shape.pool_dilation[1]
        h = row * shape.stride[0] + tap_row
        w = column * shape.stride[1] + tap_column
        # code as a block: Triton 3.9's interpreter takes no mask made of a block and a scalar
        is_column = (code + tl.zeros_like(t) < shape.pool[0] * shape.pool[1]) & (t < shape.kernel[0] * shape.kernel[1])
        reads = is_column & visible(h, w, size.height, size.width, False)
        x = tl.load(x_columns + n * x_stride[0] + h * x_stride[2] + w * x_stride[3], mask=reads, other=0.0).to(ACC)
        sums += tl.where(is_column, dy * x, 0.0)
    return sums


_NUMBERS = ["inputs", "taps", "kernel_w", "stride_o", "stride_c", "stride_h", "stride_w", "ranges", "weights", "biases"]


@triton.jit(do_not_specialize=_NUMBERS)  # a kernel a dtype serves all layers: it waits for memory, not for divisions
def sum_partials(
    partial_ptr,
    dw_ptr,
    db_ptr,
    inputs,
    taps,
    kernel_w,
    stride_o,
    stride_c,
    stride_h,
    stride_w,
    ranges,
    weights,
    biases,
    BLOCK_R: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
    INDEX: tl.constexpr,
):
    """dw [C_out, C_in / groups, kernel] (any strides) and db [C_out]: column sums of partial [ranges, weights +
    biases].

    A program sums BLOCK columns, BLOCK_R rows at a time; the order depends on the shapes alone.
    """
    column = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    in_range = column < weights + biases
    total = tl.zeros((BLOCK,), ACC)
    for start in range(0, ranges, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R).to(INDEX)
        at = partial_ptr + row[:, None] * (weights + biases) + column[None, :]
        total += tl.sum(tl.load(at, mask=(row < ranges)[:, None] & in_range[None, :], other=0.0), 0)
    c = column % inputs
    t = column // inputs % taps
    o = column // inputs // taps
    at = o * stride_o + c * stride_c + t // kernel_w * stride_h + t % kernel_w * stride_w
    tl.store(dw_ptr + at, total.to(dw_ptr.dtype.element_ty), mask=column < weights)
    tl.store(db_ptr + column - weights, total.to(db_ptr.dtype.element_ty), mask=in_range & (column >= weights))
