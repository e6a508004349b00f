"""dx of the fused plan, in gather form: each input position sums over its taps, with dz formed from code and dy on load."""

import triton
import triton.language as tl

from convpool.gpu.tiles import conv_gradient, has_non_finite, multiply, unflatten, widen


@triton.jit
def input_grad(
    dy_ptr,
    code_ptr,
    w_ptr,
    dx_ptr,
    size,
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
    """`dx[n, c, h, w] = sum over o, t of dz[n, o, (h + padding - t's row) / stride, ...] * weight[o, c, t]`.

    A program computes BLOCK_M positions of BLOCK_C channels of x, and sums BLOCK_O output channels of one tap at a time;
    with BLOCK_O 1 there is no matrix product, and only winners are multiplied.
    """
    pid = tl.program_id(0).to(INDEX)
    y_stride = widen(y_stride, INDEX)
    w_stride = widen(w_stride, INDEX)
    x_stride = widen(x_stride, INDEX)
    parts = tl.cdiv(size.inputs, BLOCK_C)
    blocks = tl.cdiv(size.positions, BLOCK_M)
    group = pid // parts // blocks
    m = (pid // parts % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_range = m < size.positions
    n, h, w = unflatten(m, size.height, size.width)
    n = n.to(tl.int64)
    c = (pid % parts) * BLOCK_C + tl.arange(0, BLOCK_C)

    sums = _sum_taps(
        dy_ptr, code_ptr, w_ptr, n, h, w, c, in_range, group, size, y_stride, w_stride, shape,
        BLOCK_M, BLOCK_C, BLOCK_O, PRECISION, ACC, INDEX,
    )  # fmt: skip
    # Positions that did not win add 0 * weight, a NaN where that is not finite: then all is summed again, winners only.
    if BLOCK_O > 1:
        if has_non_finite(sums):
            sums = _sum_taps(
                dy_ptr, code_ptr, w_ptr, n, h, w, c, in_range, group, size, y_stride, w_stride, shape,
                BLOCK_M, BLOCK_C, 1, PRECISION, ACC, INDEX,
            )  # fmt: skip
    at = (n * x_stride[0] + h * x_stride[2] + w * x_stride[3])[:, None] + ((group * size.inputs + c) * x_stride[1])[None, :]
    tl.store(dx_ptr + at, sums.to(dx_ptr.dtype.element_ty), mask=in_range[:, None] & (c < size.inputs)[None, :])


@triton.jit
def _sum_taps(
    dy_ptr, code_ptr, w_ptr, n, h, w, c, in_range, group, size, y_stride, w_stride, shape: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """dx [BLOCK_M, BLOCK_C] at positions (n, h, w) and channels c of a group."""
    sums = tl.zeros((BLOCK_M, BLOCK_C), ACC)
    w_columns = w_ptr + (c * w_stride[1])[None, :]
    chunks = tl.cdiv(size.outputs, BLOCK_O)
    for step in range(0, shape.kernel[0] * shape.kernel[1] * chunks):
        t = step // chunks
        o = (step % chunks) * BLOCK_O + tl.arange(0, BLOCK_O).to(INDEX)
        is_channel = o < size.outputs
        o = group * size.outputs + o
        tap_row = t // shape.kernel[1]
        tap_column = t % shape.kernel[1]
        row = h + shape.padding[0] - tap_row * shape.dilation[0]
        column = w + shape.padding[1] - tap_column * shape.dilation[1]
        read = in_range & (row >= 0) & (column >= 0)
        if shape.stride[0] > 1:
            read = read & (row % shape.stride[0] == 0)
            row = row // shape.stride[0]
        if shape.stride[1] > 1:
            read = read & (column % shape.stride[1] == 0)
            column = column // shape.stride[1]
        read = read & (row < size.conv_height) & (column < size.conv_width)
        base = (n * y_stride[0])[:, None] + (o * y_stride[1])[None, :]
        dz, elected = conv_gradient(
            dy_ptr, code_ptr, base, row[:, None], column[:, None], read[:, None] & is_channel[None, :], size, y_stride,
            shape, ACC,
        )  # fmt: skip  # [BLOCK_M, BLOCK_O]
        at = w_columns + (o * w_stride[0] + tap_row * w_stride[2] + tap_column * w_stride[3])[:, None]
        weight = tl.load(at, mask=is_channel[:, None] & (c < size.inputs)[None, :], other=0.0)  # [BLOCK_O, BLOCK_C]
        if BLOCK_O == 1:
            sums += tl.where(elected, dz * weight.to(ACC), 0.0)
        else:
            sums = multiply(dz.to(weight.dtype), weight, sums, PRECISION)
    return sums
