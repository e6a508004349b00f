"""Which tensors the Triton kernels take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from torch import Tensor

_standing_for_gpus: set[str] = set()


def takes_kernel(tensor: Tensor) -> bool:
    """Whether what is done to this tensor is one launch: it is on a GPU that Triton can use."""
    device = tensor.device.type
    return device in _standing_for_gpus or (device == "cuda" and _has_triton())


@contextmanager
def standing_for_gpus(device_type: str) -> Iterator[None]:
    """Inside, tensors on this type of device stand for a GPU's: to interpret, compile or count launches without one."""
    _standing_for_gpus.add(device_type)
    try:
        yield
    finally:
        _standing_for_gpus.discard(device_type)


@cache
def _has_triton() -> bool:
    from convpool.gpu.backend import BACKEND  # here, for its neighbours import Triton

    return BACKEND.unavailable() is None
