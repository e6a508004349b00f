# mypy: ignore-errors
"""`step_kernel` as one launch of one program.

Each round of the iteration multiplies X by a polynomial of its Gram matrix G = X X^T. All of these commute, so the
rounds are made on matrices of the shorter side alone: X is read once for G, and once more to be multiplied by the
product of the polynomials. For 64 rows and 288 columns that is 60 % of the arithmetic, and X needs no room.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from convpool.gpu.launch import on_device
from convpool.gpu.specialise import architecture

# With eight warps, blocks of 64 x 64 take 106 registers a thread on sm_90. With all 64 summands of a product at once
# they took 255, and 350 values more in memory.
_WARPS, _SUMMANDS, _BLOCK_LONG = 8, 16, 64


def launch_step(
    kernel: Tensor,
    gradient: Tensor,
    average: Tensor,
    lr: Tensor,
    *,
    momentum: float,
    weight_decay: float,
    step_size: float,
    coefficients: tuple[float, float, float],
    rounds: int,
) -> None:
    """See `step_kernel`, whose update is `step_size` times an orthogonal matrix.

    The three tensors have the same strides, and the entries of a row lie side by side: in which order is the same to
    the rows of X.
    """
    rows, columns = len(kernel), kernel[0].numel()
    wide = rows <= columns
    short, long = sorted((rows, columns))
    block = max(_SUMMANDS, triton.next_power_of_2(short))
    a, b, c = coefficients
    with on_device(kernel.get_device()):
        tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32" and architecture().tf32
        step[(1,)](
            kernel,
            gradient,
            average,
            lr,
            kernel.new_empty((4, block, block)),
            1 - momentum,
            weight_decay,
            step_size,
            SHORT=short,
            LONG=long,
            SHORT_STRIDE=columns if wide else 1,
            LONG_STRIDE=1 if wide else columns,
            A=a,
            B=b,
            C=c,
            ROUNDS=rounds,
            BLOCK_SHORT=block,
            BLOCK_LONG=_BLOCK_LONG,
            BLOCK_K=_SUMMANDS,
            PRECISION="tf32" if tf32 else "ieee",
            num_warps=_WARPS,
            num_stages=1,
            enable_fp_fusion=True,
        )


@triton.jit
def step(
    kernel_ptr,
    gradient_ptr,
    average_ptr,
    lr_ptr,
    scratch_ptr,
    rate,
    weight_decay,
    step_size,
    SHORT: tl.constexpr,
    LONG: tl.constexpr,
    SHORT_STRIDE: tl.constexpr,
    LONG_STRIDE: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
    ROUNDS: tl.constexpr,
    BLOCK_SHORT: tl.constexpr,
    BLOCK_LONG: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`kernel = kernel * (1 - lr * weight_decay) - lr * step_size * product X`, in place, as average is.

    average goes `rate` of the way to gradient; X [SHORT, LONG] is gradient, gone all of the way to average but `rate`.
    Matrices of the shorter side, [BLOCK_SHORT, BLOCK_SHORT], lie in memory, from where products take BLOCK_K summands
    at a time; barriers stand between writing and reading them.
    """
    i = tl.arange(0, BLOCK_SHORT)
    is_diagonal = i[:, None] == i[None, :]
    square_at = i[:, None] * BLOCK_SHORT + i[None, :]
    gram_ptr = scratch_ptr
    factor_ptr = gram_ptr + BLOCK_SHORT * BLOCK_SHORT
    between_ptr = factor_ptr + BLOCK_SHORT * BLOCK_SHORT
    product_ptr = between_ptr + BLOCK_SHORT * BLOCK_SHORT

    gram = tl.zeros((BLOCK_SHORT, BLOCK_SHORT), tl.float32)
    for first in range(0, LONG, BLOCK_K):
        at, inside = _entries(i, first + tl.arange(0, BLOCK_K), SHORT, LONG, SHORT_STRIDE, LONG_STRIDE)
        gradient = tl.load(gradient_ptr + at, mask=inside, other=0.0)
        average = tl.load(average_ptr + at, mask=inside, other=0.0)
        average += rate * (gradient - average)
        tl.store(average_ptr + at, average, mask=inside)
        x = average + rate * (gradient - average)
        gram = tl.dot(x, tl.trans(x), gram, input_precision=PRECISION)
    norm = tl.sqrt(tl.sum(tl.sum(tl.where(is_diagonal, gram, 0.0), 1), 0))
    scale = 1 / (norm + 1e-7)
    tl.store(gram_ptr + square_at, gram * scale * scale)
    tl.debug_barrier()

    for turn in range(ROUNDS):
        square = _multiply(gram_ptr, gram_ptr, BLOCK_SHORT, BLOCK_K, PRECISION)
        factor = tl.where(is_diagonal, A, 0.0) + B * tl.load(gram_ptr + square_at) + C * square
        tl.store(factor_ptr + square_at, factor)
        tl.debug_barrier()
        if turn == 0:
            tl.store(product_ptr + square_at, factor * scale)
        else:
            product = _multiply(factor_ptr, product_ptr, BLOCK_SHORT, BLOCK_K, PRECISION)
            tl.debug_barrier()
            tl.store(product_ptr + square_at, product)
        if turn + 1 < ROUNDS:
            between = _multiply(factor_ptr, gram_ptr, BLOCK_SHORT, BLOCK_K, PRECISION)
            tl.store(between_ptr + square_at, between)
            tl.debug_barrier()
            gram = _multiply(between_ptr, factor_ptr, BLOCK_SHORT, BLOCK_K, PRECISION)
            tl.store(gram_ptr + square_at, gram)
        tl.debug_barrier()

    lr = tl.load(lr_ptr).to(tl.float32)
    for first in range(0, LONG, BLOCK_LONG):
        j = first + tl.arange(0, BLOCK_LONG)
        update = tl.zeros((BLOCK_SHORT, BLOCK_LONG), tl.float32)
        for start in range(0, BLOCK_SHORT, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            product = tl.load(product_ptr + i[:, None] * BLOCK_SHORT + k[None, :])
            at, inside = _entries(k, j, SHORT, LONG, SHORT_STRIDE, LONG_STRIDE)
            gradient = tl.load(gradient_ptr + at, mask=inside, other=0.0)
            average = tl.load(average_ptr + at, mask=inside, other=0.0)
            x = average + rate * (gradient - average)
            update = tl.dot(product, x, update, input_precision=PRECISION)
        at, inside = _entries(i, j, SHORT, LONG, SHORT_STRIDE, LONG_STRIDE)
        kernel = tl.load(kernel_ptr + at, mask=inside, other=0.0) * (1 - lr * weight_decay)
        tl.store(kernel_ptr + at, kernel - lr * step_size * update, mask=inside)


@triton.jit
def _entries(i, j, SHORT: tl.constexpr, LONG: tl.constexpr, SHORT_STRIDE: tl.constexpr, LONG_STRIDE: tl.constexpr):
    """Offsets of X's entries in rows i and columns j, [rows, columns], and which of them there are."""
    inside = (i < SHORT)[:, None] & (j < LONG)[None, :]
    return i[:, None] * SHORT_STRIDE + j[None, :] * LONG_STRIDE, inside


@triton.jit
def _multiply(left_ptr, right_ptr, SIZE: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr):
    """The product of two matrices in memory, [SIZE, SIZE]."""
    i = tl.arange(0, SIZE)
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for first in range(0, SIZE, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        left = tl.load(left_ptr + i[:, None] * SIZE + k[None, :])
        right = tl.load(right_ptr + k[:, None] * SIZE + i[None, :])
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total
