# mypy: ignore-errors
"""`take_batch` as one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from convpool.gpu.launch import on_device
from mnistfast.ops.cursor import Cursor

_BLOCK = 1024  # pixels of a program: an image of MNIST is one program's


def launch_batch(
    images: Tensor,
    labels: Tensor,
    scale: Tensor,
    shift: Tensor,
    order: Tensor,
    cursor: Cursor,
    table: Tensor,
    lr: Tensor,
    rows: slice,
    memory_format: torch.memory_format,
) -> tuple[Tensor, Tensor]:
    """See `take_batch`; `table` and `lr` are those of its rates."""
    _, channels, height, width = images.shape
    pixels, count = height * width, rows.stop - rows.start
    x = torch.empty(
        (count, channels, height, width), dtype=torch.float32, device=images.device, memory_format=memory_format
    )
    y = labels.new_empty(count)
    block = min(_BLOCK, triton.next_power_of_2(channels * pixels))
    blocks = triton.cdiv(channels * pixels, block)
    with on_device(images.get_device()):
        begin_step[(max(1, count) * blocks,)](  # where this process has no rows, the step begins nevertheless
            images,
            labels,
            scale,
            shift,
            order,
            cursor.coming,
            cursor.now,
            table,
            lr,
            x,
            y,
            rows.start,
            count,
            CHANNELS=channels,
            PIXELS=pixels,
            GROUPS=len(lr),
            CHANNELS_LAST=memory_format == torch.channels_last,
            BLOCK=block,
            BLOCKS=blocks,
            BLOCK_GROUPS=triton.next_power_of_2(len(lr)),
            num_warps=4,
            enable_fp_fusion=False,  # the product is rounded before the sum, as by torch's calls: the same bits
        )
    return x, y


@triton.jit(do_not_specialize=["first_row", "rows"])
def begin_step(
    images_ptr,
    labels_ptr,
    scale_ptr,
    shift_ptr,
    order_ptr,
    coming_ptr,
    now_ptr,
    table_ptr,
    lr_ptr,
    x_ptr,
    y_ptr,
    first_row,
    rows,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    GROUPS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
):
    """`x[row] = images[order[start + first_row + row]] * scale + shift`, its label, the step's rates, the step itself.

    A program makes BLOCK values of one row, in the order of x's addresses. The first one writes `now`, which no program
    of this launch reads.
    """
    program = tl.program_id(0).to(tl.int64)
    row = program // BLOCKS
    block = program % BLOCKS
    step = tl.load(coming_ptr)
    start = tl.load(coming_ptr + 1)
    if program == 0:
        tl.store(now_ptr, step)
        tl.store(now_ptr + 1, start)
        group = tl.arange(0, BLOCK_GROUPS)
        rate = tl.load(table_ptr + step * GROUPS + group, mask=group < GROUPS)
        tl.store(lr_ptr + group, rate, mask=group < GROUPS)
    exists = row < rows
    sample = tl.load(order_ptr + start + first_row + row, mask=exists, other=0)
    tl.store(y_ptr + row, tl.load(labels_ptr + sample, mask=exists & (block == 0)), mask=exists & (block == 0))
    at = block * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = at < tl.where(exists, CHANNELS * PIXELS, 0)  # Triton 3.9 interprets no mask made of a block and a scalar
    if CHANNELS_LAST:
        channel = at % CHANNELS
        source = channel * PIXELS + at // CHANNELS
    else:
        channel = at // PIXELS
        source = at
    value = tl.load(images_ptr + sample * (CHANNELS * PIXELS) + source, mask=inside, other=0).to(tl.float32)
    scale = tl.load(scale_ptr + channel, mask=inside, other=0.0)
    shift = tl.load(shift_ptr + channel, mask=inside, other=0.0)
    tl.store(x_ptr + row * (CHANNELS * PIXELS) + at, value * scale + shift, mask=inside)
