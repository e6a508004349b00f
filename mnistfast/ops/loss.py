"""The loss that is learnt by: a batch is judged, and its gradient begins the backward pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convpool.torch_private import log_softmax_backward
from mnistfast.ops.cursor import Cursor
from mnistfast.ops.placement import takes_kernel

_MOST_CLASSES = 1024  # the kernel holds a row in registers


def learn_from(
    logits: Tensor,
    labels: Tensor,
    cursor: Cursor,
    losses: Tensor,
    answers: Tensor | None,
    *,
    rows_start: int,
    smoothing: float,
    batch: int,
    scale: float,
    advance: bool,
    add: bool,
) -> Tensor:
    """Notes what the images of a batch lose and are taken for, and returns the gradient of the batch's mean loss.

    Args:
        logits: float32, bfloat16 or float16 (n, classes), without gradients, of all of the batch or a process' slice.
        labels: int64 (n,).
        cursor: where the training is.
        losses: float32 (M,), of the epoch. At the position of each image (`now`'s, and `rows_start`, and its row) gets
            its share in the mean: cross-entropy / batch.
        answers: int64 (M,), of the epoch: gets the class with the largest logit at the same positions; NaN is larger
            than any number, of equals the first counts. None where nobody asks.
        rows_start: the first of these rows in the whole batch.
        smoothing: share of the probability that is spread evenly over the classes.
        batch: images of the whole batch.
        scale: factor of the gradient, not of the losses.
        advance: whether this ends the step: the next one will begin `batch` images further.
        add: whether losses are added to what is there, as those of a step's second data set are.

    Returns:
        (n, classes) of logits' dtype, computed in float32.
    """
    spread = smoothing / logits.shape[1]
    rest, labelled = spread / batch, (1 - smoothing + spread) / batch
    if takes_kernel(logits) and logits.shape[1] <= _MOST_CLASSES:
        from mnistfast.ops.loss_kernel import launch_loss

        return launch_loss(
            logits,
            labels,
            cursor,
            losses,
            answers,
            rows_start=rows_start,
            rest=rest,
            labelled=labelled,
            batch=batch,
            scale=scale,
            advance=advance,
            add=add,
        )
    # In as few calls as possible, each of which costs a CPU 5 us or more where kernels have evicted Python's data: with
    # probabilities for labels, by what autograd would call, and the sign in the probabilities.
    wanted = torch.full_like(logits, -rest, dtype=torch.float32).scatter_(1, labels[:, None], -labelled)
    log_shares = F.log_softmax(logits.float(), 1)
    gradient = log_softmax_backward(wanted if scale == 1 else wanted * scale, log_shares, 1, torch.float32)
    positions = cursor.positions(slice(rows_start, rows_start + len(logits)))
    lost = (log_shares * wanted).sum(1)
    if add:
        losses.index_add_(0, positions, lost)
    else:
        losses.index_copy_(0, positions, lost)
    if answers is not None:
        answers.index_copy_(0, positions, logits.argmax(1))
    if advance:
        cursor.advance(batch)
    return gradient.to(logits.dtype)
