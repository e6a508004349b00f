"""The small operations of a training step (`mnistfast.ops`), launched on tensors that stand for a GPU's."""

from collections.abc import Callable

import torch
from torch import Tensor

from convpool.gpu.offline import TARGETS, Launched, compiled_launches
from mnistfast.ops.batch import Rates, take_batch
from mnistfast.ops.cursor import Cursor
from mnistfast.ops.loss import learn_from
from mnistfast.ops.orthogonal import step_kernel
from mnistfast.ops.placement import standing_for_gpus

NCHW, LAST = torch.contiguous_format, torch.channels_last


def batch(rows: slice, channels: int, side: int, memory_format: torch.memory_format) -> None:
    images = _empty(60_000, channels, side, side, dtype=torch.uint8)
    data = images, _integers(60_000), _empty(1, channels, 1, 1), _empty(1, channels, 1, 1), _integers(60_000)
    take_batch(*data, _cursor(), Rates(_empty(2000, 3), _empty(3)), rows, memory_format)


def loss(rows: slice, size: int, classes: int, dtype: torch.dtype = torch.float32) -> None:
    """Of these rows of a batch of a size."""
    count, kept = rows.stop - rows.start, (_empty(60_000), _integers(60_000))
    logits, labels = _empty(count, classes, dtype=dtype), _integers(count)
    options = {"rows_start": rows.start, "smoothing": 0.1, "scale": 1.0, "advance": True, "add": False}
    learn_from(logits, labels, _cursor(), *kept, batch=size, **options)


def muon(*shape: int, formats: tuple[torch.memory_format, ...] = (NCHW, NCHW, NCHW)) -> None:
    """Of a kernel, its gradient and its average in these formats."""
    kernel, gradient, average = (_empty(*shape).to(memory_format=each) for each in formats)
    step_kernel(kernel, gradient, average, _empty(), momentum=0.9, weight_decay=0.1)


OPERATIONS: dict[str, Callable[[int], None]] = {  # given the batch
    "batch of 1 x 28 x 28": lambda size: batch(slice(0, size), 1, 28, NCHW),
    "batch of 3 x 32 x 32": lambda size: batch(slice(0, size), 3, 32, LAST),
    "loss of 10, float32": lambda size: loss(slice(0, size), size, 10),
    "loss of 10, bfloat16": lambda size: loss(slice(0, size), size, 10, torch.bfloat16),
    "loss of 1000, float32": lambda size: loss(slice(0, size), size, 1000),
    "muon, 16 x 6 x 5 x 5": lambda size: muon(16, 6, 5, 5),
    "muon, 40 x 2 x 3 x 3": lambda size: muon(40, 2, 3, 3),  # more rows than columns
    "muon, 64 x 64 x 3 x 3": lambda size: muon(64, 64, 3, 3),
}


def launches(target: str, size: int) -> list[tuple[str, Launched]]:
    """The one launch of each operation in batches of a size, compiled for the target, with the operation's name."""
    found = []
    for name, operation in OPERATIONS.items():
        with compiled_launches(TARGETS[target]) as launched, standing_for_gpus("meta"):
            operation(size)
        (one,) = launched
        found.append((name, one))
    return found


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _integers(*shape: int) -> Tensor:
    return _empty(*shape, dtype=torch.int64)


def _cursor() -> Cursor:
    return Cursor.begin(torch.device("meta"))
