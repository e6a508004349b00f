# mypy: ignore-errors
"""`learn_from` as one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from convpool.gpu.launch import on_device
from mnistfast.ops.cursor import Cursor

_BLOCK = 512  # logits of a program


def launch_loss(
    logits: Tensor,
    labels: Tensor,
    cursor: Cursor,
    losses: Tensor,
    answers: Tensor | None,
    *,
    rows_start: int,
    rest: float,
    labelled: float,
    batch: int,
    scale: float,
    advance: bool,
    add: bool,
) -> Tensor:
    """See `learn_from`; `labelled` is the probability wanted of an image's label and `rest` that of any other class,
    both divided by the batch."""
    rows, classes = logits.shape
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    block_classes = triton.next_power_of_2(classes)
    block_rows = max(1, _BLOCK // block_classes)
    with on_device(logits.get_device()):
        judge[(max(1, triton.cdiv(rows, block_rows)),)](  # without rows here, the step ends nevertheless
            logits.contiguous(),
            labels,
            cursor.now,
            cursor.coming,
            losses,
            losses if answers is None else answers,
            gradient,
            rows,
            rows_start,
            batch,
            rest,
            labelled,
            scale,
            CLASSES=classes,
            BLOCK_ROWS=block_rows,
            BLOCK_CLASSES=block_classes,
            WITH_ANSWERS=answers is not None,
            ADVANCE=advance,
            ADD=add,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return gradient


@triton.jit(do_not_specialize=["rows", "first_row", "batch"])
def judge(
    logits_ptr,
    labels_ptr,
    now_ptr,
    coming_ptr,
    losses_ptr,
    answers_ptr,
    gradient_ptr,
    rows,
    first_row,
    batch,
    rest,
    labelled,
    scale,
    CLASSES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    WITH_ANSWERS: tl.constexpr,
    ADVANCE: tl.constexpr,
    ADD: tl.constexpr,
):
    """`-sum_c wanted_c log softmax(logits)_c` of each row, with its gradient times `scale`, and the row's best class.

    A program judges BLOCK_ROWS rows. The first one writes `coming`, which no program of this launch reads.
    """
    step = tl.load(now_ptr)
    start = tl.load(now_ptr + 1)
    if ADVANCE and tl.program_id(0) == 0:
        tl.store(coming_ptr, step + 1)
        tl.store(coming_ptr + 1, start + batch)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # [BLOCK_ROWS]
    column = tl.arange(0, BLOCK_CLASSES)[None, :]  # [1, BLOCK_CLASSES]
    is_class = column < CLASSES
    at = row[:, None] * CLASSES + column  # [BLOCK_ROWS, BLOCK_CLASSES]
    inside = (row < rows)[:, None] & is_class
    logits = tl.load(logits_ptr + at, mask=inside, other=0.0).to(tl.float32)
    logits = tl.where(is_class, logits, float("-inf"))
    label = tl.load(labels_ptr + row, mask=row < rows, other=0)[:, None]
    wanted = tl.where(column == label, labelled, tl.where(is_class, rest, 0.0))

    largest = tl.max(logits, 1)[:, None]
    below = logits - largest
    total = tl.sum(tl.where(is_class, tl.exp(below), 0.0), 1)[:, None]
    log_share = tl.where(is_class, below - tl.log(total), 0.0)
    lost = -tl.sum(wanted * log_share, 1)  # [BLOCK_ROWS]
    upstream = wanted * -scale
    gradient = upstream - tl.exp(log_share) * tl.sum(upstream, 1)[:, None]
    tl.store(gradient_ptr + at, gradient.to(gradient_ptr.dtype.element_ty), mask=inside)

    position = start + first_row + row
    if ADD:
        lost += tl.load(losses_ptr + position, mask=row < rows, other=0.0)
    tl.store(losses_ptr + position, lost, mask=row < rows)
    if WITH_ANSWERS:
        is_nan = logits != logits
        has_nan = tl.max(is_nan.to(tl.int32), 1)[:, None] > 0
        best = tl.where(has_nan, is_nan, logits == largest)
        answer = tl.min(tl.where(best, column, BLOCK_CLASSES), 1)
        tl.store(answers_ptr + position, answer.to(tl.int64), mask=row < rows)
