"""A step begins: the rate and the samples that its number in the training says."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mnistfast.ops.cursor import Cursor
from mnistfast.ops.placement import takes_kernel


@dataclass(frozen=True)
class Rates:
    """The learning rates of a training, on its device.

    Attributes:
        table: (steps, groups), of each step for each of the optimiser's groups; float64 on CPUs, float32 elsewhere.
        lr: (groups,), of table's dtype: those of the step that is being taken. The optimiser's groups hold its entries.
    """

    table: Tensor
    lr: Tensor

    @cached_property
    def row(self) -> Tensor:
        """`lr` as a row of the table, (1, groups)."""
        return self.lr.view(1, -1)


def take_batch(
    images: Tensor,
    labels: Tensor,
    scale: Tensor,
    shift: Tensor,
    order: Tensor,
    cursor: Cursor,
    rates: Rates,
    rows: slice,
    memory_format: torch.memory_format,
) -> tuple[Tensor, Tensor]:
    """Begins a step: `now` is what was `coming`, `lr` its row of the table; and returns its samples, normalised.

    Until the cursor advances, doing so again (with the samples of another data set) changes nothing else.

    Args:
        images: uint8 (N, C, H, W), contiguous.
        labels: int64 (N,).
        scale: float32 (1, C, 1, 1).
        shift: float32 (1, C, 1, 1).
        order: int64 (M,), the epoch's: which sample stands at each position.
        cursor: where the training is; on the device of all these.
        rates: of the training.
        rows: the rows of the batch that are wanted: numbers, not below 0.
        memory_format: of the returned images: contiguous or channels_last.

    Returns:
        `pixel * scale + shift`, float32 (rows, C, H, W), and labels int64 (rows,).
    """
    if takes_kernel(images):
        from mnistfast.ops.batch_kernel import launch_batch

        return launch_batch(images, labels, scale, shift, order, cursor, rates.table, rates.lr, rows, memory_format)
    taken = _begin(order, cursor, rates, rows)
    pixels = images.index_select(0, taken).to(torch.float32, memory_format=memory_format)
    return pixels.mul_(scale).add_(shift), labels.index_select(0, taken)


def take_rows(
    values: Tensor, labels: Tensor, order: Tensor, cursor: Cursor, rates: Rates, rows: slice
) -> tuple[Tensor, Tensor]:
    """Begins a step as `take_batch` does, of samples that are taken as they are: values (N, width), as of embeddings.

    Returns:
        Values (rows, width) and labels int64 (rows,).
    """
    taken = _begin(order, cursor, rates, rows)
    return values.index_select(0, taken), labels.index_select(0, taken)


def _begin(order: Tensor, cursor: Cursor, rates: Rates, rows: slice) -> Tensor:
    """Returns which samples these rows of the batch are: int64 (rows,)."""
    cursor.now.copy_(cursor.coming)
    torch.index_select(rates.table, 0, cursor.step, out=rates.row)
    return order.index_select(0, cursor.positions(rows))
