"""What must hold of tensors: that they fit each other, and before a kernel follows their pointers, that they are there.

All of it is seen from their metadata alone.

Between forward and backward anything can happen to a saved tensor: hooks give back another one, `.data` is assigned, a
storage shrinks. torch's layers raise then; version counters do not tell, for such writes leave them.
"""

import torch
from torch import Tensor

from convpool.geometry import Geometry


def check_shapes(x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...] | None) -> None:
    """Refuse shapes with another number of dimensions than the op's, or a bias that does not go with weight.

    Raises:
        ValueError: names the argument, its shape and what is allowed.
    """
    if len(x) not in (3, 4):
        raise ValueError(f"x must be (N, C, H, W) or (C, H, W), got shape {x}")
    if len(weight) != 4:
        raise ValueError(f"weight must be (C_out, C_in / groups, kH, kW), got shape {weight}")
    if bias is not None and bias != weight[:1]:
        raise ValueError(f"bias must have shape ({weight[0]},) to go with weight, got {bias}")


def check_alike(attribute: str, error: type[Exception], found: tuple[object, ...]) -> None:
    """Raise `error` unless the attribute's values of x, weight and bias are the same."""
    for name, value in zip(("weight", "bias"), found[1:], strict=True):
        if value != found[0]:
            raise error(f"{name} must have the {attribute} of x, {found[0]}, got {value}")


def check_memory(**tensors: Tensor | None) -> None:
    """Refuse a tensor that its storage does not hold: one that was freed, as FSDP does it, or shrunk.

    Raises:
        RuntimeError: a tensor's last element lies beyond its storage.
    """
    for name, tensor in tensors.items():
        if tensor is None or not (count := extent(tensor)):
            continue
        needed, room = tensor.storage_offset() + count, tensor.untyped_storage().nbytes() // tensor.itemsize
        if needed > room:
            raise RuntimeError(
                f"{name} of shape {tuple(tensor.shape)} has no memory: its storage holds {room} elements, {needed} are "
                "needed (was it freed or shrunk?)"
            )


def extent(t: Tensor) -> int:
    """Elements from a tensor's first one to its last, both included."""
    count = t.numel()
    if not count or t.is_contiguous() or (t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)):
        return count
    return 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))


def check_saved(dy: Tensor, code: Tensor, x: Tensor | None, weight: Tensor, geometry: Geometry) -> None:
    """Refuse tensors of a backward pass that are not those of the forward pass of this geometry.

    Raises:
        RuntimeError: a shape, dtype or device is another one.
    """
    dtype, device = dy.dtype, dy.device
    if (
        dy.shape == geometry.output_shape == code.shape
        and weight.shape == geometry.weight_shape
        and weight.dtype == dtype
        and weight.device == device == code.device
        and code.dtype == torch.uint8
        and (x is None or (x.shape == geometry.x_shape and x.dtype == dtype and x.device == device))
    ):
        return
    for name, tensor, shape, kind in (
        ("dy", dy, geometry.output_shape, dtype),
        ("weight", weight, geometry.weight_shape, dtype),
        ("the winners' code", code, geometry.output_shape, torch.uint8),
        ("x", x, geometry.x_shape, dtype),
    ):
        if tensor is None:
            continue
        expected, found = (tuple(shape), kind, device), (tuple(tensor.shape), tensor.dtype, tensor.device)
        if expected != found:
            raise RuntimeError(
                f"backward needs {name} as the forward pass left it, of shape, dtype and device {_words(expected)}, "
                f"got {_words(found)}: did a hook or an assignment to .data change it?"
            )


def _words(found: tuple[object, ...]) -> str:
    return ", ".join(map(str, found))
