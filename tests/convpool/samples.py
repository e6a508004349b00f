"""What every backend and `auto` are tried on: layers, ways in which a tensor lies in memory, and what can happen to a
tensor between forward and backward. A new finding is a new row here."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from convpool import planning
from convpool.autograd import ConvReLUMaxPool2dFunction
from convpool.geometry import Settings
from convpool.testing.cases import Case


def apply(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings, backend: str) -> tuple[Tensor, Tensor]:
    """y and code by the op's Function, planned for a backend."""
    call = planning.plan_for(x, weight, settings, backend).call
    return ConvReLUMaxPool2dFunction.apply(x, weight, bias, settings, call)


Change: TypeAlias = Callable[[Tensor], Tensor]

# One of each kernel and plan, small; then the layers on which something was wrong once.
LAYERS = (
    Case("direct", 2, 3, (9, 11), 5, (3, 3)),
    Case("images", 17, 2, (8, 9), 5, (3, 3), {"padding": 1}),
    Case("winograd", 2, 16, (9, 10), 20, (3, 3), {"padding": 1}),
    Case("split", 1, 32, (9, 9), 6, (7, 7), {"padding": 3}),
    Case("groups", 2, 6, (9, 9), 18, (3, 3), {"groups": 2, "dilation": (2, 1), "padding": 2}),
    Case("overlap", 2, 4, (11, 10), 8, (3, 2), {"pool_kernel_size": 3, "pool_stride": 2, "pool_padding": 1}),
    Case("ceil", 2, 3, (8, 12), 4, (3, 3), {"pool_kernel_size": 3, "pool_stride": 2, "ceil_mode": True}),
    Case("one-output", 2, 3, (9, 9), 1, (3, 3)),
    # oneDNN's convolution of one channel in channels_last is wrong here with AVX-512
    Case("one-column", 5, 1, (12, 5), 17, (3, 3), {"stride": (1, 3), "pool_kernel_size": (2, 1), "pool_stride": 1}),
    Case("one-column-split", 2, 1, (47, 48), 3, (40, 40), {"stride": (1, 9), "pool_kernel_size": (2, 1)}),
    # with AVX2 it writes beyond the weight's gradient here
    Case("one-column-of-1x1", 6, 2, (8, 2), 5, (1, 1), {"stride": 2, "pool_kernel_size": 1}),
    Case("one-column-same", 4, 1, (9, 4), 8, (2, 3), {"stride": (1, 2), "pool_kernel_size": (4, 1)}, bias=False),
)

# Layers with pool windows that hold no conv output, in which torch's own backward writes out of bounds.
EMPTY_WINDOWS = (
    Case(
        "row-missed",
        1,
        3,
        (3, 26),
        8,
        (3, 3),
        {"pool_kernel_size": 3, "pool_stride": 6, "pool_padding": 1, "pool_dilation": 2, "ceil_mode": True},
    ),
    Case(
        "column-missed",
        2,
        2,
        (20, 2),
        4,
        (1, 1),
        {"pool_kernel_size": 2, "pool_stride": 2, "pool_padding": 1, "pool_dilation": 3, "ceil_mode": True},
    ),
    Case(
        "both-missed",
        2,
        1,
        (2, 2),
        3,
        (1, 1),
        {"pool_kernel_size": 3, "pool_stride": 4, "pool_padding": 1, "pool_dilation": 3, "ceil_mode": True},
        bias=False,
    ),
)

# Strides that PyTorch users meet; each gives a tensor of the shape of the one it is given.
VIEWS: dict[str, Change] = {
    "contiguous": lambda t: t,
    "channels-last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "channels-last-strides": lambda t: t.permute(0, 2, 3, 1).flatten().view(_moved(t)).permute(0, 3, 1, 2),
    "slice-of-channels": lambda t: torch.cat([t, t, t], 1)[:, t.shape[1] : 2 * t.shape[1]],
    "slice-of-channels-last": lambda t: VIEWS["channels-last"](torch.cat([t, t, t], 1))[:, : t.shape[1]],
    "every-other": lambda t: torch.stack([t, t], -1)[..., 1],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "batch-innermost": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "flipped": lambda t: t.flip(2, 3),
    "misaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "expanded-batch": lambda t: t[:1].expand(t.shape),
    "expanded-columns": lambda t: t[..., :1].expand(t.shape),
    "one-number": lambda t: t[:1, :1, :1, :1].expand(t.shape),
}


def _moved(t: Tensor) -> tuple[int, ...]:
    n, c, h, w = t.shape
    return n, h, w, c


def shrunk(t: Tensor) -> Tensor:
    """The same sizes and strides over a storage that holds half of them."""
    t = t.clone()
    t.untyped_storage().resize_(t.untyped_storage().nbytes() // 2)
    return t


# What a hook may give back for a saved tensor: the tensors it changes, and the change.
REFUSED: dict[str, tuple[Callable[[Tensor], bool], Change]] = {
    "numbers-in-half": (Tensor.is_floating_point, Tensor.half),
    "numbers-in-double": (Tensor.is_floating_point, Tensor.double),
    "codes-in-int64": (lambda t: t.dtype == torch.uint8, Tensor.long),
    "codes-of-fewer-images": (lambda t: t.dtype == torch.uint8, lambda t: t[1:]),
    "codes-without-a-row": (lambda t: t.dtype == torch.uint8, lambda t: t[:, :, 1:]),
    "numbers-without-a-row": (Tensor.is_floating_point, lambda t: t[:, :, 1:]),
    "numbers-of-fewer-channels": (Tensor.is_floating_point, lambda t: t[:, 1:]),
    "numbers-of-other-axes": (Tensor.is_floating_point, lambda t: t.flatten(2)),
    "numbers-on-meta": (Tensor.is_floating_point, lambda t: t.to("meta")),
    "codes-on-meta": (lambda t: t.dtype == torch.uint8, lambda t: t.to("meta")),
    "numbers-freed": (Tensor.is_floating_point, shrunk),
    "codes-freed": (lambda t: t.dtype == torch.uint8, shrunk),
}

# The same values elsewhere, or by other strides.
ACCEPTED: dict[str, Change] = {
    "cloned": Tensor.clone,
    "contiguous": lambda t: t.contiguous().clone(memory_format=torch.contiguous_format),
    "channels-last": lambda t: t.clone(memory_format=torch.channels_last),
    **{name: VIEWS[name] for name in ("every-other", "transposed", "batch-innermost", "misaligned")},
}
